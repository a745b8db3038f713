"""The hold-out: measured once, live, paired and interleaved with every control."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from decoding import Autoregressive, Backoff, SpecInfer, Speculative
from decoding.models.defaults import target_source
from policies import Policy, Random, Rule
from train.baselines.xllamacpp_server import LlamaCpp
from train.evaluation import live
from train.evaluation.samples import samples
from train.monitoring.recorder import tuned_on
from train.search.backoff import GRID, Search

if TYPE_CHECKING:
    from train.common.preparation import Job
    from train.evaluation.live_tuning import TunedBackoff

BRANCHES = (4,)
"""of the exact tree that stands beside exact chains: one step of the draft, and its best tokens in one forward"""
BRACKET = (0.85, 1.18)
"""Random hand-off runs at two rates whose expected speeds are these multiples of the tuned policy's."""
NOT_BRACKETED = "neither rate of random hand-off is near that speed, so nothing is said of chance"


def measure_holdout(job: Job, search: Search, chosen: TunedBackoff, length: int) -> dict:
    """Measure the tuned policy and its controls on the held-out prompts; the rest of the result."""
    models, device = [job.small, job.large], job.large.device
    low, high = random_rates(search, chosen)
    trees = {} if any(lm.chains_only for lm in models) else {"tree": SpecInfer(models, BRANCHES)}
    decoders = {
        live.LARGE: Autoregressive(job.large),
        "small": Backoff(models, Rule.never(), verify_eos=False),
        "random_low": Backoff(models, Random(low).to(device)),
        "random_high": Backoff(models, Random(high).to(device)),
        "speculative": Speculative(models, length=length),
        **trees,
        "tuned": Backoff(models, chosen.policy.to(device)),
    }
    labels = {
        live.LARGE: "large model alone",
        "small": "small model alone",
        "random_low": f"random hand-off, rate {low:.2f}",
        "random_high": f"random hand-off, rate {high:.2f}",
        "speculative": f"speculative, exact, length {length}",
        "tree": f"speculative, exact, the best {BRANCHES[0]} at once",
        "tuned": f"tuned {job.config.policy} policy",
    }
    # More trials may choose another policy: what was measured of this one is not what that one does.
    setting = f"trial {chosen.trial} at {chosen.quantile:.3f}, rates {low:.6f} and {high:.6f}, length {length}"
    measured, rows, result = measure(job, decoders, labels, chosen.policy, setting, {"speculative", "tree"})
    comparison = against_random(measured)
    return result | {
        "comparison": comparison,
        "verdict": verdict(job, result["methods"], comparison),
        "traffic": traffic_of(job, chosen, rows),
    }


def measure(
    job: Job,
    decoders: dict,
    labels: dict[str, str],
    policy: Policy,
    setting: str,
    exact: Collection[str],
) -> tuple[dict, list[dict], dict]:
    """Measure ``decoders``, of which those in ``exact`` write the large model's own text, on the held-out prompts.

    What was measured, the row of each prompt, and the part of the result that every method has; ``policy`` is tuned's.
    """
    labels = labels | llamacpp(job, decoders)
    prompts, path, new = job.splits["holdout"], job.folder / "holdout.jsonl", job.config.max_new_tokens
    measured = live.measure(decoders, prompts, new, job.judge, path, "hold-out", setting=setting)
    rows = live.finished(path, decoders, setting)
    result = {
        "methods": [summary(measured, key, labels[key], exact) for key in decoders],
        "live_over_table": live.over_table(measured, prompts, job.cost.large),
        "samples": samples([job.small, job.large], policy, prompts, rows),
    }
    return measured, [rows[p.id]["methods"] for p in prompts], result


def llamacpp(job: Job, decoders: dict) -> dict[str, str]:
    """Add the large model in llama.cpp to ``decoders``, where that is installed and reads it; its label."""
    source = job.config.large or target_source()
    if not LlamaCpp.available(source):
        return {}
    decoders["llamacpp"] = LlamaCpp(source, job.large.tokenizer, job.large.context)
    return {"llamacpp": "large model alone in llama.cpp"}


