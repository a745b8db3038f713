"""Texts that a decoder writes to prompts, in batches, and the seeds of those that are drawn."""

from collections.abc import Sequence

from decoding import LM, Autoregressive, Sampling, generate
from decoding.cost.batch_size import timeless
from decoding.models.settings import end_tokens
from decoding.state.token_buffer import left_pad
from train.data.prompts import Prompt

APART = 2**20
"""between the seeds of a prompt's texts: more than prompts of a run, so that no two texts share their draws"""


def seed_of(text: int, place: int = 0) -> int:
    """The seed of a prompt's text of this number, 0 the first; ``place``: of the prompt among others."""
    return text * APART + place


def seeds_of(texts: int, place: int = 0) -> list[int]:
    """The seeds of a prompt's texts, the first so many."""
    return [seed_of(number, place) for number in range(texts)]


def text_of(seed: int) -> int:
    """The number of the text that ``seed_of`` gave ``seed``."""
    return seed // APART


def capped(lm: LM, answer: Sequence[int], max_new_tokens: int) -> bool:
    """Whether the length cap ended ``answer``, and no token that ends the texts of ``lm``."""
    return len(answer) >= max_new_tokens and answer[-1] not in end_tokens(lm)


def batches(prompts: Sequence[Prompt], size: int = 16) -> list[list[Prompt]]:
    """``prompts`` in batches of similar length; the same batches in whatever order the prompts are given."""
    ordered = sorted(prompts, key=lambda p: (len(p.ids), p.id))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def places(prompts: Sequence[Prompt]) -> dict[str, int]:
    """The place of each prompt in its batches, by id: the seed of its texts, in a batch and on its own."""
    return {prompt.id: place for place, prompt in enumerate(p for some in batches(prompts) for p in some)}


def answers(
    lm: LM, prompts: Sequence[Prompt], max_new_tokens: int, sampling: Sampling = Sampling(), seed: int = 0
) -> list[list[int]]:
    """The answers of ``lm`` alone to all prompts, in one batch: token ids, EOS included."""
    return [answer for answer, _ in write(Autoregressive(lm), prompts, max_new_tokens, sampling, seed)]


def write(
    decoder, prompts: Sequence[Prompt], max_new_tokens: int, sampling: Sampling = Sampling(), seed: int = 0
) -> list[tuple[list[int], list[int]]]:
    """(token ids, index of the writer of each) of the answers to all prompts, in one batch; EOS included."""
    return write_with_counts(decoder, prompts, max_new_tokens, sampling, seed)[0]


def write_with_counts(
    decoder, prompts: Sequence[Prompt], max_new_tokens: int, sampling: Sampling = Sampling(), seed: int = 0
) -> tuple[list[tuple[list[int], list[int]]], dict]:
    """The texts of ``write``, and the ``counts`` of their ``decoding.generation.Result``."""
    ids, mask = left_pad([p.ids for p in prompts], decoder.models[-1].device)
    with timeless():
        result = generate(decoder, ids, mask, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    answers = result.sequences[:, ids.shape[1] :].tolist()
    rows = zip(answers, result.writers.tolist(), result.lengths.tolist(), strict=True)
    return [(row[:n], writers[:n]) for row, writers, n in rows], result.counts
