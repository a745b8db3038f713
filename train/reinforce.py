"""Train a tuned hand-off policy on its own path: a policy gradient that starts from a policy of fit_policy.py.

    python train/reinforce.py runs/NAME --episodes 512

An episode is a live text to a fitting prompt, in which each token escalates with the probability
sigmoid((score - threshold) / temperature). Its reward is minus its loss, minus a multiplier times its cost above the
target (with --quality-budget, loss and cost change places). The advantage is the reward minus the mean of its group,
and the multiplier grows while the target is missed. After training, the threshold is set again by replay on the tuning
prompts, and the policy is written to RUN/reinforced.json. It has not been measured on the hold-out:
`python experiments/own_path.py RUN` does that. Each step is a line of RUN/reinforce/steps.jsonl; a run that was killed
continues there.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from decoding.cli.options import use
from train.common import run_folder
from train.common.cli import at_least, checking, command, positive
from train.common.load_run import load_run
from train.common.progress import say
from train.reinforcement.policy_gradient import Settings, learn
from train.reinforcement.rollouts import Rollouts
from train.search.backoff import GRID, Search
from train.search.goal import solve
from train.search.thresholds import risks

KEPT = ("goal", "machine", "splits", "cost", "groups", "label", "sampling", "batch_size")
"""Provenance of the tuned policy that holds for the reinforced one too."""

HIGHEST_RATE = 1000
"""learning rate beyond which no weight means anything, and far beyond which torch raises"""


@dataclass
class Reinforce:
    """Train a tuned hand-off policy on its own path, by a policy gradient."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a finished run of train/fit_policy.py with --policy logistic or mlp; models are loaded in its dtypes"""
    episodes: int = 512
    """texts in all, rounded up to whole steps"""
    prompts: int = 4
    """prompts per step"""
    group: int = 8
    """texts per prompt in a step"""
    longest: int = 100
    """longest prompt, in tokens; longer ones are left out, as each text of a group reads its prompt again"""
    max_new_tokens: int = 48
    lr: float = 0.02
    """learning rate of Adam, in units of standardised weights"""
    temperature: float = 0.5
    """temperature of the drawn decisions, in standard deviations of the score over the traces"""
    dual_rate: float = 0.3
    """change of the multiplier per step and unit of violation of the target"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    seed: int = 0
    grader: str | None = None
    """the grader of the run, where it is a module:function of yours: such code is run at your word only"""


def run(config: Reinforce) -> None:
    """Train, set the threshold again, write reinforced.json. Raises InputError before any work is done."""
    with checking():
        at_least(config, {"episodes": 1, "prompts": 1, "group": 2, "longest": 1, "max_new_tokens": 1, "seed": 0})
        positive(config, "lr", "temperature", "dual_rate")
        if config.lr > HIGHEST_RATE:
            raise ValueError(f"--lr must be at most {HIGHEST_RATE}, not {config.lr:g}")
        use("cpu", config.threads)
        found = load_run(config.run, config.grader)
        if found.policy.kind not in ("logistic", "mlp"):
            file, kind = config.run / "policy.json", found.policy.kind
            raise ValueError(f"{file}: kind {kind!r} has no gradient; tune one with --policy logistic or mlp")
        search = Search.of(found, found.traces)
        how = settings(config, found.policy, search)
        play = rollouts(config, found)
        folder = config.run / "reinforce"
        about = {
            key: value for key, value in asdict(config).items() if key not in ("run", "episodes", "threads", "grader")
        }
        start = {"settings": about, "policy": found.policy.describe(), "models": found.policy.models}
        run_folder.ensure_same_run(folder / "settings.json", start, config, f"delete {folder}")
    policy, rows = learn(found.policy.to(found.large.device), play, how, folder / "steps.jsonl")
    policy, summary = recalibrate(policy, found, search)
    summary |= {"steps": how.steps, "multiplier": rows[-1]["next_multiplier"]}
    kept = {key: value for key, value in found.policy.provenance.items() if key in KEPT}
    provenance = kept | {"reinforced": about | summary, "from": found.policy.describe()}
    policy.save(config.run / "reinforced.json", found.policy.models, provenance)
    quarter = max(1, len(rows) // 4)
    first, last = (sum(row["reward"] for row in part) / quarter for part in (rows[:quarter], rows[-quarter:]))
    say(f"reward {first:.4f} in the first quarter of the steps, {last:.4f} in the last")
    say(f"wrote {config.run / 'reinforced.json'}")


def settings(config: Reinforce, policy, search) -> Settings:
    """The training settings: the temperature in units of this policy's score, the multiplier from replay."""
    score = risks(policy, search.fit)
    spread = float(np.std(score[np.isfinite(score)]))
    if spread == 0:
        raise ValueError("the policy gives every position the same score; there is nothing to explore")
    steps = -(-config.episodes // (config.prompts * config.group))
    return Settings(steps, config.lr, config.temperature * spread, exchange(policy, search), config.dual_rate)


def exchange(policy, search) -> float:
    """The exchange rate at the policy's threshold on the replayed frontier: objective per unit of the constraint."""
    kept = float((risks(policy, search.calls) < float(policy.threshold)).mean())
    (slow, safe), (fast, lossy) = search.curve(policy, np.clip([kept - 0.1, kept + 0.1], 0.0, 1.0))
    saved = 1 / slow - 1 / fast
    rate = (lossy - safe) / saved if saved > 0 else 0.0
    if search.goal.budget is not None:
        rate = 1 / rate if rate > 0 else 0.0
    return max(0.0, float(rate))


def rollouts(config: Reinforce, found) -> Rollouts:
    prompts = [p for p in found.splits["fit"] if len(p.ids) <= config.longest]
    if not prompts:
        shortest = min(len(p.ids) for p in found.splits["fit"])
        raise ValueError(f"no fitting prompt has up to {config.longest} tokens; --longest must be at least {shortest}")
    new = min(config.max_new_tokens, found.new)
    return Rollouts(found, prompts, config.prompts, config.group, new, config.seed)


def recalibrate(policy, found, search) -> tuple:
    """(``policy`` at the threshold that replay on the tuning prompts gives, with the run's correction; a summary)."""
    ratio, curve = found.result.replay, search.curve(policy)
    i = solve(curve, found.goal, ratio.live_speedup_over_replayed, max(1.0, ratio.live_loss_over_replayed))
    if i is None:
        return policy, {"threshold": "kept: by replay the goal is out of reach"}
    summary = {"quantile": float(GRID[i]), "replayed_speedup": float(curve[i, 0]), "replayed_loss": float(curve[i, 1])}
    return policy.with_threshold(search.threshold(policy, GRID[i])), summary


main = command(Reinforce, run, __doc__, lambda config: config.run / "reinforce")

if __name__ == "__main__":
    raise SystemExit(main())
