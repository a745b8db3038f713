"""Backoff decoding as a tuning method: a policy decides which model writes each token."""

from dataclasses import replace

import numpy as np

from policies import Policy, Random
from policies.decoder_spec import DecoderSpec
from train.certification.certification import certification
from train.certification.record import instead
from train.common.job import Job, Tuned
from train.common.progress import say, say_if
from train.common.result import FrontPoint, Holdout, Prediction, Reliability, Replay
from train.evaluation import live
from train.evaluation.advice import advice
from train.evaluation.holdout import Contender, controls, measure
from train.evaluation.live_tuning import tune_live
from train.evaluation.reliability import reliability
from train.evaluation.rivals import against_random, beside_random, random_rates
from train.methods.base import FALLBACK, TuningMethod, asked_goal, no_speedup
from train.monitoring.reference import traffic_of_texts
from train.replay.backoff import best_length
from train.search.backoff import Search
from train.search.goal import Goal
from train.search.labels import labels
from train.search.policy_space import one_sided
from train.search.study import finalists
from train.search.thresholds import risks
from train.traces.collect_handoff import collect, explore
from train.traces.given import about, given_handoff
from train.traces.trace_sample import TraceSample, read_sample
from train.traces.trace_shards import shards_of
from train.workers.blueprint import Blueprint

AGREED = "so fast is a hand-off in which the small model writes as many tokens as it gets right"
TREE = {"beams": 4, "length": 1}
"""of the exact tree that stands beside exact chains: one step of the draft, and its best tokens in one forward"""


