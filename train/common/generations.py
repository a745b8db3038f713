"""Texts that a decoder writes to prompts, in batches; the target's own answers, for a drafter, in a jsonl."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from decoding import LM, Autoregressive, Sampling, generate
from decoding.cost.batch_size import timeless
from decoding.models.settings import end_tokens
from decoding.state.token_buffer import left_pad
from train.common.atomic import append_rows, read_rows
from train.common.progress import track
from train.common.rows import GenerationRow
from train.data.prompts import Prompt


def write_generations(
    target: LM, prompts: Sequence[Prompt], path: Path, max_new_tokens: int, temperature: float, batch: int = 96
) -> None:
    """Append one answer per prompt to the jsonl ``path`` (``prompt_ids``, ``new_ids``, ``temperature``).

    Prompts of similar length are batched. Those that the file already answers at this temperature are skipped, so a
    run that was killed goes on, and ends with the answers that it would have had: a prompt draws by its place.
    """
    rows = (row for row in read_rows(path, GenerationRow) if row["temperature"] == temperature)
    done, todo = Counter(tuple(row["prompt_ids"]) for row in rows), []
    for place, prompt in enumerate(sorted(prompts, key=lambda p: len(p.ids))):
        if done[prompt.ids]:
            done[prompt.ids] -= 1
        else:
            todo.append((place, prompt))
    sampling = Sampling(temperature, top_p=0.95) if temperature > 0 else Sampling()
    for start in track(range(0, len(todo), batch), f"answers, temperature {temperature:g}"):
        (seed, _), *_ = some = todo[start : start + batch]
        some, about = [prompt for _, prompt in some], {"temperature": temperature}
        # Row r draws with seed + r.
        written = zip(some, answers(target, some, max_new_tokens, sampling, seed), strict=True)
        append_rows(path, [{"source": p.id} | about | {"prompt_ids": p.ids, "new_ids": new} for p, new in written])


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
