"""Reads prompts from a file or a hub set, checks every line, and tokenises them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from train.common import progress
from train.data.errors import PromptError, show
from train.data.options import PromptOptions
from train.data.records import Prompt, Record
from train.data.rendering import Renderer
from train.data.sources import read_records

__all__ = ["DEFAULT_PROMPTS", "Prompt", "PromptError", "PromptOptions", "load_prompts", "prompts_for", "template_hash"]
DEFAULT_PROMPTS = Path(__file__).with_name("default_prompts.jsonl")


def load_prompts(
    source: str | Path | None,
    tokenizer: Any,
    limit: int | None = None,
    max_tokens: int | None = None,
    options: PromptOptions = PromptOptions(),
    note: Callable[[str], None] = progress.note,
) -> list[Prompt]:
    """Read, check and tokenise prompts; every line is checked before the first is tokenised.

    source: None, the prompts that come with the project;
        a `.jsonl` file, one object per line with `prompt` (a string) or `messages` (a list of {role, content}), and
        optionally `id`, `family`, `group`, `reference`, and what chat templates read: `system`, `tools`, `documents`,
        `chat_template_kwargs`; ShareGPT's `conversations`, lines of OpenAI's batches and columns as of a hub set are
        read too; blank lines are skipped;
        a `.json` file, a list of such objects or of strings;
        a `.csv`, `.tsv` or `.parquet` file, with the columns of a hub set;
        a `.txt` file, one prompt per line, spaces around it removed, blank lines skipped;
        or a set of the `datasets` hub as `name`, `name:split` or `name:config:split` (the split is "train" when absent;
        slices such as "train[:500]" work): the first known column is read, without closing assistant turns.
    tokenizer: of transformers, or None where only the texts matter: each prompt then has one meaningless token.
    limit: at most this many, taken in turn from each family in file order, so that every family is represented.
    max_tokens: the longest prompt, in tokens with the chat template; ``options`` say what happens to longer ones.
    note: called with each line that a user should read, such as how many prompts are skipped.
    Raises PromptError, one sentence, for whatever cannot be read, fails the checks or cannot be tokenised.
    """
    if limit is not None and limit < 1:
        raise PromptError(f"limit is {limit}; it must be at least 1, or None for all prompts")
    renderer = Renderer(tokenizer, options)
    records = read_records(DEFAULT_PROMPTS if source is None else source, options)
    _check_unique(records)
    unread = Counter(key for record in records for key in record.unread)
    chosen, skipped = _fitting(_released(records) if limit is None else _by_turns(records), renderer, limit, max_tokens)
    shown = show("the embedded prompts" if source is None else str(source))
    if unread and not options.columns:
        note(f"{shown}: {', '.join(map(show, unread))} not read; --columns says what makes a prompt")
    for text, names in renderer.notes.items():
        note(f"{shown}: {len(names):,} of {len(chosen) + skipped:,} prompts: {text}")
    return chosen


def prompts_for(
    settings: Any, models: Sequence[Any], limit: int | None, note: Callable[[str], None] = progress.note
) -> list[Prompt]:
    """``load_prompts`` of a command's ``settings``, for the tokenizer of the last of ``models``.

    The longest prompt leaves room for the answer in the context of every model.
    """
    room = room_for_prompts(models, settings.max_new_tokens)
    return load_prompts(settings.prompts, models[-1].tokenizer, limit, room, settings.reading, note)


def room_for_prompts(models: Sequence[Any], max_new_tokens: int) -> int:
    """Tokens of the longest prompt after which every model can read the answer. PromptError where there is no room."""
    context = min(lm.context for lm in models)
    if max_new_tokens >= context:
        raise PromptError(
            f"--max-new-tokens {max_new_tokens:,} leaves no room for a prompt: the models read {context:,} tokens"
        )
    return context - max_new_tokens


def template_hash(tokenizer: Any) -> str | None:
    """SHA-256 of the chat template; None when the tokenizer has none and prompts are tokenised as plain text."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    if not isinstance(template, str):
        template = json.dumps(template, sort_keys=True)
    return hashlib.sha256(template.encode()).hexdigest()


def _fitting(
    records: Iterable[Record], renderer: Renderer, limit: int | None, max_tokens: int | None
) -> tuple[list[Prompt], int]:
    """The first ``limit`` prompts that are short enough, and how many were skipped. PromptError for none at all."""
    chosen: list[Prompt] = []
    skipped: list[tuple[int, str, str]] = []
    for record in records:
        if len(chosen) == limit:
            break
        prompt = renderer.prompt(record, max_tokens)
        if max_tokens is None or len(prompt.ids) <= max_tokens:
            chosen.append(prompt)
        else:
            skipped.append((len(prompt.ids), prompt.id, record.where))
    if not chosen:
        length, name, where = min(skipped)
        found = f"{where}: prompt {show(name)}, the shortest, has {length} tokens and the limit is {max_tokens}"
        raise PromptError(f"{found}; shorten it, raise the limit or say --too-long truncate")
    if skipped:
        length, name, _ = max(skipped)
        text = f"more than {max_tokens:,} tokens, skipped (the longest, {show(name)}, has {length:,})"
        renderer.notes[text] = {name for _, name, _ in skipped}
    return chosen, len(skipped)


def _check_unique(records: Iterable[Record]) -> None:
    first: dict[str, str] = {}
    for record in records:
        name, where = record.prompt.id, record.where
        if name in first:
            raise PromptError(f"{where}: id {show(name)} is already that of {first[name]}; ids must differ")
        first[name] = where


def _released(records: list[Record]) -> Iterator[Record]:
    """The records in their order; each is forgotten once it is taken, as its prompt takes as much memory again."""
    records.reverse()
    while records:
        yield records.pop()


def _by_turns(records: Iterable[Record]) -> Iterator[Record]:
    """The first of each family, then the second of each, and so on; families in their order of appearance."""
    families = defaultdict(list)
    for record in records:
        families[record.prompt.family].append(record)
    for turn in zip_longest(*families.values()):
        yield from filter(None, turn)
