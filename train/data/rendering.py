"""A record becomes the tokens that a model reads: system messages, the chat template, prompts that are too long."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

from decoding.models.chat import TemplateError, render
from train.data.errors import PromptError, at, show
from train.data.options import PromptOptions
from train.data.records import Prompt, Record

SYSTEM = ("system", "developer")
Messages = list[dict[str, Any]]


class Renderer:
    """Tokenises records as one tokenizer and the options say.

    ``notes`` are what a user should know, with the ids of the prompts. Without a tokenizer, a prompt is its text and
    one meaningless token.
    """

    def __init__(self, tokenizer: Any, options: PromptOptions):
        self.tokenizer, self.options = tokenizer, options
        self.extra, self.now = options.extra, options.now
        template = getattr(tokenizer, "chat_template", None)
        named = isinstance(template, dict)
        self.template: str | None = ("\n".join(template.values()) if named else template) or None
        self.notes: dict[str, set[str]] = defaultdict(set)

    def prompt(self, record: Record, max_tokens: int | None = None) -> Prompt:
        """The prompt of a record. PromptError when it is too long and the options say so, or cannot be tokenised.

        It may still have more than ``max_tokens``, where the options say to skip it.
        """
        with at(record.where):
            messages = with_system(self._known_roles(record.messages), self.options.system)
            prompt = self._tokenised(record, messages)
            if max_tokens is None or len(prompt.ids) <= max_tokens or self.options.too_long == "skip":
                return prompt
            if self.options.too_long == "truncate":
                return self._truncated(record, messages, prompt, max_tokens)
            found = f"prompt {show(prompt.id)} has {len(prompt.ids)} tokens and the limit is {max_tokens}"
            raise PromptError(f"{found}; shorten it, raise the limit, or say --too-long skip or truncate")

    def _known_roles(self, messages: Messages) -> Messages:
        """Developer messages are system messages to a template that does not know them: many would drop them."""
        if self.template is None or "developer" in self.template:
            return messages
        return [m | {"role": "system"} if m["role"] == "developer" else m for m in messages]

    def _tokenised(self, record: Record, messages: Messages) -> Prompt:
        text = "\n\n".join(message["content"] for message in messages if message["content"])
        if self.tokenizer is None:
            ids = [0]
        elif self.template is None:
            self._refuse_tools(record)
            ids = self.tokenizer(text)["input_ids"]
        else:
            written = self._render(messages, record.extra)
            for note in self._notes(messages, written, record.extra):
                self.notes[note].add(record.prompt.id)
            ids = self.tokenizer(written, add_special_tokens=False)["input_ids"]
        if not ids:
            raise PromptError("the tokenizer gives no tokens for it; write some text that it knows")
        return replace(record.prompt, text=text, ids=tuple(ids))

    def _refuse_tools(self, record: Record) -> None:
        if record.extra.get("tools") or any(message.get("tool_calls") for message in record.messages):
            raise PromptError("tools need a chat template, and the tokenizer has none; leave them out")

    def _render(self, messages: Messages, extra: dict[str, Any]) -> str:
        told = self.extra | extra
        try:
            return render(self.tokenizer, messages, self.now, told)
        except TemplateError as error:
            remedy = "change its messages"
            if self.options.system == "keep" and _renders(self.tokenizer, messages, self.now, told):
                remedy = "--system merge puts the system message into the user's, --system drop leaves it out"
            raise PromptError(f"{error}; {remedy}") from error

    def _notes(self, messages: Messages, written: str, extra: dict[str, Any]) -> Iterator[str]:
        """Notes on everything given that is not in the prompt."""
        for name in (self.extra | extra).keys() - {"chat_template"}:
            if not re.search(rf"\b{re.escape(name)}\b", self.template):
                yield f"the chat template reads no {name!r}, which is given"
        for role in {m["role"] for m in messages if m["content"].strip() not in written} & {"system", "user"}:
            yield f"the chat template leaves out a {role} message or changes its text"
        if messages[-1]["role"] == "assistant":
            yield "the last message is from the assistant, and is continued"

    def _truncated(self, record: Record, messages: Messages, prompt: Prompt, most: int) -> Prompt:
        """With the middle of its longest messages cut out until it fits: tasks stand at the beginning or the end."""
        self.notes[f"more than {most:,} tokens: the middle is cut out"].add(prompt.id)
        messages = list(messages)
        while len(prompt.ids) > most:
            longest = max(range(len(messages)), key=lambda i: len(messages[i]["content"]))
            content = messages[longest]["content"]
            kept = min(len(content) - 1, int(len(content) * most / len(prompt.ids)))
            if kept < 1:
                raise PromptError(f"prompt {show(prompt.id)} cannot be shortened to {most} tokens; remove it")
            content = content[: kept - kept // 2] + content[len(content) - kept // 2 :]
            messages[longest] = messages[longest] | {"content": content}
            prompt = self._tokenised(record, messages)
        return prompt


def with_system(messages: Messages, how: str) -> Messages:
    """``messages`` with their system messages kept, merged into the first of the user, or dropped.

    PromptError when there is no message to merge them into, or none is left.
    """
    system = [message["content"] for message in messages if message["role"] in SYSTEM]
    if how == "keep" or not system:
        return messages
    rest = [message for message in messages if message["role"] not in SYSTEM]
    if how == "drop":
        return rest
    first = next((i for i, message in enumerate(rest) if message["role"] == "user"), None)
    if first is None:
        raise PromptError("no message of the user to merge the system message into; say --system drop")
    merged = rest[first] | {"content": "\n\n".join([*system, rest[first]["content"]])}
    return [*rest[:first], merged, *rest[first + 1 :]]


def _renders(tokenizer: Any, messages: Messages, now: datetime | None, extra: dict[str, Any]) -> bool:
    """Whether messages with a system message would be written without one."""
    rest = with_system(messages, "drop")
    try:
        return rest != messages and bool(render(tokenizer, rest, now, extra))
    except TemplateError:
        return False
