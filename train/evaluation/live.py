"""Live measurement: several decoders on the same prompts, in turn, timed and scored."""

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from decoding import Autoregressive, Sampling, generate, generate_many
from decoding.cost.costs import ModelCosts
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
    batch: int = 1,
) -> dict[str, dict[str, np.ndarray]]:
    """Per decoder and per prompt [n]: seconds, tokens, loss, regret, large_share, and joules where they are counted.

    Decoders take turns on each prompt, in an order that rotates. Where ``batch`` texts are written at once they take
    turns on groups of prompts (column ``group``), whose seconds, and joules, go to each prompt by its tokens. Every
    finished group is appended to ``path``; a run that was killed goes on after the last one. One of ``decoders`` must
    be called "large": the reference. ``setting`` describes what their names leave open: prompts measured with another
    one are measured again. ``joules`` reads a counter of energy (whether there is one is a setting too). ``seeds``: of
    each prompt (default: its place); ``sampling``: how all of them draw.
    """
    setting = f"{setting} with joules" if joules else setting
    done, setting = finished(path, decoders, setting, batch), _written(setting, batch)
    names, seeds = list(decoders), range(len(prompts)) if seeds is None else seeds
    seed_of = {prompt.id: seed for prompt, seed in zip(prompts, seeds, strict=True)}
    groups = in_groups(prompts, batch)
    todo = [(i, group) for i, group in enumerate(groups) if any(p.id not in done for p in group)]
    for name in names if todo else ():
        some = prompts[:batch]
        _answers(decoders[name], some, 8, sampling, range(len(some)), batch)  # warm-up
    for i, group in track(todo, title):
        order, answers = names[i % len(names) :] + names[: i % len(names)], {}
        for name in order:
            before = joules() if joules else 0.0
            own_seeds = [seed_of[prompt.id] for prompt in group]
            answers[name] = _answers(decoders[name], group, max_new_tokens, sampling, own_seeds, batch)
            if joules:
                _share(joules() - before, "joules", answers[name])
        rows = []
        for place, prompt in enumerate(group):
            methods = {name: answers[name][place] for name in order}
            for answer in methods.values():
                answer |= metric(prompt, answer["answer"], methods[LARGE]["answer"])._asdict()
            rows.append({"id": prompt.id, "family": prompt.family, "setting": setting, "methods": methods})
        append_rows(path, rows)
        done |= {row["id"]: row for row in rows}
    rows = [done[p.id]["methods"] for p in prompts]
    fields = ("seconds", "tokens", "loss", "regret", "large_share") + ("joules",) * (joules is not None)
    group = np.repeat(np.arange(len(groups)), [len(some) for some in groups])
    return {
        name: {f: np.array([row[name][f] for row in rows], float) for f in fields} | {"group": group} for name in names
    }


def on_tuning(job: Job, options: Sequence[Tuned]) -> dict[str, dict[str, np.ndarray]]:
    """``measure`` the large model and ``options``, by their names, on the tuning prompts."""
    decoders = {LARGE: Autoregressive(job.large)} | {option.name: option.decoder(job.models) for option in options}
    how = job.new, job.metric, job.folder / "tune.jsonl", "live, tuning"
    return measure(decoders, job.splits["tune"], *how, sampling=job.sampling, batch=job.settings.batch_size)


def in_groups(prompts: Sequence[Prompt], batch: int) -> list[Sequence[Prompt]]:
    """``prompts`` one by one, or in groups of two batches, so that rows that end are replaced; the last may have fewer.

    One of less than a batch joins the group before it.
    """
    size = 1 if batch == 1 else 2 * batch
    groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    if len(groups) > 1 and len(groups[-1]) < batch:
        groups[-2:] = [[*groups[-2], *groups[-1]]]
    return groups


def finished(path: Path, names: Collection[str], setting: str, batch: int = 1) -> dict[str, dict]:
    """The rows of ``path`` by prompt, of those that measured just the decoders ``names`` with ``setting``."""
    setting = _written(setting, batch)
    same = lambda row: row["methods"].keys() == set(names) and row["setting"] == setting  # noqa: E731
    return {row["id"]: row for row in read_rows(path, LiveRow) if same(row)}


def _written(setting: str, batch: int) -> str:
    """The ``setting`` of a row."""
    return setting if batch == 1 else f"{setting} in batches of {batch}"


def _answers(
    decoder, prompts: Sequence[Prompt], max_new_tokens: int, sampling: Sampling, seeds: Sequence[int], batch: int
) -> list[dict]:
    """The answers to a group of prompts, with what each took."""
    if batch == 1:
        return [_answer(decoder, p, max_new_tokens, sampling, seed) for p, seed in zip(prompts, seeds, strict=True)]
    how = {"batch_size": batch, "max_new_tokens": max_new_tokens, "sampling": sampling, "seed": seeds}
    began, found = time.perf_counter(), [{} for _ in prompts]
    for one in generate_many(decoder, [p.ids for p in prompts], **how):
        share = float(np.mean(np.array(one.writers) == len(decoder.models) - 1))
        about = {"tokens": len(one.tokens), "answer": one.tokens, "writers": one.writers, "large_share": share}
        found[one.prompt].update(about)
    _share(time.perf_counter() - began, "seconds", found)
    return found


def _share(total: float, name: str, answers: list[dict]) -> None:
    """Give every answer its share of a ``total``, by its tokens, under ``name``."""
    tokens = sum(answer["tokens"] for answer in answers)
    for answer in answers:
        answer[name] = total * answer["tokens"] / tokens


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


def groups_of(columns: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The places of the prompts that were timed together: of each one alone where the seconds are priced."""
    groups = columns.get("group", np.arange(len(columns["seconds"])))
    return [np.flatnonzero(groups == group) for group in np.unique(groups)]


def speed_interval(measured: dict, statistic: Callable[[np.ndarray], float]) -> list[float]:
    """95 % interval of a ``statistic`` of timed prompts, over the groups that were timed together."""
    groups = groups_of(measured[LARGE])
    return bootstrap(lambda picked: statistic(np.concatenate([groups[i] for i in picked])), len(groups))


def over_table(measured: dict, prompts: Sequence[Prompt], cost: ModelCosts) -> float:
    """The large model's seconds on ``prompts`` over what the timing table says for as many tokens."""
    large = measured[LARGE]
    expected = cost.text(-1, [len(p.ids) for p in prompts], large["tokens"])
    return float(large["seconds"].sum() / expected.sum())


def bootstrap(statistic, n: int, seed: int = 0, draws: int = 2000, confidence: float = 0.95) -> list[float]:
    """Percentile interval of ``statistic(rows)`` over prompts drawn with replacement."""
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(draws)]
    tail = (1 - confidence) / 2
    return [float(v) for v in np.quantile(values, [tail, 1 - tail])]
