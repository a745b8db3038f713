"""The result of a run: what result.json holds, and its one writer and reader. What does not apply to a run is None."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from train.common import run_folder
from train.common.schema import checked

Interval = list[float]  # [low, high]


@dataclass
class MethodRow:
    """A measured method; intervals are 95 % bootstrap over prompts."""

    key: str
    label: str
    tokens_per_second: float
    speedup: float
    speedup_interval: Interval
    loss: float
    loss_interval: Interval
    length_ratio: float
    total_time_ratio: float
    plain_regret: float
    at_cap: float
    """share of the answers that ran into the length cap: lost answers hide there"""
    large_share: float | None = None
    """share of the tokens that the large model wrote; None for exact methods, in which it judges all"""
    recovered: float | None = None  # share of the gap between the small and the large model's loss; None without a gap
    length: int | None = None  # longest draft, where drafts are all that is tuned
    guarded: float | None = None  # guarded regret, where a grader gives the loss
    guarded_interval: Interval | None = None
    score: float | None = None  # mean score of a grader, in [0, 1]
    score_interval: Interval | None = None
    score_difference: float | None = None  # minus the large model's score, paired by prompt
    score_difference_interval: Interval | None = None


@dataclass
class AgainstRandom:
    """The tuned policy's loss beside that of random hand-off at the same measured speed."""

    random_loss_at_same_speed: float
    difference: float
    interval: Interval
    confidence: float
    bracketed: bool  # whether the two random rates that ran are slower and faster than the policy


@dataclass
class AgainstRival:
    """The tuned decoder's speed over that of another."""

    of: str
    ratio: float
    interval: Interval
    confidence: float


@dataclass
class Candidate:
    """A threshold that was frozen for certification; those after the first that failed are not measured."""

    quantile: float
    replayed_speedup: float
    replayed_loss: float
    pvalue: float | None = None
    upper: float | None = None  # its own upper bound on the mean capped loss
    capped_loss: float | None = None
    loss: float | None = None
    sd: float | None = None  # standard deviation of the capped losses
    above_cap: int | None = None
    priced_speedup: float | None = None
    priced_speedup_interval: Interval | None = None
    large_share: float | None = None


@dataclass
class FamilyLosses:
    """The losses of one family of certification prompts."""

    family: str
    prompts: int
    capped_loss: float
    above_cap: int


@dataclass
class CertificateRecord:
    """A certificate, and everything that it rests on."""

    claim: str
    chosen: int | None  # index of the certified candidate; None when none passed
    budget: float
    confidence: float
    loss_cap: float
    bound: float
    above_cap: float
    level: float
    above_cap_level: float
    prompts: int
    seed: int
    test: str
    candidates: list[Candidate]
    families: list[FamilyLosses]
    assumptions: list[str]


@dataclass
class ReliabilityBin:
    rows: int
    predicted: float
    observed: float


@dataclass
class Reliability:
    """Calibration of predicted risks (``train.evaluation.reliability``)."""

    rows: int
    brier: float
    constant: float
    error: float
    bins: list[ReliabilityBin]


@dataclass
class Replay:
    """Live runs on the tuning prompts over the predictions of replay or prices."""

    live_speedup_over_replayed: float
    live_loss_over_replayed: float | None = None


@dataclass
class FrontPoint:
    """A predicted point of the Pareto front, and the settings that reach it."""

    speedup: float
    loss: float
    params: dict[str, Any]


@dataclass
class Sample:
    """A held-out prompt with the tuned decoder's answer, [[text, writer, risk]], and the large model's own."""

    family: str
    prompt: str
    tokens: list[list[Any]]
    large: str


@dataclass
class Thought:
    """How much of the large model's own answers stands between <think> and </think>."""

    share: float  # of its tokens
    answers: int
    unfinished: int  # how many of them end before the thought does


@dataclass
class Grading:
    """What a grader gave, and how well guarded regret, by which policies are fitted, predicts what it takes off.

    The rank correlations are Spearman's; None where one of the two does not vary.
    """

    grader: str
    failed: int  # prompts with a text at which the grader failed; these score 0
    methods: int
    over_methods: float | None  # of the means of the methods
    texts: int
    over_texts: float | None


@dataclass
class PolicySummary:
    describe: str
    kind: str
    label: str
    threshold: float
    features: list[str]
    quantile: float | None = None
    weights: dict[str, float] | None = None


@dataclass
class SplitSummary:
    prompts: int
    groups: int
    hash: str


@dataclass
class TrialRow:
    number: int
    params: dict[str, Any]
    feasible: bool
    loss: float | None = None
    speedup: float | None = None


@dataclass(kw_only=True)
class Prediction:
    """Everything known of the tuned decoder before the hold-out."""

    replay: Replay
    frontier: dict[str, list[list[float]]]  # predicted curves, each a list of points in the plane of the report
    goal: dict[str, float] = field(default_factory=dict)  # ``Goal.asked``; empty where nothing can be lost
    front: list[FrontPoint] = field(default_factory=list)
    calibration: Reliability | None = None
    decoder: str | None = None  # the decoder in words, where it is more than a policy


@dataclass(kw_only=True)
class Holdout:
    """The measurements on the held-out prompts."""

    methods: list[MethodRow]
    live_over_table: float  # the large model's live seconds over those of the timing table
    samples: list[Sample]
    verdict: str
    timed: int = 0  # how many of the held-out prompts were timed; all have a loss
    thought: Thought | None = None  # None where it does not think
    grading: Grading | None = None  # None without a grader
    comparison: AgainstRandom | None = None
    against: AgainstRival | None = None
    traffic: dict[str, Any] | None = None  # what the tuned policy saw (``train.monitoring.drift.traffic``)
    certificate: CertificateRecord | None = None


@dataclass(kw_only=True)
class Result(Prediction, Holdout):
    """Everything in result.json."""

    name: str
    created: str
    machine: dict[str, Any]
    loss_name: str
    method: str
    plane: list[str]
    threshold_note: str
    models: list[dict[str, Any]]
    policy: PolicySummary
    splits: dict[str, SplitSummary]
    cost: dict[str, dict[int, float]]  # timing table by model: seconds by tokens read
    trials: list[TrialRow]
    pruned: int  # how many trials were given up
    chosen_trial: int
    sampling: dict[str, Any] | None = None  # how texts were drawn; None: greedily
    batch_size: int = 1  # texts that were written at once where speed was measured
    run: str | None = None  # the hash of run.json

    @property
    def chosen(self) -> TrialRow:
        """The trial that the tuned decoder came from."""
        return next(trial for trial in self.trials if trial.number == self.chosen_trial)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without the parts that the run does not have."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def write_result(result: Result, folder: Path) -> None:
    """Write ``folder``/result.json."""
    run_folder.write(folder / "result.json", result.to_json())


def read_result(folder: Path) -> Result:
    """The result of the finished run in ``folder``. FileError when there is none that can be read."""
    path = folder / "result.json"
    return checked(Result, run_folder.read(path), path, run_folder.AGAIN)
