"""Loads a user's own grader by name: ``module:function`` (prompt, reference, text) -> score in [0, 1], 1 is best."""

import inspect
import pkgutil
import reprlib
import traceback
from collections.abc import Callable

from train.common.cli import InputError

Grader = Callable[[str, str | None, str], float | None]
"""(prompt, reference or None, text to grade) -> score in [0, 1], or None where the prompt cannot be graded"""


def load_grader(name: str) -> Grader:
    """The function that ``name``, ``module:function``, names; its scores are checked at every call.

    Raises InputError, one sentence, when there is no such function or it does not take (prompt, reference, text), and
    when called, for an exception or exit of its own and for a score that is neither None nor a number in [0, 1].
    """
    right = "write module:function, with the module's folder on PYTHONPATH"
    if name.count(":") != 1 or not all(name.split(":")):
        raise InputError(f"the grader {name!r} is not the name of a function; {right}")
    try:
        function = pkgutil.resolve_name(name)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise InputError(f"the grader {name} cannot be loaded ({shown(error)}); {right}") from error
    if inspect.iscoroutinefunction(function):
        raise InputError(f"the grader {name} is a coroutine; it must return its score, as with asyncio.run inside")
    try:
        inspect.signature(function).bind("prompt", "reference", "text")
    except (TypeError, ValueError):
        raise InputError(
            f"the grader {name} does not take three arguments; it must take (prompt, reference, text)"
        ) from None
    return lambda prompt, reference, text: _checked(name, _called(name, function, prompt, reference, text))


def shown(error: BaseException) -> str:
    """An exception of a user's code in words, with its file and line."""
    what = " ".join(f"{type(error).__name__}: {error}".split()) if str(error) else type(error).__name__
    places = traceback.extract_tb(error.__traceback__, limit=-1)
    return f"{what}, in {places[0].filename}, line {places[0].lineno}" if places else what


def _called(name: str, function: Grader, *given):
    try:
        return function(*given)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # an exit of the grader's would end the job as if it were done
        raise InputError(f"the grader {name} failed with {shown(error)}") from error


def _checked(name: str, score) -> float | None:
    try:
        value = None if score is None else float(score)
    except (TypeError, ValueError, OverflowError):
        value = -1.0
    if value is None or 0.0 <= value <= 1.0:
        return value
    raise InputError(
        f"the grader {name} gave {reprlib.repr(score)}; it must give a number from 0 to 1, or None for no score"
    )
