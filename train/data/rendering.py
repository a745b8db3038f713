"""A record becomes the tokens that a model reads: system messages, the chat template, prompts that are too long."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from decoding.models.chat import TemplateError, render
from train.data.errors import PromptError, at, show
from train.data.options import PromptOptions
from train.data.records import Prompt, Record
from train.data.turns import Messages, forms, tool_texts, with_system

MERGE_SYSTEM = "--system merge puts the system message into the user's, --system drop leaves it out"
MERGE_TURNS = "--turns merge joins consecutive turns of one side, and writes those of tools as text where it must"


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
        self._ids: dict[int, int] = {}

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
        same = self._ids.setdefault  # one object for all places of a token: a million prompts have 100 million
        return replace(record.prompt, text=text, ids=tuple(map(same, ids, ids)))

    def _refuse_tools(self, record: Record) -> None:
        if record.extra.get("tools") or any(message.get("tool_calls") for message in record.messages):
            raise PromptError("tools need a chat template, and the tokenizer has none; leave them out")

    def _render(self, messages: Messages, extra: dict[str, Any]) -> str:
        told = self.extra | extra
        try:
            return self._first_form(messages, told, self.options.turns)
        except TemplateError as error:
            raise PromptError(f"{error}; {self._remedy(messages, told)}") from error

    def _first_form(self, messages: Messages, told: dict[str, Any], turns: str) -> str:
        """The first form of ``messages`` that the template takes and writes all tool turns of, else any that it takes.

        Raises the TemplateError of the messages as they are.
        """
        taken: list[str] = []
        refusals: list[TemplateError] = []
        for form in forms(messages, turns):
            try:
                written = render(self.tokenizer, form, self.now, told)
            except TemplateError as error:
                refusals.append(error)
                continue
            if all(_holds(written, text) for text in tool_texts(messages)):
                return written
            taken.append(written)
        if taken:
            return taken[0]
        raise refusals[0]

    def _remedy(self, messages: Messages, told: dict[str, Any]) -> str:
        """The options with which the template takes ``messages``, that it refuses."""
        for how in ([MERGE_SYSTEM], [MERGE_TURNS], [MERGE_SYSTEM, MERGE_TURNS]):
            rest = with_system(messages, "drop" if MERGE_SYSTEM in how else "keep")
            with suppress(TemplateError):
                self._first_form(rest, told, "merge" if MERGE_TURNS in how else self.options.turns)
                return "; ".join(how)
        return "change its messages"

    def _notes(self, messages: Messages, written: str, extra: dict[str, Any]) -> Iterator[str]:
        """Notes on everything given that is not in the prompt."""
        for name in (self.extra | extra).keys() - {"chat_template"}:
            if not re.search(rf"\b{re.escape(name)}\b", self.template):
                yield f"the chat template reads no {name!r}, which is given"
        for role in {m["role"] for m in messages if m["content"].strip() not in written} & {"system", "user"}:
            yield f"the chat template leaves out a {role} message or changes its text"
        if not all(_holds(written, text) for text in tool_texts(messages)):
            yield "the chat template leaves out a call, text beside it or a result; --turns merge writes all as text"
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


def _holds(written: str, text: str) -> bool:
    """Whether a prompt holds ``text``, perhaps as a string in JSON."""
    return text.strip() in written or json.dumps(text, ensure_ascii=False)[1:-1] in written
