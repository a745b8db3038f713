"""The rows of JSON lines of runs and experiments, a line each; what is only kept for people is not listed."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(kw_only=True)
class JudgedText:
    """A text, who wrote it, and what it is worth."""

    answer: list[int]
    writers: list[int]
    large_share: float
    loss: float
    regret: float
    guarded: float
    score: float | None = None


@dataclass(kw_only=True)
class LiveAnswer(JudgedText):
    """The answer of one decoder to one prompt, timed."""

    tokens: int
    seconds: float
    joules: float | None = None


@dataclass(kw_only=True)
class HoldoutText(JudgedText):
    """A text of one decoder to a held-out prompt, written in a batch (texts.jsonl)."""

    id: str
    method: str
    setting: str
    text: int = 0  # its number among those of the prompt, where texts are drawn


@dataclass
class LiveRow:
    """A prompt of tune.jsonl or holdout.jsonl, and the answers of all decoders that took turns on it."""

    id: str
    setting: str
    methods: dict[str, LiveAnswer]


@dataclass
class ThresholdRow:
    """A threshold at which texts were written (threshold.jsonl)."""

    trial: int
    quantile: float
    speedup: float
    losses: list[float]


@dataclass
class ReferenceRow:
    """The large model's own answer to a certification prompt (certify.jsonl)."""

    id: str
    candidate: Literal["large"]
    answer: list[int]


@dataclass
class CandidateRow:
    """The loss and cost of a candidate on a certification prompt (certify.jsonl)."""

    id: str
    candidate: int
    loss: float
    seconds: float
    tokens: float
    large: float


@dataclass
class GenerationRow:
    """A target's answer that a drafter learns from."""

    prompt_ids: list[int]
    new_ids: list[int]
    temperature: float


@dataclass
class LabelledRow:
    """Sequences whose labels by the target are on disk, and their checksum."""

    sequences: list[int]
    sha256: str


@dataclass
class SelfPromptRow:
    """A prompt that a target wrote itself."""

    prompt: str
    batch: int


@dataclass
class StepRow:
    """A step of the policy gradient, and the state from which the next one goes on."""

    step: int
    reward: float
    objective: float
    violation: float
    multiplier: float
    entropy: float
    gradient: float
    next_multiplier: float
    state: dict[str, list[float] | float]


@dataclass
class TextRow:
    """A text of an experiment, and its loss."""

    id: str
    setting: str
    answer: list[int]
    writers: list[int]
    loss: float
    regret: float


@dataclass
class ComparisonRow:
    """A text of ``experiments/frontier.py``, whose numbers depend on what is compared."""

    prompt: str
    id: str
    answer: list[int]
    writers: list[int]
    target_calls: float
    drafted: float
    verified: float
    text: int = 0  # its number among those of the prompt, where texts are drawn


@dataclass
class TimingRow:
    """The times of all methods on one group of prompts (rows.jsonl)."""

    batch: int
    repeat: int
    prompts: list[str]
    methods: dict[str, dict[str, Any]]
