"""Options for reading prompts, the same in every command. They are part of a run's identity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes

from decoding.models.chat import parse_extra


@dataclass(frozen=True)
class PromptOptions:
    """Options for reading prompts."""

    system: Literal["keep", "merge", "drop"] = "keep"
    """system messages: keep them, merge them into the first message of the user (for templates without a system role,
    such as Gemma's), or drop them"""
    turns: Literal["keep", "merge"] = "keep"
    """turns that a chat template refuses or leaves out: keep the refusal, or join consecutive messages of one side (for
    templates that want user and assistant to alternate, such as Mistral's) and, where that is not enough, write tool
    calls as JSON of the assistant and their results as part of the next message of the user (such as Gemma's)"""
    too_long: Literal["skip", "error", "truncate"] = "skip"
    """prompts that leave no room for the answer: skip them and say how many, end with an error, or cut the middle out
    of their longest message"""
    columns: tuple[str, ...] = ()
    """columns of a table, or keys of a line, that make the prompt, joined by blank lines (default: the first of prompt,
    question, instruction ... that is there, and `context` or `input` where it belongs to that)"""
    chat_template_kwargs: str = "{}"
    """what else the chat template is told, as JSON: '{"enable_thinking": false}'. A line of a file may say it too"""
    date: str | None = None
    """date, or date and time, that chat templates with one print, as 2026-01-31 (default: when the run began)"""

    @property
    def extra(self) -> dict[str, Any]:
        """``chat_template_kwargs`` as an object. ValueError, one sentence, for what is none."""
        return parse_extra(self.chat_template_kwargs)

    @property
    def now(self) -> datetime | None:
        """``date`` as a time. ValueError, one sentence, for what is none."""
        if self.date is None:
            return None
        try:
            return datetime.fromisoformat(self.date)
        except ValueError as error:
            raise ValueError(f"--date is {self.date!r}; write it as 2026-01-31 or 2026-01-31T12:00") from error

    def dated(self, recorded: str | None) -> PromptOptions:
        """With a date: the given one, else the one ``recorded`` when the run began, else now.

        A run that goes on another day so reads the same prompts. ValueError for options that make no sense.
        """
        _ = self.extra, self.now
        if self.date is not None:
            return self
        return replace(self, date=datetime.now().isoformat("T", "minutes") if recorded is None else recorded)


Reading = Annotated[PromptOptions, OmitArgPrefixes]
"""a field of a command's settings: its options have no prefix"""
