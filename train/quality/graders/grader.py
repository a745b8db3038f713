"""A grader by its name: prompts are checked before work; what fails later costs its prompt and never the run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from train.common.cli import InputError
from train.common.progress import say
from train.data.records import Prompt
from train.quality.graders.own import GraderFailed, OwnGrader
from train.quality.graders.registry import GRADERS


@dataclass
class Grader:
    """Scores texts in [0, 1]; a text at which the grader fails scores 0, as a broken answer may be what breaks it."""

    name: str
    grade: Callable[[Prompt, str], float | None]
    """None: the prompt does not hold what the grader needs"""
    needs: str | None = None
    """what a prompt must hold, in words; None where only the function knows"""
    failed: set[str] = field(default_factory=set)
    """ids of the prompts that lost an answer to a failure"""

    def check(self, prompts: Iterable[Prompt]) -> None:
        """InputError, one sentence, for the first prompt that cannot be graded, and for a grader that always fails."""
        prompts, failures = list(prompts), []
        for prompt in prompts:
            score, why = self._graded(prompt, "")
            if why is not None:
                failures.append(f"the grader {self.name} {why} (prompt {prompt.id}, the empty answer)")
                if "took more than" in why:  # on the others too, as likely as not
                    raise InputError(failures[-1])
            elif score is None:
                raise InputError(self._refusal(prompt))
        if failures and len(failures) == len(prompts):
            raise InputError(failures[0])

    def _refusal(self, prompt: Prompt) -> str:
        if self.needs is None:
            return f"the grader {self.name} gives no score to the prompt {prompt.id}; leave it out"
        return f"{prompt.where or f'prompt {prompt.id}'}: --grader {self.name} needs {self.needs}"

    def __call__(self, prompt: Prompt, text: str) -> float:
        score, why = self._graded(prompt, text)
        if score is None:
            why = why or "gives no score"
            self._say_once(f"the grader {self.name} {why} (prompt {prompt.id}); texts at which it fails score 0")
            self.failed.add(prompt.id)
        return 0.0 if score is None else score

    def _graded(self, prompt: Prompt, text: str) -> tuple[float | None, str | None]:
        """(score, why there is none: None where the grader says so itself). InputError where the machine lacks it."""
        try:
            return self.grade(prompt, text), None
        except InputError:
            raise
        except GraderFailed as error:
            return None, str(error)
        except Exception as error:
            return None, f"failed with {error!r:.200}"

    def _say_once(self, sentence: str) -> None:
        if not self.failed:
            say(sentence, style="bold")


def load_grader(name: str) -> Grader:
    """The grader ``name``, of ``GRADERS`` or ``module:function``. InputError, one sentence, when there is none."""
    if name in GRADERS:
        return Grader(name, GRADERS[name].grade, GRADERS[name].needs)
    if ":" not in name:
        raise InputError(
            f"the grader {name!r} is unknown; it is one of {', '.join(GRADERS)}, or module:function of your own, with "
            "the module's folder on PYTHONPATH"
        )
    return Grader(name, OwnGrader(name))
