"""Grader of answers that end on a number, however it is written."""

import re
from collections import deque
from fractions import Fraction

SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![.\w])\.\d+"
NUMBER = re.compile(
    r"(?<![A-Za-z\d])(?<!\d\.)(?P<sign>(?<![)\]])[-+](?=\S))?[$€£]?[ ]?(?P<sign2>-)?"
    r"(?:\\[dt]?frac\s?\{(?P<top>\d+)\}\s?\{(?P<under>\d+)\}"
    r"|(?:(?P<whole>\d+)[ \t]+)?(?P<over>\d+)[ ]?/[ ]?(?P<below>\d+)(?!\.?\d|/)"
    rf"|(?P<plain>{PLAIN})(?:e(?P<exponent>[-+]?\d{{1,3}})(?!\w)|\s?(?:[×x*]|\\times)\s?10\^\{{?(?P<power>-?\d{{1,3}})\}}?)?)"
    rf"(?:[ \t]*(?P<percent>\\?%|percent\b))?(?:[ \t]*(?P<scale>{'|'.join(SCALES)})\b)?",
    re.IGNORECASE | re.ASCII,
)
LONGEST = 300
"""most characters of one number: arithmetic on a million digits would hang"""
LATEX = {"\u2212": "-", "\u00a0": "", "\u202f": "", "\\$": "$", "\\!": "", "{,}": ",", "\\,": ""}
BOXED = re.compile(r"\\(?:boxed|fbox)\s?\{")


def number(match: re.Match[str]) -> tuple[Fraction, bool] | None:
    """(value, whether a percent sign follows) of one match of NUMBER; None when it has no value (1/0)."""
    part = match.groupdict()
    if len(match.group()) > LONGEST:
        return None
    top, below = part["top"] or part["over"], part["under"] or part["below"]
    if top:
        if int(below) == 0:
            return None
        value = Fraction(int(top), int(below)) + int(part["whole"] or 0)
    else:
        value = Fraction(part["plain"].replace(",", "")) * Fraction(10) ** int(part["exponent"] or part["power"] or 0)
    value *= SCALES[part["scale"].lower()] if part["scale"] else 1
    negative = "-" in ((part["sign"] or "") + (part["sign2"] or ""))
    return (-value if negative else value), part["percent"] is not None


def final_number(text: str) -> tuple[Fraction, bool] | None:
    """The number an answer ends on: in its last \\boxed{}, else right after its last "####", else its last number."""
    for latex, plain in LATEX.items():
        text = text.replace(latex, plain)
    boxes = list(BOXED.finditer(text))
    if boxes:
        text = _braced(text[boxes[-1].end() :])
    marked = NUMBER.match(text.rpartition("####")[2].lstrip()) if "####" in text else None  # a heading does not count
    last = marked or next(iter(deque(NUMBER.finditer(text), maxlen=1)), None)
    return number(last) if last else None


def _braced(text: str) -> str:
    """``text`` up to the brace that closes the one before it."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return text[:i]
    return text


def same_number(right: tuple[Fraction, bool], given: tuple[Fraction, bool]) -> bool:
    """Equality as numbers. Whole numbers must match exactly, others to 1e-4 of their size, since answers are rounded.

    Where only one of the two has a percent sign, 25 % equals both 25 and 0.25: references drop the sign.
    """
    (wanted, sign), (value, other_sign) = right, given
    options = [(wanted, value)]
    if sign != other_sign:
        options.append((wanted / 100, value) if sign else (wanted, value / 100))
    return any(abs(a - b) <= (0 if a.denominator == 1 else abs(a) / 10_000) for a, b in options)


def exact_number(prompt: str, reference: str | None, text: str) -> float | None:
    """1.0 when the answer ends on the reference's number, else 0.0 (GSM8K, Cobbe et al. 2021).

    None when the reference has no number.
    """
    wanted = None if reference is None else final_number(reference)
    if wanted is None:
        return None
    given = final_number(text)
    return float(given is not None and same_number(wanted, given))
