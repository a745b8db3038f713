"""Grader of multiple choice: the option that an answer settles on."""

import re
from collections.abc import Sequence

BOXED = re.compile(r"\\boxed\s?\{\s*(?:\\text\s?\{)?\(?([A-Z])\)?\s*\}")
SAID = re.compile(r"(?i:\b(?:answer|option|choice)\b(?:\s+is)?)\s*[:=]?\s*[*_`\"']*\(?([A-Z])\b(?!['’])")
FIRST = re.compile(r"\W*([A-Z])(?:[).:,\]]|\W*(?:\n|\Z))")
BRACKETED = re.compile(r"\(([A-Z])\)")


def right_choice(prompt: str, reference: str | None, text: str, choices: Sequence[str] | None = None) -> float | None:
    """1.0 when the answer settles on the option that ``reference`` names (its text, letter, or place from 0), else 0.0.

    None without choices, or when the reference names none of them.
    """
    right = None if reference is None or not choices else _named(reference, choices)
    return None if right is None else float(chosen(text, choices) == right)


def chosen(text: str, choices: Sequence[str]) -> int | None:
    """The place of the option that an answer settles on, None where it settles on none or cannot be understood.

    In this order: the last letter in a \\boxed{}, the last letter after "answer", "option" or "choice", the letter that
    the text begins with, the only option whose text is in the answer, and the last letter in parentheses.
    """
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    known = lambda found: [letters.index(letter) for letter in found if letter in letters]  # noqa: E731
    for some in (BOXED.findall(text), SAID.findall(text), FIRST.match(text)):
        places = known([some[1]] if isinstance(some, re.Match) else some or [])
        if places:
            return places[-1]
    mentioned = _mentioned(text, choices)
    if len(mentioned) == 1:
        return mentioned[0]
    return next(reversed(known(BRACKETED.findall(text))), None)


def _mentioned(text: str, choices: Sequence[str]) -> list[int]:
    """Places of the options whose text is in ``text``, but for those that are part of a longer one that is."""
    said = _plain(text)
    there = [i for i, choice in enumerate(choices) if re.search(rf"(?<!\w){re.escape(_plain(choice))}(?!\w)", said)]
    inside = lambda i, j: i != j and _plain(choices[i]) in _plain(choices[j])  # noqa: E731
    return [i for i in there if not any(inside(i, j) for j in there)]


def _named(reference: str, choices: Sequence[str]) -> int | None:
    named, texts = reference.strip(), [_plain(choice) for choice in choices]
    if _plain(named) in texts:
        return texts.index(_plain(named))
    letter = named.strip("().").upper()
    if len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(choices):
        return ord(letter) - ord("A")
    return int(named) if named.isdecimal() and named.isascii() and int(named[:9]) < len(choices) else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .")
