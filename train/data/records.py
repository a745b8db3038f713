"""A line of a file or a row of a table becomes a checked record: its messages, and what the template is told."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from train.data.errors import PromptError
from train.data.messages import read_messages, without_answer
from train.data.options import PromptOptions

COLUMNS = ("prompt", "question", "instruction", "query", "text", "messages", "conversations")
"""what holds the prompt of a table's row: the first that is there"""
KEYS = ("prompt", "messages", "conversations", "question", "instruction", "query", "text")
"""what holds the prompt of a line: the first with a value"""
COMPANIONS = {"instruction": ("context", "input"), "question": ("context",), "query": ("context",)}
"""columns that are part of the prompt where they stand beside it: the set asks about them"""
LABELS = ("id", "family", "group", "reference", "tests", "entry_point")
TEMPLATE = ("tools", "documents")
"""keys that templates read beside the messages"""
ASKED = (*TEMPLATE, "system", "chat_template_kwargs")
READ = (*LABELS, "choices", *ASKED, "source", "license")
"""keys beside the prompt that are read, or are known to say nothing to a model"""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: `text` without and `ids` with the chat template; `group` is the upstream item that it comes from."""

    id: str
    family: str
    group: str
    text: str
    ids: tuple[int, ...]
    reference: str | None
    tests: str | None = None
    entry_point: str | None = None
    choices: tuple[str, ...] | None = None
    """these four are for graders (``train.quality.graders``)"""
    where: str = field(default="", compare=False)
    """file and line, for messages"""

    @classmethod
    def of(cls, written: dict[str, Any]) -> Prompt:
        """That of which ``written`` is ``plain``, as JSON has it."""
        lists = {name: tuple(written[name]) for name in ("ids", "choices") if written[name] is not None}
        return cls(**written | lists)

    def plain(self) -> dict[str, Any]:
        """Its fields."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Record:
    """A checked line; its prompt has no ``text`` and no ``ids`` yet."""

    where: str
    messages: list[dict[str, Any]]
    extra: dict[str, Any]
    """further arguments for the chat template"""
    prompt: Prompt
    unread: frozenset[str]
    """keys of the line that mean nothing here"""


def line_record(where: str, row: dict[str, Any], default_id: str, options: PromptOptions) -> Record:
    """The record of a line of JSON. PromptError for what fails the checks."""
    row = _unwrapped(row)
    _refuse_broken_text(row)
    present = [key for key in KEYS if row.get(key) is not None]
    if not options.columns and (not present or {"prompt", "messages"} <= set(present)):
        found = "both 'prompt' and" if present else "neither 'prompt' nor"
        raise PromptError(f"{found} 'messages'; give one of them, or say --columns")
    used = options.columns or _with_companions(present[0], row)
    return _record(where, row, default_id, used, _messages(row, used, keep_answer=used != ("conversations",)))


def table_record(where: str, row: dict[str, Any], default_id: str, options: PromptOptions) -> Record:
    """The record of a row of a table: its closing answer is left out, and other columns count where they fit."""
    main = next((column for column in COLUMNS if column in row), None)
    if main is None and not options.columns:
        raise PromptError(f"columns {list(row)}; one must be named {', '.join(COLUMNS)}, or say --columns")
    used = options.columns or _with_companions(main, row)
    fitting = {key: value for key, value in row.items() if key in used or _fits(key, value)}
    record = _record(where, fitting, default_id, used, _messages(fitting, used, keep_answer=False))
    strange = {key for key in row.keys() - fitting.keys() if key in ASKED and row[key]}
    return replace(record, unread=record.unread | strange)


def _fits(key: str, value: Any) -> bool:
    """Whether a column of a name that means something here holds what it means; the set knows nothing of us."""
    if key in (*LABELS, "system"):
        return isinstance(value, str) and bool(value.strip())
    try:
        if key == "choices":
            return _choices({key: value}) is not None
        return key not in (*TEMPLATE, "chat_template_kwargs") or bool(_extra({key: value}))
    except PromptError:
        return False


def _unwrapped(row: dict[str, Any]) -> dict[str, Any]:
    """The request itself, if the line is one of a batch for OpenAI's API: its body, named by its custom_id."""
    body = row.get("body")
    if not isinstance(body, dict) or any(row.get(key) is not None for key in KEYS):
        return row
    about = {key: value for key, value in row.items() if key not in ("body", "custom_id", "method", "url")}
    return {"id": row.get("custom_id")} | about | body


