"""The bodies of requests, as OpenAI's API has them. What is not here is refused by name, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from decoding.state.sampling import Sampling

Penalty = Annotated[float, Field(ge=-2, le=2)]
SEEDS = 2**31
Token = Annotated[int, Field(ge=0, lt=2**31)]


class Strict(BaseModel):
    """A body, or a part of one, without fields that nobody reads."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool = False


class PolicyRequest(Strict):
    """Another threshold than the tuned one, or the speedup that one is looked up for."""

    threshold: float | None = None
    target_speedup: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one(self) -> PolicyRequest:
        if (self.threshold is None) == (self.target_speedup is None):
            raise ValueError("give one of threshold and target_speedup")
        return self


class Body(Strict):
    """The fields that chats and completions share."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    policy: Literal["off"] | PolicyRequest | None = None
    """of this server alone. off: the large model writes alone; absent: as tuned"""
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    """these three say nothing about the text"""

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer, None where the request does not say."""
        return self.max_tokens

    def sampling(self, default: Sampling) -> Sampling:
        """As the request says, ``default`` where it says nothing."""
        own = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        given = {name: getattr(default, name) if value is None else value for name, value in own.items()}
        penalties = {name: getattr(self, name) for name in ("frequency_penalty", "presence_penalty")}
        return Sampling(**given, **penalties)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message; what else it has (name, tool_calls ...) is the chat template's to read."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: str | list[TextPart] | None = None

    def plain(self) -> dict[str, Any]:
        """With its content as one text."""
        content = self.content
        text = "".join(part.text for part in content) if isinstance(content, list) else content
        return self.model_dump(exclude_none=True) | ({} if text is None else {"content": text})


class ChatBody(Body):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """the newer name of max_tokens"""
    chat_template_kwargs: dict[str, Any] = {}

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionBody(Body):
    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[Token], Field(min_length=1)]
    """text, or token ids"""
