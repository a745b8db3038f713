"""Gain from a policy's features and training: rules, rounds of DAgger and the policy gradient, at equal priced speed.

    python train/reinforce.py runs/default --episodes 512
    python experiments/own_path.py runs/default --rounds 2 --limit 64

The policy that the run's search chose is fitted again on the traces of 0, 1 (the main job's default) ... rounds of
DAgger; rounds that the run did not make are traced first. RUN/reinforced.json joins them where it exists, and so do
rules without weights and the same kind of policy on other sets of features. All answer the same prompts, of groups that
the run has not used, at two thresholds around the goal. Each is compared with the policy of one round by guarded
regret, interpolated prompt by prompt to one priced speed: halfway between the two thresholds of one round. A stopped
run goes on, and a higher --limit adds prompts to those that are done.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from decoding import Autoregressive, Backoff
from decoding.cli.options import use
from experiments.shared.handoff_texts import price_texts, write_texts
from experiments.shared.unseen_prompts import shortest_first, unseen_prompts
from policies import Momentum, Policy, Rule, load
from train.common import atomic
from train.common.cli import at_least, checking, command
from train.common.load_run import FinishedRun, load_run, refuse_drawn
from train.common.progress import say
from train.evaluation.live import LARGE, speedup
from train.evaluation.rivals import against_random
from train.replay.pricing import alone
from train.search.backoff import FEATURE_SETS, GRID, Search
from train.search.goal import solve
from train.traces.collect_handoff import explore
from train.traces.handoff_traces import read_traces
from train.traces.trace_shards import shards_of
from train.workers.blueprint import Blueprint

BASE = "1 round"


@dataclass
class OwnPath:
    """Gain from features, rounds of DAgger and the policy gradient, on prompts that the run has not used."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a run of train/fit_policy.py with --policy logistic or mlp and one round"""
    rounds: int = 2
    """most rounds of DAgger, at least 1"""
    limit: int = 64
    """prompts, spread over their families"""
    longest: int = 128
    """of these, prompts of more tokens are left out"""
    batch: int = 16
    around: float = 0.1
    """distance, in quantiles of the score, of the two thresholds from the one that is tuned to the goal"""
    grader: str | None = None
    """the grader of the run, where it is a module:function of yours: such code is run at your word only"""
    threads: int | None = None
    output: Path | None = None
    """folder of traces, texts and result.json (default: RUN/own_path)"""


def run(config: OwnPath) -> dict:
    """Measure what is not measured yet and write result.json. Raises InputError before any work is done."""
    with checking():
        found, prompts = prepare(config)
    folder = config.run / "own_path" if config.output is None else config.output
    folder.mkdir(parents=True, exist_ok=True)
    pair, how = [found.small, found.large], (found.new, config.batch)
    large = write_texts(Blueprint(Autoregressive(found.large)), pair, prompts, folder / "large.jsonl", *how)
    references = [row["answer"] for row in large]
    measured = {LARGE: alone(prompts, references, found.cost)}
    rivals = {}
    for name, (policy, thresholds) in fit_candidates(config, found, folder / "traces").items():
        for place, threshold in thresholds.items():
            rival = policy.with_threshold(threshold).to(found.large.device)
            path, setting = folder / f"{name} {place}.jsonl".replace(" ", "_"), f"{rival.describe()} {threshold}"
            rows = write_texts(
                Blueprint(Backoff(pair, rival)), pair, prompts, path, *how, found.metric, references, setting
            )
            measured[f"{name} {place}"] = price_texts(rows, prompts, found.cost, (0.0,))
        rivals[name] = compare(measured, name)
        atomic.write_json(folder / "result.json", {"prompts": len(prompts), "policies": rivals})
        say({name: rivals[name]})
    return rivals


def prepare(config: OwnPath) -> tuple[FinishedRun, list]:
    """The run, and prompts of groups that it has not used. ValueError for what does not fit."""
    at_least(config, {"rounds": 1, "limit": 1, "batch": 1})
    use("cpu", config.threads)
    found = load_run(config.run, config.grader)
    refuse_drawn(config.run, found.settings)
    if found.settings.policy == "rule" or found.settings.rounds != 1:
        raise ValueError(f"{config.run} has no learned policy of one round; tune one with --policy logistic")
    unused = shortest_first(unseen_prompts(found)[: config.limit])
    prompts = [p for p in unused if len(p.ids) <= config.longest]
    if not prompts:
        raise ValueError(f"no prompt of up to {config.longest} tokens is left that {config.run} has not used")
    return found, prompts


