"""The main job for ``--method hybrid``: stop, draft length and leniency of one decoder, at a goal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial

from decoding import MTAD, Autoregressive, Backoff, Speculative
from decoding.decoders.from_spec import build_decoder
from policies import Policy, Rule
from policies.decoder_spec import EXACT, DecoderSpec
from train.common.preparation import Job, console
from train.evaluation import holdout, live
from train.evaluation.live_tuning import LEAST_SPEEDUP
from train.methods.backoff import FALLBACK
from train.methods.speculative import search_stops
from train.search import leniency
from train.search.backoff import pareto
from train.search.hybrid import BEAMS, CHAIN, EXACT_TREE, MTAD_DEFAULT, TREE, HybridSearch
from train.search.recipes import make
from train.search.study import complete, finalists, pruned

CONTROLS = ("speculative", "mtad", "mmtad", "bild", "leniency", "stop", "tree")
"""What one decision, or a published pair of two, is worth."""
MTADS = {"mtad": BEAMS, "mmtad": TREE}


@dataclass
class TunedDecoder:
    """A stop and the role it has, the trial they came from, and how live runs compared with its price."""

    policy: Policy
    role: DecoderSpec
    trial: int
    quantile: float | None
    faster: float

    def decoder(self, models):
        return build_decoder(models, self.policy, self.role)


class HybridRun:
    """What the job asks of a method (``train.pipeline.METHODS``)."""

    label = "rejection"

    def __init__(self, job: Job):
        self.job, self.models = job, [job.small, job.large]
        self.search = HybridSearch(search_stops(job), self.models, job.splits["tune"], job.goal, job.judge)

    def tune(self, study) -> TunedDecoder | None:
        """The best trial once live runs of three on the tuning prompts have corrected the priced speeds; None, and a
        word about it, when none then meets the goal. A price leaves out what is done beside the forwards."""
        job, tried = self.job, finalists(study, 3)
        self.trials, self.pruned = complete(study), pruned(study)
        decoders = {live.LARGE: Autoregressive(job.large)}
        decoders |= {_name(trial): self._option(trial).decoder(self.models) for trial in tried}
        path = job.folder / "tune.jsonl"
        measured = live.measure(
            decoders, job.splits["tune"], job.config.max_new_tokens, job.judge, path, "live, tuning"
        )
        faster = {trial.number: self._faster(trial, measured) for trial in tried}
        return self._best(faster)

    def _faster(self, trial: FrozenTrial, measured: dict) -> np.ndarray:
        """[prompts] live over priced speedup. Both models' texts are those that were priced, so seconds say it all."""
        name, priced = _name(trial), trial.user_attrs
        large = measured[live.LARGE]["seconds"] / self.search.alone["seconds"]
        found = large * priced["seconds"] / measured[name]["seconds"]
        console.print(
            f"{name}: priced {priced['speedup']:.3f}x, live {live.speedup(measured, name):.3f}x, per prompt "
            f"{np.median(found):.3f} times the price, at loss {priced['loss']:.4f}"
        )
        return found

    def _best(self, faster: dict[int, np.ndarray]) -> TunedDecoder | None:
        """The trial that meets the goal best when its speed is corrected, by its own live run or by what is usual.

        By medians over prompts: sums would let the few prompts decide during which the machine was busy.
        """
        goal, usual, options = self.job.goal, float(np.median(np.concatenate([*faster.values()]))), []
        for trial in self.trials:
            ratio = float(np.median(faster.get(trial.number, usual)))
            speed, loss = trial.user_attrs["speedup"] * ratio, trial.user_attrs["loss"]
            if goal.violation(speed, loss) <= 0 and (goal.budget is None or speed >= LEAST_SPEEDUP):
                options.append((goal.value(speed, loss), trial.number, ratio, trial))
        if not options:
            console.print(f"[bold]{self._unreachable(usual)}[/bold]")
            return None
        _, _, ratio, trial = min(options)
        return self._option(trial, ratio)

    def _option(self, trial: FrozenTrial, faster: float = 1.0) -> TunedDecoder:
        stop, role = self.search.stop(trial.params), self.search.role(trial.params)
        return TunedDecoder(stop, role, trial.number, trial.params.get("quantile"), faster)

    def _unreachable(self, usual: float) -> str:
        goal = self.job.goal
        if goal.budget is not None:
            return f"a loss of {goal.budget:g} allows no speedup over {LEAST_SPEEDUP:g}x with this pair: {FALLBACK}"
        fastest = usual * max(trial.user_attrs["speedup"] for trial in self.trials)
        return (
            f"no trial reached {goal.speedup:g}x: the fastest is about {fastest:.2f}x as fast as the large model alone "
            f"on this machine; try more --trials or a longer --longest, or {FALLBACK}"
        )

    def predicted(self, chosen: TunedDecoder) -> dict:
        """What the prices say of it, and of all that was tried."""
        front = pareto(
            {name: trial.user_attrs[name] for name in ("speedup", "loss")} | {"params": trial.params}
            for trial in self.trials
        )
        return {
            "front": front if self.job.config.frontier else [],
            "goal": self.job.goal.asked(),
            "decoder": described(chosen),
            "replay": {"live_speedup_over_replayed": chosen.faster},
            "frontier": {"front": [[point["speedup"], point["loss"]] for point in front]},
        }

    def provenance(self, chosen: TunedDecoder) -> dict:
        """What a decoder has to know besides the policy (``policies.decoder_spec``)."""
        role = chosen.role._asdict()
        return {"role": role.pop("name")} | role

    def measure_holdout(self, chosen: TunedDecoder) -> dict:
        """Measure the tuned decoder and its controls on the held-out prompts; the rest of the result."""
        job, singles = self.job, self._singles(chosen)
        length = self.search.stops.constant()
        decoders = {
            live.LARGE: Autoregressive(job.large),
            "small": Backoff(self.models, Rule.never(), verify_eos=False),
            "speculative": Speculative(self.models, length),
            **self._published(),
            **{key: option.decoder(self.models) for key, option in singles.items()},
            "tuned": chosen.decoder(self.models),
        }
        labels = {
            live.LARGE: "large model alone",
            "small": "small model alone",
            "speculative": f"speculative, best constant length {length}",
            **{
                key: f"{key.upper()}, {{beams}} beams of {{length}}, tau {{tau}}".format(**MTAD_DEFAULT)
                for key in MTADS
            },
            "bild": "BiLD, fallback 0.6, rollback 5",
            **{key: f"best {key} alone: {described(option)}" for key, option in singles.items()},
            "tuned": f"tuned: {described(chosen)}",
        }
        trials = [f"{key} {option.trial}" for key, option in {"tuned": chosen, **singles}.items()]
        setting = f"{', '.join(trials)}, length {length}"
        exact = {"speculative", "stop", "tree"} | ({"tuned"} if chosen.role.accept == EXACT else set())
        measured, rows, result = holdout.measure(job, decoders, labels, chosen.policy, setting, exact)
        comparison = against_single(measured, labels)
        return result | {"against": comparison, "verdict": verdict(len(rows), result["methods"], comparison)}

    def _published(self) -> dict:
        """What is published at its papers' settings; of beams only what the models can read."""
        beams = {key: draft for key, draft in MTADS.items() if draft in self.search.beams}
        published = {key: MTAD(self.models, **MTAD_DEFAULT, tree=draft == TREE) for key, draft in beams.items()}
        return published | {"bild": make("bild", self.models)}

    def _singles(self, chosen: TunedDecoder) -> dict[str, TunedDecoder]:
        """The best trial with a constant length and any leniency, of any stop accepted exactly, and of trees accepted
        exactly; none that is the chosen one. As controls the pruned count too, by what was seen of them: their rivals
        pruned them."""
        trials = sorted([*self.trials, *self.pruned], key=self._short_of_goal)
        chains = [trial for trial in trials if trial.params["draft"] == CHAIN]
        constant = lambda trial: trial.params["stop"] == "constant"  # noqa: E731
        exact = lambda trial: trial.params["accept"] == leniency.EXACT  # noqa: E731
        kinds = {
            "leniency": [t for t in chains if constant(t) and not exact(t)],
            "stop": [t for t in chains if exact(t) and not constant(t)],
            "tree": [t for t in trials if t.params["draft"] == EXACT_TREE],
        }
        return {key: self._option(ts[0]) for key, ts in kinds.items() if ts and ts[0].number != chosen.trial}

    def _short_of_goal(self, trial: FrozenTrial) -> tuple[float, float]:
        """What sorts trials, the best first."""
        goal, point = self.job.goal, [trial.user_attrs[name] for name in ("speedup", "loss")]
        return max(0.0, goal.violation(*point)), goal.value(*point)


