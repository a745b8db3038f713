"""The grader of each family of the embedded prompts."""

from train.data.records import Prompt
from train.quality.graders.registry import GRADERS

FAMILIES = {
    "math": "math",
    "code": "code",
    "sql": "sql",
    "translation": "chrf",
    "factual_qa": "chrf",  # recall counts twice: references are short, answers are sentences
    "context_qa": "rouge",
    "summarization": "rouge",
}
"""The grader of each family of prompts; others (chat, writing, roleplay, ...) have no right answer."""


def grade(prompt: Prompt, text: str) -> float | None:
    """The score of an answer by the grader of the prompt's family; None where no grader applies."""
    name = FAMILIES.get(prompt.family)
    return None if name is None else GRADERS[name].grade(prompt, text)
