"""The loss of an answer against the large model's own: guarded regret, or the difference of a user's grades."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from decoding.models.lm import LM
from decoding.models.settings import end_tokens
from train.common.cli import InputError
from train.data.prompts import Prompt
from train.quality.graders.own import load_grader
from train.quality.guarded_regret import guarded_regret, score
from train.quality.loops import token_forms


@dataclass
class QualityMetric:
    """Measures answers to prompts; ``grader`` is a name for ``train.quality.graders.own.load_grader``, None: no grader.

    With a grader the loss is signed: the score of the large model's own answer minus that of this one, in [-1, 1].
    """

    large: LM
    grader: str | None = None
    budget: int | None = None
    """most tokens of an answer"""
    scores: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)
    """by prompt and answer, kept because a grader may be slow"""

    def __post_init__(self) -> None:
        self.grade = None if self.grader is None else load_grader(self.grader)

    @property
    def loss_name(self) -> str:
        return "guarded regret" if self.grader is None else f"score lost ({self.grader})"

    def __call__(self, prompt: Prompt, answer: Sequence[int], reference: Sequence[int]) -> tuple[float, float]:
        """(loss, mean plain regret) of one answer; ``reference`` is the large model's own."""
        (scored,) = score(self.large, [prompt.ids], [answer], self.budget)
        if self.grade is None:
            loss = guarded_regret(scored, answer, reference, end_tokens(self.large), token_forms(self.large.tokenizer))
        else:
            loss = self._score(prompt, reference) - self._score(prompt, answer)
        return loss, float(scored.regret.mean())

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raise InputError for the first prompt to which the grader gives no score, or at which it fails."""
        for prompt in prompts if self.grade is not None else ():
            self._score(prompt, ())

    def _score(self, prompt: Prompt, answer: Sequence[int]) -> float:
        key = prompt.id, tuple(answer)
        if key not in self.scores:
            text = self.large.tokenizer.decode(list(answer), skip_special_tokens=True)
            try:
                points = self.grade(prompt.text, prompt.reference, text)
            except InputError as error:
                raise InputError(f"{error} (prompt {prompt.id}; what was done so far is kept)") from error
            if points is None:
                raise InputError(f"the grader {self.grader} gives no score to the prompt {prompt.id}; leave it out")
            self.scores[key] = points
        return self.scores[key]
