"""Speculative decoding as a tuning method: how long to draft, and a policy that ends drafts. Nothing can be lost."""

from collections.abc import Sequence
from typing import ClassVar

from decoding import LM
from policies import token_classes
from policies.decoder_spec import DecoderSpec
from train.common.job import Job, Tuned
from train.common.progress import say, say_if
from train.common.result import Holdout, Prediction, Replay
from train.evaluation import live
from train.evaluation.holdout import Contender, controls, measure
from train.evaluation.rivals import against_rival, beside_rival
from train.methods.base import TuningMethod
from train.replay.speculative import Replayed
from train.search.draft_stop import StopSearch, first_accepted, rejections
from train.search.policy_space import CONFIDENCE, fittable, one_sided
from train.search.study import finalists
from train.traces.collect_drafts import collect_drafts
from train.traces.draft_traces import read_drafts
from train.traces.given import given_drafts
from train.workers.blueprint import Blueprint


class SpeculativeMethod(TuningMethod):
    """Searches draft lengths and stops by replay on draft traces, which is exact; the text is the large model's own."""

    least: ClassVar[dict[str, int]] = {"max_new_tokens": 2}  # the large model writes the last token itself
    draws = True
    plane = ("length", "speedup")
    threshold_note = "a draft ends."
    label = "rejection"

    def __init__(self, job: Job):
        self.job, self.search = job, search_stops(job)

    @classmethod
    def goal(cls, settings) -> None:
        """As fast as it can be, so there is none. ValueError for an option that would need one."""
        why = "--method speculative loses nothing"
        for option in ("target_speedup", "quality_budget", "grader"):
            if getattr(settings, option) is not None:
                raise ValueError(f"leave out --{option.replace('_', '-')}: {why} and is as fast as it can be")
        if settings.frontier:
            raise ValueError(f"leave out --frontier: {why}, so there is nothing to trade")

    @classmethod
    def check_traces(cls, settings, small, large, splits) -> None:
        what = small, large, splits["fit"] + splits["tune"], settings.max_new_tokens, settings.longest
        given_drafts(settings.traces, *what, settings.drawing.sampling())

    def finalists(self, study) -> list:
        """The best two stops and the best constant length. A survival has no file of its own, so it is a baseline."""
        ranked = [trial for trial in finalists(study, None) if trial.params["stop"] != "survival"]
        constant = lambda trial: trial.params["stop"] == "constant"  # noqa: E731
        return [t for t in ranked if not constant(t)][:2] + [t for t in ranked if constant(t)][:1]

    def tune(self, study) -> Tuned:
        """The fastest of the finalists live, as replay does not price a stop's own features."""
        trials = self.finalists(study)
        options = [self._option(trial.number, trial.params) for trial in trials]
        measured = live.on_tuning(self.job, options)
        for option, trial in zip(options, trials, strict=True):
            speed, replayed = live.speedup(measured, option.name), self.search.speedup(trial.params)
            option.faster = speed / replayed
            say(f"{option.name}: replay {replayed:.3f}x, live {speed:.3f}x")
        return max(options, key=lambda option: live.speedup(measured, option.name))

    def _option(self, number: int, params: dict) -> Tuned:
        chain = {"length": params["length"], "keep_stop_token": params.get("keep", False)}
        return Tuned(self.search.stop(params), DecoderSpec("speculative", chain), number, params.get("quantile"))

    def measure_holdout(self, tuned: Tuned) -> Holdout:
        """Measure ``tuned`` and, beside it, the best constant length."""
        models, length, own = self.job.models, self.search.constant(), tuned.spec.settings["length"]
        label = f"speculative, best constant length {length}"
        contenders = controls(self.job) | {
            "speculative": Contender.made(label, constant(models, length), True, length),
            "tuned": Contender.made(f"speculative, tuned: {draft_of(tuned)}", tuned.blueprint(models), True, own),
        }
        found = measure(self.job, contenders, tuned.policy, f"trial {tuned.trial}, length {length}")
        against = against_rival(found.timed, "speculative", "the best constant length")
        compared = beside_rival(against, against.of)
        return found.holdout(found.tuned.label, ", whose text it writes", compared, against=against)

    def predicted(self, tuned: Tuned) -> Prediction:
        """The prediction of replay: the speedup by the longest draft, with the tuned stop and without one."""
        constants = self.search.constants()
        by_length = [(n, self._faster(self._replayed(tuned, n))) for n, _ in constants]
        return Prediction(replay=Replay(tuned.faster), frontier={"stop": by_length, "constant": constants})

    def _replayed(self, tuned: Tuned, length: int) -> Replayed:
        stop = None if tuned.policy.kind == "never" else tuned.policy
        return self.search.replay(stop, length, tuned.spec.settings["keep_stop_token"])

    def _faster(self, replayed: Replayed) -> float:
        return float(self.search.alone / replayed.seconds(self.job.cost).sum())

    def provenance(self, tuned: Tuned) -> dict:
        """The decoder besides the policy, and the prediction of replay."""
        replayed = self._replayed(tuned, tuned.spec.settings["length"])
        predicted = {"speedup": self._faster(replayed), "rounds_by_draft_length": replayed.lengths().tolist()}
        return super().provenance(tuned) | {"predicted": predicted}


def search_stops(job: Job) -> StopSearch:
    """On draft traces of the fitting and tuning prompts, collected or read."""
    settings, folder = job.settings, job.folder / "traces"
    if settings.traces is not None:
        traces = given_drafts(settings.traces, *job.models, job.traced, job.new, settings.longest, job.sampling)
    else:
        how = job.traced, settings.longest, folder, job.new, job.sampling, settings.seed
        collect_drafts(*job.models, *how, crew=job.crew)
        traces = read_drafts(folder, settings.seed)
    fit, classes = traces.of({p.id for p in job.splits["fit"]}), token_classes(job.large.tokenizer)
    _, labels, _, groups = rejections(fit, CONFIDENCE[:1], classes)
    say_if(one_sided(settings.policy, labels, groups, first_accepted(traces), settings.longest))
    kind = fittable(settings.policy, labels, groups)
    return StopSearch(kind, fit, traces, job.cost, classes, settings.seed)


def constant(models: Sequence[LM], length: int) -> Blueprint:
    """Exact drafts of a constant ``length``."""
    return Blueprint.of(models, DecoderSpec("speculative", {"length": length}))


def draft_of(tuned: Tuned) -> str:
    """The name of a way of drafting in tables."""
    kind = tuned.policy.kind
    return f"{'constant length' if kind == 'never' else f'{kind} stop, at most'} {tuned.spec.settings['length']}"
