"""Another engine in a process of its own, asked over a pipe.

In ours its threads, though idle, count against the cores that OpenMP believes it has; torch's threads then sleep at
every barrier instead of waiting awake, and everything else took 25 % longer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


class SubprocessEngine:
    """``python -m module`` with ``settings``; ``module`` calls ``serve``. ``name`` is what errors call it."""

    def __init__(self, name: str, module: str, settings: list):
        self.name = name
        # Ctrl-C is ours to handle; at the end of its input the process leaves.
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def ask(self, request: dict) -> tuple[Any, float]:
        """(reply, seconds inside its process). RuntimeError when the process has ended."""
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            # An engine may print on its own: what it answers is the line that begins as a pair.
            line = next(line for line in self.process.stdout if line.startswith(b"["))
            return tuple(json.loads(line))
        except (OSError, ValueError, StopIteration) as error:
            raise RuntimeError(f"{self.name}'s process has ended; leave it out to measure without it") from error


def serve(answer: Callable[[dict], Any]) -> None:
    """Answer requests, a line of JSON each, with lines of [reply, seconds]."""
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        reply = answer(request)
        seconds = time.perf_counter() - began
        print(json.dumps([reply, seconds]), flush=True)
