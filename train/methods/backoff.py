"""What the main job asks of a method, for backoff: who writes each token."""

from __future__ import annotations

import numpy as np

from policies import Policy, token_classes
from train.certification.certification import certification
from train.certification.record import instead
from train.common.preparation import Job, about, console, given
from train.evaluation.holdout import measure_holdout
from train.evaluation.live_tuning import LEAST_SPEEDUP, TunedBackoff, tune_live
from train.evaluation.reliability import reliability
from train.replay.backoff import best_length
from train.search.backoff import Search
from train.search.labels import labels
from train.search.study import finalists
from train.search.thresholds import risks
from train.traces.collect_handoff import collect, explore, shards_of
from train.traces.handoff_traces import Traces, read_traces

FALLBACK = "use the large model alone, or exact speculative decoding"


class BackoffRun:
    """What the job asks of a method: a ``search``, and then these, in this order."""

    def __init__(self, job: Job):
        self.job, self.traces, self.label = job, trace(job), job.config.label
        self.search = make_search(job, self.traces)

    def tune(self, study) -> TunedBackoff | None:
        """The finalist that live runs on the tuning prompts like best; None, and a word about it, when none can win."""
        self.tried = finalists(study, 3)
        chosen = tune_live(self.job, self.search, self.tried)
        if chosen is None:
            console.print(f"[bold]{_unreachable(self.job, self.search)}[/bold]")
        return chosen

    def predicted(self, chosen: TunedBackoff) -> dict:
        """What replay says of it, and of all that can be had."""
        front = []
        if self.job.config.frontier:
            front = self.search.front([*self.search.baselines(), *(trial.params for trial in self.tried)])
        return {
            "front": front,
            "goal": self.job.goal.asked(),
            "replay": {"live_speedup_over_replayed": chosen.faster, "live_loss_over_replayed": chosen.worse},
            "frontier": {
                "policy": self.search.curve(chosen.policy).tolist(),
                "random": self.search.random_curve().tolist(),
                "front": [[point["speedup"], point["loss"]] for point in front],
            },
        } | calibration(self.search, chosen.policy)

    def measure_holdout(self, chosen: TunedBackoff) -> dict:
        """What the held-out prompts say of it and of its controls, and before them the promise."""
        job, config = self.job, self.job.config
        promise = certification(job, self.search, chosen) if config.certify else None
        alone = self.traces.of({p.id for p in job.splits["fit"]}, "large")
        length, _ = best_length(alone, job.cost, config.max_new_tokens)
        result = measure_holdout(job, self.search, chosen, length)
        if promise is None:
            return result
        what = [] if promise["chosen"] is not None else [instead(result["methods"])]
        return result | {"certificate": promise, "verdict": " ".join([promise["claim"], *what, result["verdict"]])}

    def provenance(self, chosen: TunedBackoff) -> dict:
        """What a decoder has to know besides the policy."""
        return {"role": "handoff"}


def trace(job: Job) -> Traces:
    """The traces of the fitting and tuning prompts: collected and then explored in rounds, or read."""
    config, prompts = job.config, job.splits["fit"] + job.splits["tune"]
    description = about(config, job.small, job.large, job.splits)
    if config.traces is not None:
        return given(config.traces, description)
    folder = job.folder / "traces"
    how = prompts, folder, config.max_new_tokens, config.seed
    collect(job.small, job.large, *how, description | {"seed": config.seed})
    for number in range(1, config.rounds + 1):
        # Whatever later rounds have left there, a round that is gone on with must be of the same policy.
        policy = make_search(job, read_traces(folder, number * shards_of(prompts))).first()
        explore(job.small, job.large, policy, *how, number)
    return read_traces(folder)


def make_search(job: Job, traces: Traces) -> Search:
    how = {"kind": job.config.policy, "label": job.config.label, "seed": job.config.seed}
    classes = token_classes(job.large.tokenizer)
    return Search.on(traces, job.splits, cost=job.cost, goal=job.goal, classes=classes, **how)


def _unreachable(job: Job, search: Search) -> str:
    fastest = search.random_curve()[-1, 0]
    if job.goal.budget is None:
        return (
            f"{job.goal.speedup:g}x is out of reach of this pair on this machine: the small model alone is about "
            f"{fastest:.2f}x as fast as the large one; {FALLBACK}"
        )
    return f"a loss of {job.goal.budget:g} allows no speedup over {LEAST_SPEEDUP:g}x with this pair: {FALLBACK}"


def calibration(search: Search, policy: Policy) -> dict:
    """How far the risks of a learned policy can be taken at their word, on tuning prompts that it was not fitted on."""
    if search.kind == "rule":
        return {}
    # Where kl is above its median is asked of the fitting prompts, whose median the policy has learned.
    cut = float(np.median(search.fit["kl"]))
    return {"calibration": reliability(risks(policy, search.tune), labels(search.tune, search.label, cut))}
