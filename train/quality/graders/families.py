"""The grader of each family of prompts, and the graders by name."""

from train.data.prompts import Prompt
from train.quality.graders.final_number import exact_number
from train.quality.graders.overlap import chrf, rouge_l
from train.quality.graders.own import Grader
from train.quality.graders.python_answers import passes_tests
from train.quality.graders.sql_answers import execution_match

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
