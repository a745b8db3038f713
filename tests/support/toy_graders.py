"""Graders of a user's own, named as module:function, right and wrong ones."""

import contextlib
import os
import signal
import sys
import time


def half(prompt, reference, text):
    return 0.5 if text else None


def two(prompt, text):
    return 1.0


def variety(prompt, reference, text):
    """The share of different words in a text."""
    words = text.split()
    return len(set(words)) / len(words) if words else 0.0


def none_for_long(prompt, reference, text):
    return None if len(prompt.split()) > 5 else 1.0


NO_FUNCTION = "text"


def raises(prompt, reference, text):
    raise KeyError("no such key")


def recurses(prompt, reference, text):
    return recurses(prompt, reference, text)


def exits(prompt, reference, text):
    if text:  # not when the prompts are tried before work
        sys.exit(0)
    return 0.5


async def waits(prompt, reference, text):
    return 0.5


def huge(prompt, reference, text):
    return 10**400


def nonsense(prompt, reference, text):
    return "x" * 10**6


def awaited_later(prompt, reference, text):
    return waits(prompt, reference, text)


def prints(prompt, reference, text):
    print("graded", text)
    return 0.5


def hangs(prompt, reference, text):
    while text:
        with contextlib.suppress(Exception):
            time.sleep(0.01)
    return 0.5


def crashes(prompt, reference, text):
    if text:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 0.5


def fails_at_w6(prompt, reference, text):
    if "w6" in text:
        raise ValueError("no w6 please")
    return 1.0
