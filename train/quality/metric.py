"""The loss of an answer against the large model's own: guarded regret, or what is lost of a score of its task."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from decoding.models.lm import LM
from decoding.models.settings import end_tokens
from decoding.state.sampling import Sampling
from train.data.records import Prompt
from train.quality.graders.grader import Grader, load_grader
from train.quality.guarded_regret import Score, guarded_regret, score
from train.quality.loops import token_forms
from train.quality.prompt_sessions import PromptSessions
from train.quality.sampled_baseline import SampledBaseline


class Judgement(NamedTuple):
    """What an answer is worth."""

    loss: float  # guarded regret; with a grader the large model's score minus this one's, in [-1, 1]; see ``sampled``
    regret: float  # mean plain regret, nats per token
    guarded: float
    nll: float  # summed negative log-probability under the large model
    score: float | None = None  # of the task, in [0, 1]; None without a grader


@dataclass
class QualityMetric:
    """Judges answers to prompts; ``grader`` is a name for ``load_grader``, None: no grader."""

    large: LM
    grader: str | None = None
    budget: int | None = None
    """most tokens of an answer"""
    sampled: SampledBaseline | None = None
    """where texts are drawn: what the large model's own are worth, from which losses and guarded regrets then count"""
    scores: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)
    """by prompt and answer, kept because a grader may be slow"""
    judged: dict[tuple[str, tuple[int, ...], tuple[int, ...]], Judgement] = field(default_factory=dict)
    """by prompt, answer and reference, kept because exact methods write one text, and timed prompts are read twice"""

    own: dict[str, tuple[float, float]] = field(default_factory=dict)
    """by prompt, at a temperature: guarded regret and score (NaN without a grader) of the large model's own texts"""

    @classmethod
    def of(cls, large: LM, sampling: Sampling, seeds: int, budget: int, grader: str | None = None) -> Self:
        """That of texts of at most ``budget`` tokens which ``sampling`` draws, ``seeds`` of each prompt."""
        sampled = None if sampling.greedy else SampledBaseline(large, sampling, seeds, budget)
        return cls(large, grader, budget, sampled)

    def __post_init__(self) -> None:
        self.grade: Grader | None = None if self.grader is None else load_grader(self.grader)
        self.sessions = None if self.budget is None else PromptSessions.of(self.large, self.budget)

    @property
    def loss_name(self) -> str:
        name = "guarded regret" if self.grader is None else f"score lost ({self.grader})"
        return name if self.sampled is None else f"{name} over the large model's"

    def __call__(self, prompt: Prompt, answer: Sequence[int], reference: Sequence[int]) -> Judgement:
        """The judgement of one answer; ``reference`` is the large model's own, which ``sampled`` has others for."""
        key = prompt.id, tuple(answer), tuple(reference)
        if key not in self.judged:
            self.judged[key] = self._judge(prompt, answer, reference)
        return self.judged[key]

    def _judge(self, prompt: Prompt, answer: Sequence[int], reference: Sequence[int]) -> Judgement:
        references = [reference] if self.sampled is None else self.sampled.texts(prompt)
        read, guarded = self._guarded(prompt, answer, references)
        regret, nll = float(read.regret.mean()), float(-read.logprob.sum())
        if self.sampled is not None:
            guarded -= self._own(prompt)[0]
        if self.grade is None:
            return Judgement(guarded, regret, guarded, nll)
        large = self._score(prompt, reference) if self.sampled is None else self._own(prompt)[1]
        own = self._score(prompt, answer)
        return Judgement(large - own, regret, guarded, nll, own)

    def _guarded(
        self, prompt: Prompt, answer: Sequence[int], references: Sequence[Sequence[int]]
    ) -> tuple[Score, float]:
        """An answer as it was read, once, and the mean of its guarded regrets beside ``references``."""
        (read,) = score(self.large, [prompt.ids], [answer], self.budget, self.sessions)
        ends, forms = end_tokens(self.large), token_forms(self.large.tokenizer)
        guarded = [guarded_regret(read, answer, reference, ends, forms) for reference in references]
        return read, sum(guarded) / len(guarded)

    def _own(self, prompt: Prompt) -> tuple[float, float]:
        if prompt.id not in self.own:
            guarded = self.sampled.own_loss(prompt, lambda text, others: self._guarded(prompt, text, others)[1])
            scores = [math.nan if self.grade is None else self._score(prompt, t) for t in self.sampled.texts(prompt)]
            self.own[prompt.id] = guarded, sum(scores) / len(scores)
        return self.own[prompt.id]

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raise InputError for the first prompt that cannot be graded."""
        if self.grade is not None:
            self.grade.check(prompts)

    def _score(self, prompt: Prompt, answer: Sequence[int]) -> float:
        key = prompt.id, tuple(answer)
        if key not in self.scores:
            text = self.large.tokenizer.decode(list(answer), skip_special_tokens=True)
            self.scores[key] = self.grade(prompt, text)
        return self.scores[key]
