"""Live measurement: several decoders on the same prompts, in turn, timed and scored."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from decoding import Autoregressive, Sampling, generate
from decoding.cost.costs import Table, text_seconds
from train.baselines.subprocess_engine import SubprocessEngine
from train.common.atomic import append_rows, read_rows
from train.common.job import Job, Tuned
from train.common.progress import track
from train.common.rows import LiveRow
from train.data.prompts import Prompt
from train.quality.metric import QualityMetric

LARGE = "large"  # Key of the reference method in every measurement


def measure(
    decoders: dict[str, object],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    metric: QualityMetric,
    path: Path,
    title: str,
    setting: str = "",
    joules: Callable[[], float] | None = None,
    seeds: Sequence[int] | None = None,
    sampling: Sampling = Sampling(),
) -> dict[str, dict[str, np.ndarray]]:
    """Per decoder and per prompt [n]: seconds, tokens, loss, regret, large_share, and joules where they are counted.

    Decoders take turns on each prompt, in an order that rotates. Every finished prompt is appended to ``path``; a
    run that was killed goes on after the last one. One of ``decoders`` must be called "large": the reference.
    ``setting`` describes what their names leave open: prompts measured with another one are measured again. ``joules``
    reads a counter of energy (whether there is one is a setting too). ``seeds``: of each prompt (default: its place);
    ``sampling``: how all of them draw.
    """
    setting += " with joules" * (joules is not None)
    done = finished(path, decoders, setting)
    names = list(decoders)
    todo = [(i, p) for i, p in enumerate(prompts) if p.id not in done]
    for name in names if todo else ():
        _answer(decoders[name], prompts[0], 8, sampling)  # warm-up
    for i, prompt in track(todo, title):
        order = names[i % len(names) :] + names[: i % len(names)]
        answers = {}
        for name in order:
            before = joules() if joules else 0.0
            seed = i if seeds is None else seeds[i]
            answers[name] = _answer(decoders[name], prompt, max_new_tokens, sampling, seed)
            answers[name] |= {"joules": joules() - before} if joules else {}
        for answer in answers.values():
            answer |= metric(prompt, answer["answer"], answers[LARGE]["answer"])._asdict()
        row = {"id": prompt.id, "family": prompt.family, "setting": setting, "methods": answers}
        append_rows(path, [row])
        done[prompt.id] = row
    rows = [done[p.id]["methods"] for p in prompts]
    fields = ("seconds", "tokens", "loss", "regret", "large_share") + ("joules",) * (joules is not None)
    return {name: {f: np.array([row[name][f] for row in rows], float) for f in fields} for name in names}


def on_tuning(job: Job, options: Sequence[Tuned]) -> dict[str, dict[str, np.ndarray]]:
    """``measure`` the large model and ``options``, by their names, on the tuning prompts."""
    decoders = {LARGE: Autoregressive(job.large)} | {option.name: option.decoder(job.models) for option in options}
    how = job.new, job.metric, job.folder / "tune.jsonl", "live, tuning"
    return measure(decoders, job.splits["tune"], *how, sampling=job.sampling)


def finished(path: Path, names: Collection[str], setting: str) -> dict[str, dict]:
    """The rows of ``path`` by prompt, of those that measured just the decoders ``names`` with ``setting``."""
    same = lambda row: row["methods"].keys() == set(names) and row["setting"] == setting  # noqa: E731
    return {row["id"]: row for row in read_rows(path, LiveRow) if same(row)}


def _answer(decoder, prompt: Prompt, max_new_tokens: int, sampling: Sampling, seed: int = 0) -> dict:
    if isinstance(decoder, SubprocessEngine):
        answer, seconds = decoder.answer(prompt.ids, max_new_tokens)
        return {"tokens": len(answer), "seconds": seconds, "answer": answer, "writers": [], "large_share": 1.0}
    ids = torch.tensor([prompt.ids], device=decoder.models[-1].device)
    result = generate(decoder, ids, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    return {
        "tokens": int(result.lengths[0]),
        "seconds": result.seconds["total"],
        "answer": result.sequences[0, ids.shape[1] :].tolist(),
        "writers": result.writers[0].tolist(),
        "large_share": float((result.writers[0] == len(decoder.models) - 1).float().mean()),
        "counts": result.counts,
    }


def speedup(measured: dict, name: str, rows=slice(None)) -> float:
    """(large model's seconds per new token) / (the method's), sums over the same prompts."""
    large, own = (one["seconds"][rows].sum() / one["tokens"][rows].sum() for one in (measured[LARGE], measured[name]))
    return float(large / own)


def over_table(measured: dict, prompts: Sequence[Prompt], table: Table) -> float:
    """The large model's seconds on ``prompts`` over what its timing ``table`` says for as many tokens."""
    large = measured[LARGE]
    expected = text_seconds(table, [len(p.ids) for p in prompts], large["tokens"])
    return float(large["seconds"].sum() / expected.sum())


def bootstrap(statistic, n: int, seed: int = 0, draws: int = 2000, confidence: float = 0.95) -> list[float]:
    """Percentile interval of ``statistic(rows)`` over prompts drawn with replacement."""
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(draws)]
    tail = (1 - confidence) / 2
    return [float(v) for v in np.quantile(values, [tail, 1 - tail])]
