"""Ctrl-C while the command starts, and a reader of its output that leaves, as ``head`` does: no traceback of either."""

import os
import signal
import sys


def stop_quietly() -> None:
    """Until ``stop_normally``, let Ctrl-C end the process with one line; a pipe that nobody reads always ends it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a parent may have ignored it
        signal.signal(signal.SIGINT, _stop)
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def stop_normally() -> None:
    """Ctrl-C is a KeyboardInterrupt again, so that files which are being written can be cleared away."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_quietly() -> None:
    """All is said: Ctrl-C while Python ends changes nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(*_) -> None:
    print("\nstopped", file=sys.stderr, flush=True)
    os._exit(130)