def traffic_of(job: Job, chosen: TunedBackoff, rows: list[dict]) -> dict:
    """What the tuned policy saw while it wrote the held-out texts: what new traffic is compared with."""
    texts = [(row["tuned"]["answer"], row["tuned"]["writers"]) for row in rows]
    references = [row[live.LARGE]["answer"] for row in rows]
    return tuned_on(job.small, job.large, chosen.policy, job.splits["holdout"], texts, references)


def random_rates(search: Search, chosen: TunedBackoff) -> tuple[float, float]:
    """Rates of random hand-off that should bracket the tuned policy's speed: (slower, faster)."""
    speeds = search.random_curve()[:, 0]
    wanted = search.point(chosen.policy, chosen.quantile)[0] * chosen.faster
    return tuple(float(1 - np.interp(wanted * factor, speeds, GRID)) for factor in BRACKET)


def summary(measured: dict, key: str, label: str, exact: Collection[str]) -> dict:
    """One row of the table; intervals are 95 % bootstrap over prompts. The large model judges all in ``exact`` ones."""
    own, large, small = measured[key], measured[live.LARGE], measured["small"]
    n = len(own["loss"])
    span = small["loss"].mean()
    return {
        "key": key,
        "label": label,
        "tokens_per_second": float(own["tokens"].sum() / own["seconds"].sum()),
        "speedup": live.speedup(measured, key),
        "speedup_interval": live.bootstrap(lambda rows: live.speedup(measured, key, rows), n),
        "loss": float(own["loss"].mean()),
        "loss_interval": live.bootstrap(lambda rows: own["loss"][rows].mean(), n),
        "large_share": None if key in exact else float(np.average(own["large_share"], weights=own["tokens"])),
        "length_ratio": float(own["tokens"].sum() / large["tokens"].sum()),
        "total_time_ratio": float(own["seconds"].sum() / large["seconds"].sum()),
        "recovered": float(1 - own["loss"].mean() / span) if span > 0 else None,
        "plain_regret": float(own["regret"].mean()),
    }


def against_random(measured: dict) -> dict:
    """The tuned policy's loss minus that of random hand-off at the same measured speed, interpolated per prompt."""
    n = len(measured["tuned"]["loss"])

    def difference(rows) -> float:
        return float(measured["tuned"]["loss"][rows].mean() - random_loss(measured, rows))

    return {
        "random_loss_at_same_speed": random_loss(measured, np.arange(n)),
        "difference": difference(np.arange(n)),
        "interval": live.bootstrap(difference, n),
        "confidence": 0.95,
        "bracketed": 0.0 <= mixture(measured, np.arange(n)) <= 1.0,
    }


def mixture(measured: dict, rows) -> float:
    """Share of the faster random rate in the mixture of the two that is as fast as the tuned policy; infinite where
    both rates are equally fast and the policy is not."""
    slow, fast, tuned = (live.speedup(measured, key, rows) for key in ("random_low", "random_high", "tuned"))
    # Seconds per token, not speedups, are what a mixture of prompts averages.
    missing, span = 1 / tuned - 1 / slow, 1 / fast - 1 / slow
    return missing / span if span else math.inf if missing else 0.0


def random_loss(measured: dict, rows) -> float:
    share = mixture(measured, rows)
    share = share if math.isfinite(share) else 0.0
    low, high = (measured[key]["loss"][rows] for key in ("random_low", "random_high"))
    return float(((1 - share) * low + share * high).mean())


def verdict(job: Job, methods: list[dict], comparison: dict) -> str:
    """What the hold-out says, in one sentence."""
    tuned = next(m for m in methods if m["key"] == "tuned")
    low, high = comparison["interval"]
    better = "less" if high < 0 else "more" if low > 0 else "not clearly less or more"
    goal = f"target {job.goal.speedup:g}x" if job.goal.budget is None else f"budget {job.goal.budget:g}"
    said = (
        f"On {len(job.splits['holdout'])} held-out prompts the tuned policy is {tuned['speedup']:.2f}x as fast as the "
        f"large model alone at a loss of {tuned['loss']:.3f} ({goal}); "
    )
    if not comparison["bracketed"]:
        return f"{said}{NOT_BRACKETED}."
    return (
        f"{said}random hand-off at the same speed loses "
        f"{comparison['random_loss_at_same_speed']:.3f}, so it loses {better} than chance "
        f"(difference {comparison['difference']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})."
    )
