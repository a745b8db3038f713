"""Loads a user's own grader by name: ``module:function`` (prompt, reference, text) -> score in [0, 1], 1 is best."""

import inspect
import pkgutil
from collections.abc import Callable

from train.common.cli import InputError

Grader = Callable[[str, str | None, str], float | None]
"""(prompt, reference or None, text to grade) -> score in [0, 1], or None where the prompt cannot be graded"""


def load_grader(name: str) -> Grader:
    """The function that ``name``, ``module:function``, names; its scores are checked at every call.

    Raises InputError, one sentence, when there is no such function or it does not take (prompt, reference, text), and
    when called, for a score that is neither None nor a number in [0, 1].
    """
    right = "write module:function, with the module's folder on PYTHONPATH"
    if name.count(":") != 1 or not all(name.split(":")):
        raise InputError(f"the grader {name!r} is not the name of a function; {right}")
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"the grader {name} cannot be loaded ({error}); {right}") from error
    try:
        inspect.signature(function).bind("prompt", "reference", "text")
    except (TypeError, ValueError):
        raise InputError(
            f"the grader {name} does not take three arguments; it must take (prompt, reference, text)"
        ) from None
    return lambda prompt, reference, text: _checked(name, function(prompt, reference, text))


def _checked(name: str, score) -> float | None:
    try:
        value = None if score is None else float(score)
    except (TypeError, ValueError):
        value = -1.0
    if value is None or 0.0 <= value <= 1.0:
        return value
    raise InputError(f"the grader {name} gave {score!r}; it must give a number from 0 to 1, or None for no score")
