"""The main job for ``--method speculative``: how to draft is searched by replay, run live, and held out."""

from __future__ import annotations

from dataclasses import dataclass

from decoding import Autoregressive, Backoff, Speculative
from decoding.decoders.from_spec import build_decoder
from policies import Policy, Rule, token_classes
from policies.decoder_spec import DecoderSpec
from train.common.preparation import Job, console
from train.evaluation import holdout, live
from train.replay.speculative import Replayed
from train.search.draft_stop import StopSearch
from train.search.study import finalists
from train.traces.collect_drafts import collect_drafts, given_drafts
from train.traces.draft_traces import DraftTraces, read_drafts


@dataclass
class TunedStop:
    """How to draft, the trial it came from, and how live runs on the tuning prompts compared with replay."""

    policy: Policy
    """``Rule.never()`` for a constant length"""
    trial: int
    quantile: float | None
    length: int
    keep: bool
    faster: float

    def decoder(self, models) -> Speculative:
        return build_decoder(models, self.policy.to(models[-1].device), DecoderSpec("stop", self.length, self.keep))


class SpeculativeRun:
    """What the job asks of a method (``train.pipeline.METHODS``); the text is the large model's own, only sooner."""

    label = "rejection"

    def __init__(self, job: Job):
        self.job, self.models = job, [job.small, job.large]
        self.search = search_stops(job)

    def finalists(self, study) -> list:
        """The best two stops and the best constant length. A survival has no file of its own, so it is a baseline."""
        ranked = [trial for trial in finalists(study, None) if trial.params["stop"] != "survival"]
        constant = lambda trial: trial.params["stop"] == "constant"  # noqa: E731
        return [t for t in ranked if not constant(t)][:2] + [t for t in ranked if constant(t)][:1]

    def tune(self, study) -> TunedStop:
        """The fastest of the finalists, live on the tuning prompts: replay does not price a stop's own features."""
        job, trials = self.job, self.finalists(study)
        tune, path = job.splits["tune"], job.folder / "tune.jsonl"
        options = [self._option(trial.number, trial.params) for trial in trials]
        decoders = {live.LARGE: Autoregressive(job.large)}
        decoders |= {f"trial {option.trial}": option.decoder(self.models) for option in options}
        measured = live.measure(decoders, tune, job.config.max_new_tokens, job.judge, path, "live, tuning")
        for option, trial in zip(options, trials, strict=True):
            speed, replayed = live.speedup(measured, f"trial {option.trial}"), self.search.speedup(trial.params)
            option.faster = speed / replayed
            console.print(f"trial {option.trial}: replay {replayed:.3f}x, live {speed:.3f}x")
        return max(options, key=lambda option: live.speedup(measured, f"trial {option.trial}"))

    def _option(self, number: int, params: dict) -> TunedStop:
        stop, quantile = self.search.stop(params), params.get("quantile")
        stop = Rule.never() if stop is None else stop
        return TunedStop(stop, number, quantile, params["length"], params.get("keep", False), 1.0)

    def predicted(self, chosen: TunedStop) -> dict:
        """What replay says: the speedup by the longest draft, with the tuned stop and without one."""
        constants = self.search.constants()
        tuned = [(n, self._faster(self._replayed(chosen, n))) for n, _ in constants]
        return {
            "replay": {"live_speedup_over_replayed": chosen.faster},
            "frontier": {"stop": tuned, "constant": constants},
        }

    def _replayed(self, chosen: TunedStop, length: int) -> Replayed:
        stop = None if chosen.policy.kind == "never" else chosen.policy
        return self.search.replay(stop, length, chosen.keep)

    def _faster(self, replayed: Replayed) -> float:
        return float(self.search.alone / replayed.seconds(self.job.cost).sum())

    def provenance(self, chosen: TunedStop) -> dict:
        """What a decoder has to know besides the policy, and what replay predicts of it."""
        replayed = self._replayed(chosen, chosen.length)
        predicted = {"speedup": self._faster(replayed), "rounds_by_draft_length": replayed.lengths().tolist()}
        return {"role": "stop", "length": chosen.length, "keep": chosen.keep, "predicted": predicted}

    def measure_holdout(self, chosen: TunedStop) -> dict:
        """Measure the tuned stop and its controls on the held-out prompts; the rest of the result."""
        job, length = self.job, self.search.constant()
        decoders = {
            live.LARGE: Autoregressive(job.large),
            "small": Backoff(self.models, Rule.never(), verify_eos=False),
            "speculative": Speculative(self.models, length),
            "tuned": chosen.decoder(self.models),
        }
        labels = {
            live.LARGE: "large model alone",
            "small": "small model alone",
            "speculative": f"speculative, best constant length {length}",
            "tuned": f"speculative, tuned: {draft_of(chosen)}",
        }
        setting = f"trial {chosen.trial}, length {length}"
        exact = {"speculative", "tuned"}
        measured, rows, result = holdout.measure(job, decoders, labels, chosen.policy, setting, exact)
        for method in result["methods"]:
            method |= {"length": {"speculative": length, "tuned": chosen.length}.get(method["key"])}
        comparison = against_constant(measured)
        return result | {"against": comparison, "verdict": verdict(len(rows), result["methods"], comparison)}


def search_stops(job: Job) -> StopSearch:
    """On draft traces of the fitting and tuning prompts, collected or read."""
    traces = _traces(job)
    fit = traces.of({p.id for p in job.splits["fit"]})
    return StopSearch(job.config.policy, fit, traces, job.cost, token_classes(job.large.tokenizer), job.config.seed)


def _traces(job: Job) -> DraftTraces:
    config, prompts = job.config, job.splits["fit"] + job.splits["tune"]
    if config.traces is not None:
        return given_drafts(config.traces, job.small, job.large, prompts, config.longest, config.max_new_tokens)
    folder = job.folder / "traces"
    collect_drafts(job.small, job.large, prompts, config.longest, folder, config.max_new_tokens)
    return read_drafts(folder)


def draft_of(chosen: TunedStop) -> str:
    """What a reader calls a way of drafting."""
    if chosen.policy.kind == "never":
        return f"constant length {chosen.length}"
    return f"{chosen.policy.kind} stop, at most {chosen.length}"


def against_constant(measured: dict) -> dict:
    """The tuned way of drafting over the best constant length: seconds per token of the one by those of the other."""
    ratio = lambda rows: live.speedup(measured, "tuned", rows) / live.speedup(measured, "speculative", rows)  # noqa: E731
    n = len(measured["tuned"]["loss"])
    interval = live.bootstrap(ratio, n)
    return {"of": "the best constant length", "ratio": ratio(slice(None)), "interval": interval, "confidence": 0.95}


def verdict(prompts: int, methods: list[dict], comparison: dict) -> str:
    """What the hold-out says, in one sentence."""
    tuned = next(m for m in methods if m["key"] == "tuned")
    low, high = comparison["interval"]
    better = "faster" if low > 1 else "slower" if high < 1 else "not clearly faster or slower"
    return (
        f"On {prompts} held-out prompts {tuned['label']} is {tuned['speedup']:.2f}x as fast as the large model alone, "
        f"whose text it writes; it is {better} than the best constant length (ratio {comparison['ratio']:.3f}, 95 % "
        f"interval {low:.3f} to {high:.3f})."
    )