def _refuse_broken_text(row: dict[str, Any]) -> None:
    for key, value in row.items():
        try:
            json.dumps([key, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise PromptError(f"{key!a} holds half a surrogate pair; write valid Unicode") from None
        except RecursionError:
            raise PromptError(f"{key!a} is nested too deep; write it flatter") from None


def _with_companions(main: str, row: dict[str, Any]) -> tuple[str, ...]:
    there = (name for name in COMPANIONS.get(main, ()) if isinstance(row.get(name), str) and row[name].strip())
    return (main, *there)


def _messages(row: dict[str, Any], used: Sequence[str], keep_answer: bool) -> list[dict[str, Any]]:
    missing = [name for name in used if name not in row]
    if missing:
        raise PromptError(f"there is no {missing[0]!r} among {list(row)}; --columns names what is there")
    value = row[used[0]]
    chat = used[0] in ("messages", "conversations") or (isinstance(value, list) and any(map(_is_object, value)))
    if len(used) == 1 and chat:
        messages = read_messages(value if keep_answer else without_answer(value), used[0])
    else:
        messages = [{"role": "user", "content": "\n\n".join(filter(None, (_text(row, name) for name in used)))}]
    if not messages[0]["content"].strip() and len(messages) == 1:
        raise PromptError("the prompt is empty; write some text or remove the line")
    return _with_system(row, messages)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _text(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise PromptError(f"{name!r} is {reprlib.repr(value)}; it must be a string (a list is 'messages')")
    return value


def _with_system(row: dict[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = string(row, "system")
    if system is None:
        return messages
    if messages[0]["role"] in ("system", "developer"):
        raise PromptError("'system' stands beside messages that begin with one; leave one of them out")
    return [{"role": "system", "content": system}, *messages]


def _record(where: str, row: dict[str, Any], default_id: str, used: Sequence[str], messages: list) -> Record:
    name = row.get("id")
    name = str(name) if isinstance(name, int) and not isinstance(name, bool) else string(row, "id", default_id)
    family, group = string(row, "family", "default"), string(row, "group", name)
    asked = string(row, "reference", blank=True), string(row, "tests"), string(row, "entry_point"), _choices(row)
    prompt = Prompt(name, family, group, "", (), *asked, where)
    unread = {key for key, value in row.items() if value is not None and value != ""}
    return Record(where, messages, _extra(row), prompt, frozenset(unread - {*used, *READ}))


def _choices(row: dict[str, Any]) -> tuple[str, ...] | None:
    value = row.get("choices")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(one, str) and one.strip() for one in value):
        raise PromptError(f"'choices' is {reprlib.repr(value)}; it must be a list of two texts or more")
    return tuple(value)


def _extra(row: dict[str, Any]) -> dict[str, Any]:
    """The arguments for the template that stand beside the messages; some store them as JSON in a string."""
    found = {key: row[key] for key in TEMPLATE if row.get(key) is not None}
    for key, value in found.items():
        if isinstance(value, str):
            value = found[key] = _parsed(key, value)
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise PromptError(f"{key!r} is {reprlib.repr(value)}; it must be a list of objects")
    extra = row.get("chat_template_kwargs")
    if extra is not None and not isinstance(extra, dict):
        raise PromptError(f"'chat_template_kwargs' is {reprlib.repr(extra)}; it must be an object")
    if extra and "chat_template" in extra:  # a program, and data bring none
        raise PromptError("a line must not bring a 'chat_template'; choose one with --chat-template-kwargs")
    return {key: value for key, value in found.items() if value} | (extra or {})


def _parsed(key: str, value: str) -> Any:
    try:
        return json.loads(value) if value.strip() else []
    except (ValueError, RecursionError):
        raise PromptError(f"{key!r} is {reprlib.repr(value)}; it must be a list of objects") from None


def string(row: dict[str, Any], key: str, default: str | None = None, blank: bool = False) -> str | None:
    """The text under ``key``. PromptError for anything else, and for blank text unless ``blank``."""
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, str) or not (blank or value.strip()):
        raise PromptError(f"'{key}' is {reprlib.repr(value)}; it must be a non-empty string or left out")
    return value