def fit_candidates(config: OwnPath, found: FinishedRun, traces: Path) -> dict[str, tuple[Policy, dict[str, float]]]:
    """By name a policy and its two thresholds; the policy of one round, with which the others compare, comes first."""
    count = shards_of(found.splits["fit"] + found.splits["tune"])
    trace_rounds(config, found, traces, count)
    params = found.result.chosen.params
    made = {}
    for k in (1, 0, *range(2, config.rounds + 1)):
        search = Search.of(found, read_traces(traces, (1 + k) * count))
        policy = search.policy(params)
        made[BASE if k == 1 else f"{k} rounds"] = policy, two_thresholds(found, search, policy, config.around)
    search, path = Search.of(found, found.traces), config.run / "reinforced.json"
    rivals = {"reinforced": load(path, models=found.policy.models)} if path.exists() else {}
    rivals |= {"momentum": Momentum(), "entropy": Rule("entropy", 0.0), "top1": Rule("top1", 0.0, "<=")}
    others = [name for name in FEATURE_SETS if name != params["features"]]
    rivals |= {f"features {name}": search.policy(params | {"features": name}) for name in others}
    return made | {name: (rival, two_thresholds(found, search, rival, config.around)) for name, rival in rivals.items()}


def trace_rounds(config: OwnPath, found: FinishedRun, traces: Path, count: int) -> None:
    """Copy the run's traces and add the rounds that it has not made, as the main job would."""
    if not (traces / "meta.json").exists():
        traces.mkdir(parents=True, exist_ok=True)
        shards = sorted(found.trace_folder.glob("shard-*.parquet"))[: 2 * count]
        for path in (*shards, *found.trace_folder.glob("*.json*")):  # what they are of, and their checksums
            shutil.copy(path, traces)
    prompts, seed = found.splits["fit"] + found.splits["tune"], found.settings.seed
    for number in range(1, config.rounds + 1):
        policy = Search.of(found, read_traces(traces, number * count)).first()
        explore(found.small, found.large, policy, prompts, traces, found.new, seed, number)


def two_thresholds(found: FinishedRun, search, policy: Policy, around: float) -> dict[str, float]:
    """Two thresholds around the one that reaches the goal by replay, corrected as the run's was."""
    i = solve(search.curve(policy), found.goal, found.result.replay.live_speedup_over_replayed)
    middle = found.result.policy.quantile if i is None else float(GRID[i])
    places = {"slow": max(0.0, middle - around), "fast": min(1.0, middle + around)}
    return {place: search.threshold(policy, quantile) for place, quantile in places.items()}


def compare(measured: dict, name: str) -> dict:
    """Priced speed and loss at each threshold; of all but one round also the loss minus one round's at equal speed.

    That speed is halfway between the two thresholds of one round, so that both losses are interpolated alike.
    """
    points = {
        key.removeprefix(f"{name} "): {"priced_speedup": speedup(measured, key), "loss": float(one["loss"].mean())}
        for key, one in measured.items()
        if key.startswith(f"{name} ")
    }
    if name == BASE:
        return points
    base = {
        field: (measured[f"{BASE} slow"][field] + measured[f"{BASE} fast"][field]) / 2
        for field in ("seconds", "tokens", "loss")
    }
    pair = {"random_low": measured[f"{name} slow"], "random_high": measured[f"{name} fast"]}
    found = against_random(pair | {LARGE: measured[LARGE], "tuned": base})
    low, high = found.interval
    return points | {
        "loss_at_the_speed_of_one_round": found.random_loss_at_same_speed,
        "difference": -found.difference,
        "interval": [-high, -low],
        "bracketed": found.bracketed,
    }


main = command(OwnPath, run, __doc__, lambda config: config.run)

if __name__ == "__main__":
    raise SystemExit(main())