class BackoffMethod(TuningMethod):
    """Fits hand-off policies on traces of both models; searches features, regularisation and threshold by replay."""

    certifiable = True
    draws = True
    threshold_note = "the large model is asked. It is also asked about every end by the small one."

    def __init__(self, job: Job):
        sample = trace(job)
        say_if(sample.sentence)
        self.job, self.traces, self.label = job, sample.texts, job.settings.label
        self.search = Search.of(job, sample.texts, sample.rows)
        if job.goal.open:
            self.job = replace(job, goal=self.search.goal)
            found = f"the goal is {self.search.goal.speedup:g}x: {AGREED}"
            say(f"{found}; --target-speedup or --quality-budget asks for another")
        fit, agreed = self.search.fit, self.traces["small_token"] == self.traces["large_token"]
        asked = job.settings.policy, labels(fit, self.label), fit["group"]
        say_if(one_sided(*asked, agreed, job.settings.longest))

    @classmethod
    def goal(cls, settings) -> Goal:
        """As asked, else open until the traces say how often the models agree (``Search.usual_speedup``)."""
        return asked_goal(settings)

    @classmethod
    def check_traces(cls, settings, small, large, splits) -> None:
        what = small, large, splits["fit"] + splits["tune"], settings.max_new_tokens
        given_handoff(settings.traces, *what, sampling=settings.drawing.sampling())

    def tune(self, study) -> Tuned | None:
        """The best of three finalists, live on the tuning prompts, its threshold corrected by texts of its own."""
        self.tried = finalists(study, 3)
        tuned = tune_live(self.job, self.search, self.tried)
        if tuned is None:
            say(self._unreachable(), style="bold")
        return tuned

    def provenance(self, tuned: Tuned) -> dict:
        return super().provenance(tuned) | {"curve": self.search.thresholds(tuned.policy)}

    def _unreachable(self) -> str:
        if self.job.goal.budget is not None:
            return no_speedup(self.job.goal)
        return (
            f"{self.job.goal.speedup:g}x is out of reach of this pair on this machine: the small model alone is about "
            f"{self.search.random_curve()[-1, 0]:.2f}x as fast as the large one; {FALLBACK}"
        )

    def measure_holdout(self, tuned: Tuned) -> Holdout:
        """Certify ``tuned`` where asked, then measure it, its controls, and exact drafts at their best length."""
        job = self.job
        certificate = certification(job, self.search, tuned) if job.settings.certify else None
        alone = self.traces.of({p.id for p in job.splits["fit"]}, "large")
        length, _ = best_length(alone, job.cost, job.new)
        low, high = random_rates(self.search, tuned)
        # More trials may choose another policy: what was measured of this one is not what that one does.
        setting = f"trial {tuned.trial} at {tuned.quantile:.3f}, rates {low:.6f} and {high:.6f}, length {length}"
        found = measure(job, self._contenders(tuned, low, high, length), tuned.policy, setting)
        goal, comparison = job.goal, against_random(found.handoffs)
        asked = f"target {goal.speedup:g}x" if goal.budget is None else f"budget {goal.budget:g}"
        result = found.holdout(
            "the tuned policy",
            f" at a loss of {found.tuned.loss:.3f} ({asked})",
            beside_random(comparison),
            comparison=comparison,
            traffic=self._traffic(tuned.policy, found.rows),
            certificate=certificate,
        )
        exact = max((row for row in found.methods if row.key in ("speculative", "tree")), key=lambda row: row.speedup)
        drafts = {"method": "specinfer", **TREE} if exact.key == "tree" else {"method": "speculative", "length": length}
        drafts = {name: str(value) for name, value in drafts.items()}
        result.verdict = f"{advice(job, found.tuned, exact, drafts, comparison)}. {result.verdict}"
        if certificate is not None:
            what = [] if certificate.chosen is not None else [instead(result.methods)]
            result.verdict = " ".join([certificate.claim, *what, result.verdict])
        return result

    def _contenders(self, tuned: Tuned, low: float, high: float, length: int) -> dict[str, Contender]:
        """Random hand-off at two rates, exact drafts as a chain and, where both models read trees, as a tree."""
        models = self.job.models
        found = controls(self.job)
        for key, rate in (("random_low", low), ("random_high", high)):
            coin = Blueprint.of(models, DecoderSpec("backoff"), Random(rate))
            found[key] = Contender.made(f"random hand-off, rate {rate:.2f}", coin)
        chain = Blueprint.of(models, DecoderSpec("speculative", {"length": length}))
        found["speculative"] = Contender.made(f"speculative, exact, length {length}", chain, exact=True)
        if not any(lm.chains_only for lm in models):
            tree = Blueprint.of(models, DecoderSpec("specinfer", TREE))
            found["tree"] = Contender.made(f"speculative, exact, the best {TREE['beams']} at once", tree, exact=True)
        return found | {"tuned": Contender.made(f"tuned {self.search.kind} policy", tuned.blueprint(models))}

    def _traffic(self, policy: Policy, rows: list[dict]) -> dict:
        """The steps of the tuned policy on the held-out texts: the reference for new traffic."""
        texts = [(row["tuned"]["answer"], row["tuned"]["writers"]) for row in rows]
        references = [row[live.LARGE]["answer"] for row in rows]
        return traffic_of_texts(*self.job.models, policy, self.job.splits["holdout"], texts, references)

    def predicted(self, tuned: Tuned) -> Prediction:
        """The prediction of replay for ``tuned``, for random hand-off and, where asked, of all candidates."""
        search, front = self.search, []
        if self.job.settings.frontier:
            front = search.front([*search.baselines(), *(trial.params for trial in self.tried)])
        return Prediction(
            goal=self.job.goal.asked(),
            replay=Replay(tuned.faster, tuned.worse),
            front=[FrontPoint(**point) for point in front],
            frontier={
                "policy": search.curve(tuned.policy).tolist(),
                "random": search.random_curve().tolist(),
                "front": [[point["speedup"], point["loss"]] for point in front],
            },
            calibration=calibration(search, tuned.policy),
        )


def trace(job: Job) -> TraceSample:
    """The traces of the fitting and tuning prompts: collected and then explored in rounds, or read."""
    settings, what, folder = job.settings, (*job.models, job.traced, job.new), job.folder / "traces"
    fitting = {p.id for p in job.splits["fit"]}
    if settings.traces is not None:
        return given_handoff(settings.traces, *what, sampling=job.sampling, fitting=fitting, seed=settings.seed)
    how = job.traced, folder, job.new, settings.seed
    collect(*job.models, *how, about(*what, sampling=job.sampling) | {"seed": settings.seed}, job.sampling, job.crew)
    for number in range(1, settings.rounds + 1):
        # Whatever later rounds have left there, a round that is gone on with must be of the same policy.
        sample = read_sample(folder, fitting, settings.seed, number * shards_of(job.traced))
        policy = Search.of(job, sample.texts, sample.rows).first()
        explore(*job.models, policy, *how, number, job.sampling, job.crew)
    return read_sample(folder, fitting, settings.seed)


def calibration(search: Search, policy: Policy) -> Reliability | None:
    """Calibration of a learned policy's risks on tuning prompts that it was not fitted on."""
    if search.kind == "rule":
        return None
    # Labels of the kind kl are cut at the median of the fitting prompts, which is what the policy has learned.
    cut = float(np.median(search.fit["kl"]))
    return reliability(risks(policy, search.tune), labels(search.tune, search.label, cut))
