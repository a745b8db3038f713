"""Reads prompts from a file or a hub set, checks every line, and tokenises them."""

import hashlib
import json
import os
import re
import reprlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

DEFAULT_PROMPTS = Path(__file__).with_name("default_prompts.jsonl")
ROLES = ("system", "user", "assistant", "tool")
HUB_COLUMNS = ("prompt", "question", "instruction", "query", "text", "messages", "conversations")
HUB_NAME = re.compile(
    r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:\[\]]+)(?=:))?(?::(?P<split>\w+(?:\[[^\]]*\])?))?"
)


class PromptError(ValueError):
    """A prompt source that cannot be used; the message, one sentence, says where, what is wrong and what is right."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: `text` without and `ids` with the chat template; `group` is the upstream item that it comes from."""

    id: str
    family: str
    group: str
    text: str
    ids: tuple[int, ...]
    reference: str | None


@dataclass(frozen=True, slots=True)
class _Record:
    """A checked line; its prompt has no `ids` yet."""

    where: str
    messages: list[dict[str, str]]
    prompt: Prompt


def load_prompts(
    source: str | Path | None, tokenizer: Any, limit: int | None = None, max_tokens: int | None = None
) -> list[Prompt]:
    """Read, check and tokenise prompts; every line is checked before the first is tokenised.

    source: None, the prompts that come with the project;
        a `.jsonl` file, one object per line with `prompt` (a string) or `messages` (a list of {role, content}), and
        optionally `id`, `family`, `group`, `reference`; blank lines are skipped;
        a `.txt` file, one prompt per line, spaces around it removed, blank lines skipped;
        or a set of the `datasets` hub as `name`, `name:split` or `name:config:split` (the split is "train" when absent;
        slices such as "train[:500]" work): the first column of HUB_COLUMNS is read without closing assistant turns.
    limit: at most this many, taken in turn from each family in file order, so that every family is represented.
    max_tokens: the longest prompt allowed, in tokens with the chat template; checked on the prompts within `limit`.
    Raises PromptError, one sentence, for whatever cannot be read, fails the checks or cannot be tokenised.
    """
    if limit is not None and limit < 1:
        raise PromptError(f"limit is {limit}; it must be at least 1, or None for all prompts")
    records = _records(source)
    _check_unique(records)
    chosen = records if limit is None else list(islice(_by_turns(records), limit))
    return [_tokenise(record, tokenizer, max_tokens) for record in chosen]


