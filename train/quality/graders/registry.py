"""The registry of graders: a new grader is a file and a line here.

``--grader NAME`` reads these lines, in the main job and in the experiments. A name with a colon, ``module:function``,
is a function of the user's own (``train.quality.graders.own``).
"""

from dataclasses import dataclass
from pkgutil import resolve_name

from train.data.records import Prompt


@dataclass(frozen=True)
class GraderKind:
    """A line of the registry; it imports nothing.

    What it names takes ``(prompt, reference, text, **fields)`` and returns a score in [0, 1], or None where the prompt
    does not hold what it ``needs``.
    """

    home: str  # module:function, below ``train.quality.graders``
    about: str  # a few words for lists
    needs: str  # what a line of the prompts file must hold, in words
    fields: tuple[str, ...] = ()  # fields of a Prompt that the function takes by name

    def grade(self, prompt: Prompt, text: str) -> float | None:
        """The score of ``text``, an answer to ``prompt``."""
        function = resolve_name(f"train.quality.graders.{self.home}")
        return function(prompt.text, prompt.reference, text, **{name: getattr(prompt, name) for name in self.fields})


TESTS = "`tests` (asserts, or a function check(candidate) and an `entry_point`), or tests in the prompt itself"
GRADERS: dict[str, GraderKind] = {
    "code": GraderKind("python_answers:passes_tests", "Python that passes its tests", TESTS, ("tests", "entry_point")),
    "math": GraderKind("final_number:exact_number", "the last number is right", "a `reference` that holds a number"),
    "choice": GraderKind(
        "multiple_choice:right_choice",
        "the right one is chosen",
        "`choices`, a list of texts, and as `reference` the right one's letter, text or place from 0",
        ("choices",),
    ),
    "chrf": GraderKind("chrf:chrf", "overlap of characters with a reference", "a `reference`"),
    "rouge": GraderKind("rouge:rouge_l", "overlap of words with a reference", "a `reference`"),
    "sql": GraderKind(
        "sql_answers:execution_match",
        "a query that returns the right rows",
        "a query as `reference`, which returns rows of the CREATE TABLE statements in the prompt",
    ),
}
"""Every grader that comes with the project, by the name that ``--grader`` takes."""