def _name(trial: FrozenTrial) -> str:
    return f"trial {trial.number}"


def described(option: TunedDecoder) -> str:
    """What a reader calls a decoder."""
    role = option.role
    name, *settings = role.accept.values()
    numbers = ", ".join(f"{value:.3g}" for value in settings if isinstance(value, float))
    if role.beams > 1 and role.accept == EXACT:
        return f"SpecInfer, exact, {role.beams} branches of {role.length}"
    if role.beams > 1:
        return f"{role.method.upper()}, {role.beams} beams of {role.length}, tau {numbers}"
    stop = "constant length" if option.policy.kind == "never" else f"{option.policy.kind} stop, at most"
    return f"{stop} {role.length}, {' '.join([name, *([numbers] if numbers else [])])}"


def against_single(measured: dict, labels: dict[str, str]) -> dict:
    """The tuned decoder over the fastest of ``CONTROLS`` that loses no more: seconds per token of the latter by those
    of the former. That it is picked on the prompts that are measured is to its advantage."""
    lost = lambda key: float(measured[key]["loss"].mean())  # noqa: E731
    rivals = [key for key in CONTROLS if key in measured and lost(key) <= lost("tuned")]
    best = max([*rivals, live.LARGE], key=lambda key: live.speedup(measured, key))
    ratio = lambda rows: live.speedup(measured, "tuned", rows) / live.speedup(measured, best, rows)  # noqa: E731
    interval = live.bootstrap(ratio, len(measured["tuned"]["loss"]))
    return {"of": labels[best], "ratio": ratio(slice(None)), "interval": interval, "confidence": 0.95}


def verdict(prompts: int, methods: list[dict], comparison: dict) -> str:
    """What the hold-out says, in one sentence."""
    tuned = next(m for m in methods if m["key"] == "tuned")
    low, high = comparison["interval"]
    better = "faster" if low > 1 else "slower" if high < 1 else "not clearly faster or slower"
    return (
        f"On {prompts} held-out prompts the decoder that was tuned as a whole "
        f"({tuned['label'].removeprefix('tuned: ')}) is {tuned['speedup']:.2f}x as fast as the large model alone at a "
        f"loss of {tuned['loss']:.3f}; it is {better} than the fastest other that loses no more, {comparison['of']} "
        f"(ratio {comparison['ratio']:.3f}, 95 % interval {low:.3f} to {high:.3f})."
    )
