"""The grader of each family of prompts, and the graders by name."""

from experiments.answer_numbers import exact_number
from experiments.grading.overlap import chrf, rouge_l
from experiments.grading.python_answers import passes_tests
from experiments.grading.sql_answers import execution_match
from train.data.prompts import Prompt
from train.quality.graders import Grader

GRADERS: dict[str, Grader] = {
    "number": exact_number,
    "code": passes_tests,
    "sql": execution_match,
    "chrf": chrf,
    "rouge_l": rouge_l,
}
FAMILIES = {
    "math": "number",
    "code": "code",
    "sql": "sql",
    "translation": "chrf",
    "factual_qa": "chrf",  # recall counts twice: references are short, answers are sentences
    "context_qa": "rouge_l",
    "summarization": "rouge_l",
}
"""The grader of each family of prompts; others (chat, writing, roleplay, ...) have no right answer."""


def grade(prompt: Prompt, text: str) -> float | None:
    """The score of an answer by the grader of the prompt's family; None where no grader applies."""
    name = FAMILIES.get(prompt.family)
    return None if name is None else GRADERS[name](prompt.text, prompt.reference, text)