def template_hash(tokenizer: Any) -> str | None:
    """SHA-256 of the chat template; None when the tokenizer has none and prompts are tokenised as plain text."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    if not isinstance(template, str):
        template = json.dumps(template, sort_keys=True)
    return hashlib.sha256(template.encode()).hexdigest()


def _show(text: str) -> str:
    """``text`` as an error message quotes it: one short line."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 200 else text[:200] + "..."


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Prepend ``where`` to the message of a PromptError raised inside."""
    try:
        yield
    except PromptError as error:
        raise PromptError(f"{where}: {error}") from error.__cause__


def _records(source: str | Path | None) -> list[_Record]:
    path = DEFAULT_PROMPTS if source is None else Path(source)
    shown = _show(str(path))
    if os.path.isdir(path):  # unlike Path.is_dir, it never raises, even if the source is a whole prompt by mistake
        raise PromptError(f"{shown} is a directory; give a .jsonl or .txt file, or a hub name")
    if path.suffix in (".jsonl", ".txt"):
        records = _file_records(path, shown)
    elif os.path.isfile(path):
        raise PromptError(f"{shown} has an unknown suffix; give a .jsonl or .txt file")
    else:
        match = HUB_NAME.fullmatch(source) if isinstance(source, str) else None
        if match is None or path.suffix[1:].isalpha():  # prompts.json is a file, owner/name-1.5 is not
            raise PromptError(f"{shown} does not exist; give a .jsonl or .txt file, or a hub name (name:split)")
        records = _hub_records(match["name"], match["config"], match["split"] or "train")
    if not records:
        raise PromptError(f"{shown} holds no prompts; at least one line or row must hold one")
    return records


def _file_records(path: Path, shown: str) -> list[_Record]:
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise PromptError(f"{shown} does not exist; check the path") from None
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise PromptError(f"{shown}, line {number}: {found}; save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        raise PromptError(f"{shown} cannot be read ({_show(str(error))}); check the file") from None
    if not content:
        raise PromptError(f"{shown} is empty; it must hold one prompt per line")
    records = []
    for number, line in enumerate(content.split("\n"), start=1):
        where = f"{shown}, line {number}"
        with _at(where):
            if line := line.strip():
                row = _object(line) if path.suffix == ".jsonl" else {"prompt": line}
                records.append(_record(where, row, f"line-{number}"))
    return records


def _hub_records(name: str, config: str | None, split: str) -> list[_Record]:
    try:
        from datasets import load_dataset
    except ImportError:
        message = f"{name} is not a file, and fetching it from the hub needs 'datasets'; pip install datasets"
        raise PromptError(message) from None
    try:
        rows = load_dataset(name, config, split=split)
    except Exception as error:
        raise PromptError(
            f"{name} is not a file, and the hub set {name} (config {config}, split {split}) cannot be loaded: "
            f"{_show(' '.join(str(error).split()))}; give a .jsonl or .txt file, or name:config:split"
        ) from error
    column = next((column for column in HUB_COLUMNS if column in rows.column_names), None)
    if column is None:
        raise PromptError(f"{name}: columns {rows.column_names}; one must be named {', '.join(HUB_COLUMNS)}")
    records = []
    for number, row in enumerate(rows):
        where = f"{name}:{split}, row {number}"
        with _at(where):
            records.append(_record(where, _hub_row(row, column), f"row-{number}"))
    return records


def _hub_row(row: dict[str, Any], column: str) -> dict[str, Any]:
    """The row as a line of a jsonl; columns named family, group and reference are used only where they hold strings."""
    known = {key: row.get(key) for key in ("family", "group", "reference") if isinstance(row.get(key), str)}
    if not isinstance(row[column], list):
        return {"prompt": row[column], **known}
    turns = list(row[column])
    while turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant":
        turns.pop()
    return {"messages": turns, **known}


def _object(line: str) -> dict[str, Any]:
    right = 'such as {"prompt": "..."}'
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "a number or a nesting that is too long")
        raise PromptError(f"invalid JSON ({reason}); write one object {right}") from None
    if not isinstance(value, dict):
        raise PromptError(f"not a JSON object but {reprlib.repr(value)}; write one {right}")
    return value


def _record(where: str, row: dict[str, Any], default_id: str) -> _Record:
    name = row.get("id")
    name = str(name) if isinstance(name, int) and not isinstance(name, bool) else _string(row, "id", default_id)
    family, group = _string(row, "family", "default"), _string(row, "group", name)
    messages = _messages(row)
    text = "\n\n".join(message["content"] for message in messages)
    return _Record(where, messages, Prompt(name, family, group, text, (), _string(row, "reference", None, blank=True)))


def _string(row: dict[str, Any], key: str, default: str | None = None, blank: bool = False) -> str | None:
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, str) or not (blank or value.strip()):
        raise PromptError(f"'{key}' is {reprlib.repr(value)}; it must be a non-empty string or left out")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PromptError(f"'{key}' holds half a surrogate pair; write valid Unicode") from None
    return value


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    prompt, messages = row.get("prompt"), row.get("messages")
    if (prompt is None) == (messages is None):
        found = "neither 'prompt' nor" if prompt is None else "both 'prompt' and"
        raise PromptError(f"{found} 'messages'; give one of them")
    if messages is None:
        if not isinstance(prompt, str):
            raise PromptError(f"'prompt' is {reprlib.repr(prompt)}; it must be a string (a list is 'messages')")
        if not prompt.strip():
            raise PromptError("the prompt is empty; write some text or remove the line")
        return [{"role": "user", "content": _string(row, "prompt")}]
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"'messages' is {reprlib.repr(messages)}; it must be a list of {{role, content}}")
    checked = [_message(number, message) for number, message in enumerate(messages, start=1)]
    if checked[-1]["role"] not in ("user", "tool"):
        raise PromptError(f"the last message is from '{checked[-1]['role']}'; it must be from the user")
    return checked


def _message(number: int, message: Any) -> dict[str, str]:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if role not in ROLES or not isinstance(content, str) or not content.strip():
        right = f"it must hold a 'role' ({', '.join(ROLES)}) and a non-empty string 'content'"
        raise PromptError(f"message {number} is {reprlib.repr(message)}; {right}")
    return {"role": role, "content": _string(message, "content")}


def _check_unique(records: Iterable[_Record]) -> None:
    first: dict[str, str] = {}
    for record in records:
        name, where = record.prompt.id, record.where
        if name in first:
            raise PromptError(f"{where}: id {_show(name)} is already that of {first[name]}; ids must differ")
        first[name] = where


def _by_turns(records: Iterable[_Record]) -> Iterator[_Record]:
    """The first of each family, then the second of each, and so on; families in their order of appearance."""
    families = defaultdict(list)
    for record in records:
        families[record.prompt.family].append(record)
    for turn in zip_longest(*families.values()):
        yield from filter(None, turn)


def _tokenise(record: _Record, tokenizer: Any, max_tokens: int | None) -> Prompt:
    prompt = record.prompt
    with _at(record.where):
        if template_hash(tokenizer) is None:
            ids = tokenizer(prompt.text)["input_ids"]
        else:
            try:
                text = tokenizer.apply_chat_template(record.messages, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template is a program and may raise anything
                raise PromptError(f"the chat template refuses it ({error}); change its messages") from error
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise PromptError("the tokenizer gives no tokens for it; write some text that it knows")
        if max_tokens is not None and len(ids) > max_tokens:
            found = f"prompt {_show(prompt.id)} has {len(ids)} tokens and the limit is {max_tokens}"
            raise PromptError(f"{found}; shorten it or raise the limit")
    return replace(prompt, ids=tuple(ids))
