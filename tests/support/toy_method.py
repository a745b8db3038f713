"""A tuning method of one parameter, found by name as those in train/methods are."""

from policies import Rule
from policies.decoder_spec import DecoderSpec
from train.common.job import Tuned
from train.common.result import Holdout, Prediction, Replay
from train.evaluation.holdout import Contender, controls, measure
from train.methods.base import TuningMethod


class ToySearch:
    def baselines(self):
        return [{"threshold": 1.0}]

    def __call__(self, trial):
        return abs(trial.suggest_float("threshold", 0.0, 4.0) - 2.0)


class ToyMethod(TuningMethod):
    """Looks for an entropy of 2 nats, and measures the small model in its place."""

    threshold_note = "a toy stops."
    label = "nothing"

    def __init__(self, job):
        self.job, self.search = job, ToySearch()

    def tune(self, study):
        return Tuned(Rule("entropy", study.best_params["threshold"]), DecoderSpec(), study.best_trial.number, None)

    def measure_holdout(self, tuned) -> Holdout:
        alone = controls(self.job)
        found = measure(self.job, alone | {"tuned": Contender("toy", alone["small"].decoder)}, tuned.policy, "toy")
        return found.holdout("the toy", "", "and that is all")

    def predicted(self, tuned) -> Prediction:
        return Prediction(replay=Replay(1.0), frontier={"toy": [[1.0, 0.0]]}, goal=self.job.goal.asked())

    def provenance(self, tuned):
        return super().provenance(tuned) | {"toy": True}
