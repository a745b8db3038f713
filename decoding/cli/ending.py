"""Where every command ends: what its user can mend is one sentence, a stop one line; our faults keep a traceback."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

from decoding.cli.stopping import stop_normally, stopped
from decoding.cli.terminal import drop_unwritten, escape_what_cannot_be_encoded, unread, visible

OURS = "This is a fault of the program, not of what you gave it: please report it with the lines above."


def ending(name: str, job: Callable[[], int], wrong: Callable[[Exception], bool], folder: Path | None = None) -> int:
    """The exit code of a command: that of ``job()``, 2 after one sentence on what the user can mend, 130 after a stop,
    141 and not a word where the reader of standard output has gone, as a shell says of what SIGPIPE has ended.

    wrong: whether an exception is the user's to mend; another one is raised again. folder: where a job that can
    continue keeps its work.
    """
    escape_what_cannot_be_encoded()
    script = stop_normally()
    try:
        code = job()
        print(end="", flush=True)  # what cannot be written is an error here, and not as Python ends
        return code
    except (KeyboardInterrupt, Exception) as error:
        if stopped(error):
            print("\nstopped" + (f"; the same command goes on from {folder}" if folder else ""), file=sys.stderr)
            return 130
        if isinstance(error, BrokenPipeError) and unread():
            return 141
        if not wrong(error):
            error.add_note(OURS)
            raise
        print(f"{name}: {visible(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    finally:
        drop_unwritten()
        if script:  # all is said: Ctrl-C while Python ends changes nothing
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def mendable(error: Exception) -> bool:
    """Whether the user can mend it: the packages decoding and policies raise ValueError for wrong input alone."""
    return isinstance(error, ValueError | OSError | FloatingPointError)
