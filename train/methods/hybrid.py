"""A whole decoder as a tuning method: the stop, the draft length and the leniency, together at a goal."""

import numpy as np
from optuna.trial import FrozenTrial

from decoding.decoders.registry import decoder_kind
from policies.decoder_spec import EXACT, DecoderSpec
from train.common.job import Job, Tuned
from train.common.progress import say
from train.common.result import AgainstRival, FrontPoint, Holdout, Prediction, Replay
from train.evaluation import live
from train.evaluation.holdout import Contender, controls, measure
from train.evaluation.rivals import against_rival, beside_rival
from train.methods.base import FALLBACK, TuningMethod, no_speedup
from train.methods.speculative import SpeculativeMethod, constant, draft_of, search_stops
from train.search import leniency
from train.search.goal import LEAST_SPEEDUP, pareto
from train.search.hybrid import BEAMS, CHAIN, EXACT_TREE, MTAD_DEFAULT, TREE, HybridSearch
from train.search.recipes import make
from train.search.study import complete, finalists, pruned
from train.workers.blueprint import Blueprint

CONTROLS = ("speculative", "mtad", "mmtad", "bild", "leniency", "stop", "tree")
"""Controls: one decision alone, or a published pair of two."""
MTADS = {"mtad": BEAMS, "mmtad": TREE}


