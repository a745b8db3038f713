"""``generate_many``: continuous batching. A row that ends is replaced by the next prompt (Orca, OSDI 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from decoding.generation import Decoder, check_ids, commits, start, stops_of
from decoding.state.sampling import Sampling
from decoding.state.token_buffer import Commit, Heard, TokenBuffer, left_pad


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one of the prompts."""

    prompt: int
    """its index"""
    tokens: list[int]
    """ids, a final EOS included"""
    writers: list[int]
    """index of the model that wrote each, as in ``Result.writers``"""


@torch.inference_mode()
def generate_many(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
    max_new_tokens: int = 128,
    eos_token_id: int | Sequence[int] | None = None,
    stop_strings: Sequence[str] | None = None,
    sampling: Sampling = Sampling(),
    seed: int | Sequence[int] | None = None,
    ignore_generation_config: Sequence[str] = (),
) -> Iterator[Answer]:
    """Answer ``prompts``, token ids of any lengths, ``batch_size`` of them at once, and yield answers as they end.

    Prompt i with seed s is answered as ``generate`` answers it on its own with seed s + i, or with seed s[i] of
    several, whatever it shares a batch with. Options and errors are those of ``generate``. ValueError also where there
    is no prompt, no row for one, or not a seed for each.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if not prompts or not all(prompts):
        raise ValueError("there must be prompts, each of at least one token")
    large = decoder.models[-1]
    device = large.device
    check_ids(large, torch.tensor([token for prompt in prompts for token in prompt]))
    ids, mask = left_pad(prompts[:batch_size], device)
    longest = max(map(len, prompts))
    seeds = _seeds(seed, len(prompts))
    what = max_new_tokens, eos_token_id, sampling, 0
    state = start(decoder, ids, mask, *what, ignore_generation_config, longest)
    state.buffer.seeds = torch.tensor(seeds[: len(ids)], device=device)
    stops = stops_of(decoder, stop_strings)
    state.ahead = stops is None
    buffer, of_row, waiting = state.buffer, dict(enumerate(range(len(ids)))), iter(range(len(ids), len(prompts)))
    for commit in commits(decoder, state, stops):
        for row in _ended(commit, buffer, of_row):
            yield Answer(of_row.pop(row), buffer.answer(row), buffer.writers_of(row))
            following = next(waiting, None)
            if following is not None:
                of_row[row] = following
                state.restart(row, torch.tensor(prompts[following], device=device), seeds[following])
                if stops is not None:
                    stops.restart(row)


def _ended(commit: Commit | Heard, buffer: TokenBuffer, writing: Iterable[int]) -> list[int]:
    """The rows, of those ``writing``, whose text a commit has ended."""
    if isinstance(commit, Heard):
        return [row for row in writing if commit.lengths[row] == commit.limits[row]]
    if len(commit.rows) == len(buffer.rows):
        return []
    going = set(buffer.rows.tolist())
    return [row for row in writing if row not in going]


def _seeds(seed: int | Sequence[int] | None, n: int) -> list[int]:
    """The seeds of ``n`` prompts."""
    if isinstance(seed, Sequence):
        if len(seed) != n:
            raise ValueError(f"there must be a seed for each of the {n} prompts, not {len(seed)}")
        return list(seed)
    first = int(torch.randint(2**31, ())) if seed is None else seed
    return list(range(first, first + n))
