"""The process of a user's own grader: started by own.py, never imported, so that nothing a grader does ends the job.

It answers each [prompt, reference, text] with {"score"}, a number in [0, 1] or null, or with {"failed"}, what went
wrong. An alarm ends the process where loading or grading takes longer than it may, also when the job is gone.
"""

import inspect
import json
import os
import pkgutil
import reprlib
import signal
import sys
import traceback
from multiprocessing.connection import Connection

RIGHT = "write module:function, with the module's folder on PYTHONPATH"


def main(descriptor: str, name: str, seconds: str) -> None:
    channel, limit = Connection(int(descriptor)), int(seconds)
    os.dup2(2, 1)  # what a grader prints is shown, and is no answer
    signal.alarm(limit)
    function, wrong = load(name)
    signal.alarm(0)
    channel.send_bytes(json.dumps({"failed": wrong} if wrong else {}).encode())
    while not wrong:
        try:
            given = json.loads(channel.recv_bytes())
        except EOFError:
            return
        signal.alarm(limit)
        reply = graded(function, given)
        signal.alarm(0)
        channel.send_bytes(json.dumps(reply).encode())


def load(name: str):
    """(the function that ``name`` names, what is wrong with it: empty if nothing is)."""
    try:
        function = pkgutil.resolve_name(name)
    except BaseException as error:  # whatever the module does when it is imported
        return None, f"cannot be loaded ({shown(error)}); {RIGHT}"
    if inspect.iscoroutinefunction(function):
        return function, "is a coroutine; it must return its score, as with asyncio.run inside"
    try:
        inspect.signature(function).bind("prompt", "reference", "text")
    except (TypeError, ValueError):
        return function, "does not take three arguments; it must take (prompt, reference, text)"
    return function, ""


def graded(function, given: list) -> dict:
    try:
        score = function(*given)
    except BaseException as error:  # an exit of the grader's too
        return {"failed": f"failed with {shown(error)}"}
    try:
        value = None if score is None else float(score)
    except BaseException:
        value = -1.0
    if value is None or 0.0 <= value <= 1.0:
        return {"score": value}
    return {"failed": f"gave {reprlib.repr(score)}; it must give a number from 0 to 1, or None for no score"}


def shown(error: BaseException) -> str:
    """An exception in words, with its file and line."""
    what = " ".join(f"{type(error).__name__}: {error}".split()) if str(error) else type(error).__name__
    places = traceback.extract_tb(error.__traceback__, limit=-1)
    return f"{what}, in {places[0].filename}, line {places[0].lineno}" if places else what


if __name__ == "__main__":
    main(*sys.argv[1:])
