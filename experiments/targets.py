"""Speedups reached by runs that were tuned to a target, timed live on prompts that none of them has used.

    python train/fit_policy.py --target-speedup 1.25 --name t125 --sizes 0.55 0.35 0.1
    python train/fit_policy.py --target-speedup 1.6 --name t160 --sizes 0.55 0.35 0.1 --traces runs/t125/traces
    python experiments/targets.py runs/t125 runs/t160 --limit 96

The share of escalated tokens varies so much between prompts that the speedup on a run's twenty or so hold-out prompts
is known to a tenth at best. This takes many more prompts, and times only the policies and the large model, in turns.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from decoding import Autoregressive, Backoff
from decoding.cli.options import use
from experiments.shared.estimates import estimate
from experiments.shared.unseen_prompts import one_of_each_group, unseen_prompts
from policies import Policy
from train.common import atomic
from train.common.cli import at_least, checking, command
from train.common.load_run import FinishedRun, load_run
from train.data.prompts import Prompt
from train.evaluation.live import LARGE, measure, speedup
from train.reports.tables import with_interval
from train.reports.terminal import print_rows


@dataclass
class Targets:
    """Target speedups of finished runs against those measured on unseen prompts."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders of finished runs of train/fit_policy.py --target-speedup, of one pair, prompts and length"""
    limit: int = 96
    """prompts, one of each group"""
    longest: int = 256
    """prompts of more tokens are left out"""
    grader: str | None = None
    """the grader of the run, where it is a module:function of yours: such code is run at your word only"""
    threads: int | None = None
    output: Path = Path("runs/targets")
    """folder of the timings (a stopped run goes on) and of result.json"""


def run(config: Targets) -> list[dict]:
    """Time what is not timed yet and write result.json. Raises InputError before any work is done."""
    with checking():
        first, policies, prompts = prepare(config)
    pair, targets = [first.small, first.large], list(policies)
    decoders = {f"{target:g}": Backoff(pair, policy) for target, policy in policies.items()}
    config.output.mkdir(parents=True, exist_ok=True)
    setting = " ".join(f"{policy.threshold.item():.9g}" for policy in policies.values())
    how = first.new, first.metric, config.output / "prompts.jsonl", "live, unseen prompts", setting
    measured = measure({LARGE: Autoregressive(first.large)} | decoders, prompts, *how, sampling=first.sampling)
    result = [summarize(measured, name, target) for name, target in zip(decoders, targets, strict=True)]
    atomic.write_json(config.output / "result.json", {"prompts": len(prompts), "targets": result})
    show(result, len(prompts))
    return result


def prepare(config: Targets) -> tuple[FinishedRun, dict[float, Policy], list[Prompt]]:
    """The first run, the policies by their targets, and unseen prompts. ValueError for what does not fit."""
    at_least(config, {"limit": 1, "longest": 1})
    use("cpu", config.threads)
    runs = [load_run(folder, config.grader) for folder in config.runs]
    policies: dict[float, Policy] = {}
    for one in runs:
        if one.settings.batch_size > 1:
            raise ValueError(f"{one.folder} was tuned for batches, and this times single texts; give other runs")
        target = one.goal.speedup
        if target is None:
            raise ValueError(f"{one.folder} has no target speedup; give runs of --method backoff --target-speedup")
        if target in policies:
            raise ValueError(f"{one.folder} has the same target as another run, {target:g}; give one run a target")
        same = ("small", "large", "prompts", "max_new_tokens", "ignore_generation_config", "dtypes", "backend")
        if differing := [name for name in same if getattr(one.settings, name) != getattr(runs[0].settings, name)]:
            raise ValueError(f"{one.folder} has another {', '.join(differing)} than {runs[0].folder}")
        policies[target] = one.policy
    prompts = one_of_each_group(unseen_prompts(*runs), config.longest)[: config.limit]
    if not prompts:
        raise ValueError("no prompts are left that these runs have not used")
    return runs[0], policies, prompts


def summarize(measured: dict, name: str, target: float) -> dict:
    """Speedup of one policy as a ratio of sums and as a median over prompts, and its loss, with intervals."""
    own, large = measured[name], measured[LARGE]
    each = (large["seconds"] / large["tokens"]) / (own["seconds"] / own["tokens"])
    found = {"target": target} | estimate("speedup", lambda rows: speedup(measured, name, rows), len(each))
    return found | {
        "off": found["speedup"] / target - 1,
        **estimate("median", lambda rows: np.median(each[rows]), len(each)),
        **estimate("loss", lambda rows: own["loss"][rows].mean(), len(each)),
        "large_share": float((own["large_share"] * own["tokens"]).sum() / own["tokens"].sum()),
    }


def show(result: list[dict], prompts: int) -> None:
    """Print a line for each target."""
    rows = []
    for one in result:
        total, median, loss = (
            with_interval(one[key], one[f"{key}_interval"], ".3g") for key in ("speedup", "median", "loss")
        )
        rows.append((f"{one['target']:g}", total, f"{one['off']:+.1%}", median, loss, f"{one['large_share']:.0%}"))
    head = ("target", "speedup", "off by", "median of prompts", "guarded regret", "by large model")
    print_rows(head, rows, f"{prompts} unseen prompts")


main = command(Targets, run, __doc__, lambda config: config.output)

if __name__ == "__main__":
    raise SystemExit(main())
