"""Another engine in a process of its own, asked over a pipe.

In this process its idle threads would count against the cores that OpenMP sees: torch's threads would then sleep at
every barrier instead of spinning, which made everything else take 25 % longer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


class EngineEnded(RuntimeError):
    """The process of an engine has ended, or says nothing that can be read; the message names the engine."""


class SubprocessEngine:
    """Runs ``python -m module`` with ``settings`` as JSON; the module's ``main`` calls ``serve``.

    ``name`` is what errors call the engine. A subclass has ``answer(prompt, max_new_tokens)``, which returns
    (token ids, seconds inside the process).
    """

    def __init__(self, name: str, module: str, settings: list):
        self.name = name
        self.process = subprocess.Popen(
            # -P: a train.py or json.py in the working folder is no part of the engine.
            [sys.executable, "-P", "-m", module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for this process to handle; the other ends at the end of its input.
            start_new_session=True,
        )

    def ask(self, request: dict) -> tuple[Any, float]:
        """(reply, seconds inside the process). Raises EngineEnded."""
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            # An engine may print lines of its own; a reply is the first one that is a JSON list.
            line = next(line for line in self.process.stdout if line.startswith(b"["))
            return tuple(json.loads(line))
        except (OSError, ValueError, StopIteration) as error:
            raise EngineEnded(f"{self.name}'s process has ended; leave it out to measure without it") from error


def serve(answer: Callable[[dict], Any]) -> None:
    """Answer requests, one JSON object a line, with lines of [reply, seconds]."""
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        reply = answer(request)
        seconds = time.perf_counter() - began
        print(json.dumps([reply, seconds]), flush=True)
