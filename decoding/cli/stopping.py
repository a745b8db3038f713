"""Ctrl-C while a command starts, and a reader of its output that leaves, as ``head`` does: no traceback of either.

A command imports this before all else, so it imports next to nothing.
"""

import os
import signal
import sys


def stop_quietly() -> None:
    """Until ``stop_normally``, let Ctrl-C end the process with one line: modules turn it into errors of their own.

    Until then a pipe that nobody reads ends it without a word, which is for --help; later an engine's pipe may break.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a parent may have ignored it
        signal.signal(signal.SIGINT, _stop)
    if hasattr(signal, "pthread_sigmask"):  # a command that started itself again let it wait
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def stop_normally() -> bool:
    """Undo ``stop_quietly``: Ctrl-C is a KeyboardInterrupt again, and a broken pipe an error. True if it was quiet."""
    quiet = signal.getsignal(signal.SIGINT) is _stop
    if quiet:
        signal.signal(signal.SIGINT, _interrupt)
    if hasattr(signal, "SIGPIPE") and signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return quiet


def stopped(error: BaseException) -> bool:
    """True for an ``error`` that came of Ctrl-C.

    A module that is being imported may turn it into an error of its own, without its cause: transformers raises
    ModuleNotFoundError.
    """
    return _interrupted or isinstance(error, KeyboardInterrupt)


_interrupted = False


def _interrupt(*_) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def _stop(*_) -> None:
    print("\nstopped", file=sys.stderr, flush=True)
    os._exit(130)