class HybridMethod(TuningMethod):
    """Searches stops, lengths and acceptance rules at once: a trial decodes the tuning prompts, priced by the table."""

    threshold_note = "a draft ends."
    label = "rejection"
    least, draws = SpeculativeMethod.least, True
    check_traces = SpeculativeMethod.check_traces

    def __init__(self, job: Job):
        self.job = job
        what = search_stops(job), job.models, job.splits["tune"], job.goal, job.metric
        self.search = HybridSearch(*what, job.sampling, job.seeds)

    def tune(self, study) -> Tuned | None:
        """The best trial once live runs of three have corrected the priced speeds, which are of the forwards alone."""
        tried = finalists(study, 3)
        self.trials, self.pruned = complete(study), pruned(study)
        measured = live.on_tuning(self.job, [self._option(trial) for trial in tried])
        return self._best({trial.number: self._faster(trial, measured) for trial in tried})

    def _faster(self, trial: FrozenTrial, measured: dict) -> np.ndarray:
        """[prompts] live over priced speedup, by seconds a token: texts that are drawn need not be those priced."""
        name, priced, alone = f"trial {trial.number}", trial.user_attrs, self.search.alone
        large, own = (one["seconds"] / one["tokens"] for one in (measured[live.LARGE], measured[name]))
        found = large / (alone["seconds"] / alone["tokens"]) * np.array(priced["seconds_a_token"]) / own
        say(
            f"{name}: priced {priced['speedup']:.3f}x, live {live.speedup(measured, name):.3f}x, per prompt "
            f"{np.median(found):.3f} times the price, at loss {priced['loss']:.4f}"
        )
        return found

    def _best(self, faster: dict[int, np.ndarray]) -> Tuned | None:
        """The trial that meets the goal best when its speed is corrected, by its own live run or by what is usual."""
        # Medians over prompts: sums would let the few prompts decide during which the machine was busy.
        goal, usual, options = self.job.goal, float(np.median(np.concatenate([*faster.values()]))), []
        for trial in self.trials:
            ratio = float(np.median(faster.get(trial.number, usual)))
            speed, loss = trial.user_attrs["speedup"] * ratio, trial.user_attrs["loss"]
            if goal.violation(speed, loss) <= 0 and (goal.budget is None or speed >= LEAST_SPEEDUP):
                options.append((goal.value(speed, loss), trial.number, ratio, trial))
        if not options:
            say(self._unreachable(usual), style="bold")
            return None
        _, _, ratio, trial = min(options)
        return self._option(trial, ratio)

    def _option(self, trial: FrozenTrial, faster: float = 1.0) -> Tuned:
        stop, spec = self.search.stop(trial.params), self.search.spec(trial.params)
        return Tuned(stop, spec, trial.number, trial.params.get("quantile"), faster)

    def _unreachable(self, usual: float) -> str:
        goal = self.job.goal
        if goal.budget is not None:
            return no_speedup(goal)
        fastest = usual * max(trial.user_attrs["speedup"] for trial in self.trials)
        return (
            f"no trial reached {goal.speedup:g}x: the fastest is about {fastest:.2f}x as fast as the large model alone "
            f"on this machine; try more --trials or a longer --longest, or {FALLBACK}"
        )

    def measure_holdout(self, tuned: Tuned) -> Holdout:
        """Measure ``tuned`` beside the published methods and the best that decides one thing alone."""
        length, singles = self.search.stops.constant(), self._singles(tuned)
        chain = constant(self.job.models, length)
        contenders = controls(self.job) | {
            "speculative": Contender.made(f"speculative, best constant length {length}", chain, exact=True),
            **self._published(),
            **{key: self._contender(f"best {key} alone", one) for key, one in singles.items()},
            "tuned": self._contender("tuned", tuned),
        }
        trials = [f"{key} {option.trial}" for key, option in {"tuned": tuned, **singles}.items()]
        found = measure(self.job, contenders, tuned.policy, f"{', '.join(trials)}, length {length}")
        against = against_single(found.texts, found.timed, {key: one.label for key, one in contenders.items()})
        return found.holdout(
            f"the decoder that was tuned as a whole ({described(tuned)})",
            f" at a loss of {found.tuned.loss:.3f}",
            beside_rival(against, f"the fastest other that loses no more, {against.of}"),
            against=against,
        )

    def _contender(self, title: str, option: Tuned) -> Contender:
        return Contender.made(f"{title}: {described(option)}", option.blueprint(self.job.models), is_exact(option.spec))

    def _published(self) -> dict[str, Contender]:
        """Published methods at their papers' settings; of those with beams, what the models can read."""
        models, size = self.job.models, "{beams} beams of {length}, tau {tau}".format(**MTAD_DEFAULT)
        published = {
            key: Contender.made(f"{key.upper()}, {size}", Blueprint.of(models, DecoderSpec(key, MTAD_DEFAULT)))
            for key, draft in MTADS.items()
            if draft in self.search.beams
        }
        return published | {"bild": Contender("BiLD, fallback 0.6, rollback 5", make("bild", models))}

    def predicted(self, tuned: Tuned) -> Prediction:
        """The priced results of ``tuned`` and of all trials."""
        front = pareto(
            {name: trial.user_attrs[name] for name in ("speedup", "loss")} | {"params": trial.params}
            for trial in self.trials
        )
        return Prediction(
            goal=self.job.goal.asked(),
            replay=Replay(tuned.faster),
            front=[FrontPoint(**point) for point in front] if self.job.settings.frontier else [],
            frontier={"front": [[point["speedup"], point["loss"]] for point in front]},
            decoder=described(tuned),
        )

    def _singles(self, tuned: Tuned) -> dict[str, Tuned]:
        """The best trial with a constant length and any leniency, of any stop accepted exactly, and of trees accepted
        exactly; none that is the tuned one. As controls the pruned count too, by what was seen of them: their rivals
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
        return {key: self._option(ts[0]) for key, ts in kinds.items() if ts and ts[0].number != tuned.trial}

    def _short_of_goal(self, trial: FrozenTrial) -> tuple[float, float]:
        """The sort key of trials, the best first."""
        goal, point = self.job.goal, [trial.user_attrs[name] for name in ("speedup", "loss")]
        return max(0.0, goal.violation(*point)), goal.value(*point)


def described(option: Tuned) -> str:
    """The name of a decoder in tables."""
    name, settings = option.spec.name, option.spec.settings
    size = f"{settings.get('beams')} {{}} of {settings['length']}"
    if name == "specinfer":
        return f"SpecInfer, exact, {size.format('branches')}"
    if name in MTADS:
        return f"{name.upper()}, {size.format('beams')}, tau {settings['tau']:.3g}"
    rule = settings.get("accept", EXACT)
    numbers = [f"{value:.3g}" for value in rule.values() if isinstance(value, float)]
    return f"{draft_of(option)}, {' '.join([rule['name'], *numbers])}"


def is_exact(spec: DecoderSpec) -> bool:
    """Whether the decoder writes what the large model would."""
    return decoder_kind(spec.name).lossless and spec.settings.get("accept", EXACT) == EXACT


def against_single(texts: dict, timed: dict, labels: dict[str, str]) -> AgainstRival:
    """The tuned decoder beside the fastest of ``CONTROLS`` that loses no more.

    That the rival is picked on the prompts that are measured is to its advantage.
    """
    lost = lambda key: float(texts[key]["loss"].mean())  # noqa: E731
    rivals = [key for key in CONTROLS if key in texts and lost(key) <= lost("tuned")]
    best = max([*rivals, live.LARGE], key=lambda key: live.speedup(timed, key))
    return against_rival(timed, best, labels[best])
