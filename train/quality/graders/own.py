"""A user's own grader, ``module:function``: (prompt, reference, text) -> score in [0, 1], or None for no score.

It runs in a process of its own (own_process.py): one that hangs, exits, crashes or prints disturbs nothing.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from train.common.cli import InputError
from train.data.records import Prompt

PROCESS = Path(__file__).with_name("own_process.py")
SECONDS = 60
"""most that a grader may take for one answer: one that asks a model may be slow"""


class GraderFailed(Exception):
    """A grader gave no score to a text; the message says why, without its name."""


class OwnGrader:
    """The function that ``name`` names, called as ``(prompt, text)``.

    Raises InputError, one sentence, when there is no such function or it does not take (prompt, reference, text); and
    GraderFailed when called, for an exception or exit of its own, for a score that is neither None nor a number in
    [0, 1], and after ``SECONDS``. Its process is started again after it has ended.
    """

    def __init__(self, name: str):
        if name.count(":") != 1 or not all(name.split(":")):
            raise InputError(
                f"the grader {name!r} is not the name of a function; write module:function, with the module's folder "
                "on PYTHONPATH"
            )
        self.name = name
        self._start()

    def __call__(self, prompt: Prompt, text: str) -> float | None:
        if self.process.poll() is not None:
            try:
                self._start()
            except InputError as error:
                raise GraderFailed(f"ended and cannot be started again ({error})") from error
        with suppress(OSError):  # its end is seen below
            self.channel.send_bytes(json.dumps([prompt.text, prompt.reference, text]).encode())
        reply = self._reply()
        if "failed" in reply:
            raise GraderFailed(reply["failed"])
        return reply["score"]

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(os.path.abspath(part) for part in sys.path)  # an empty part is this folder
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(PROCESS), str(theirs.fileno()), self.name, str(SECONDS)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the job; this process ends with the channel
            )
        self.channel = Connection(ours.detach())
        try:
            wrong = self._reply().get("failed")
        except GraderFailed as error:
            wrong = f"cannot be loaded: its module {error}"
        if wrong:
            raise InputError(f"the grader {self.name} {wrong}")

    def _reply(self) -> dict:
        try:
            if self.channel.poll(SECONDS + 5):  # the alarm in the process is first, unless the grader turned it off
                return json.loads(self.channel.recv_bytes())
            os.killpg(self.process.pid, signal.SIGKILL)
        except (EOFError, OSError):
            pass
        code = self.process.wait()
        self.channel.close()
        late = code in (-signal.SIGALRM, -signal.SIGKILL)
        raise GraderFailed(f"took more than {SECONDS} seconds" if late else f"ended its process (code {code})")
