"""Runs a program that a model wrote in a process of its own, and evaluates expressions in it.

It stops accidents (endless loops, memory, files, processes), known ways to cheat a grader (exit before the tests,
objects equal to everything, redefined builtins), and native code that would leave: on Linux the kernel refuses files,
processes and sockets (wall.py), and namespaces (`unshare`) cut the network. Elsewhere only an audit hook refuses them,
to Python code; what is missing is said once.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from train.common.cli import InputError
from train.common.progress import say

CHILD = Path(__file__).with_name("sandboxed.py")


@dataclass(frozen=True)
class Limits:
    """Limits of one sandbox."""

    cpu: int = 5
    """seconds of CPU time"""
    wall: float = 20.0
    """seconds until all of the sandbox is killed; more than ``cpu``, since the machine may be busy"""
    memory: int = 1 << 30
    """bytes of address space"""
    file: int = 1 << 20
    """bytes of each file, and of printed output"""

    def of_resources(self) -> dict[str, int]:
        """Limits by their names in the module ``resource``.

        No process or thread may be started: the kernel counts them by user, so any other limit would depend on the
        user's other processes.
        """
        limits = {"RLIMIT_CPU": self.cpu, "RLIMIT_AS": self.memory, "RLIMIT_FSIZE": self.file}
        return limits | {"RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}


def run(
    program: str, expressions: Sequence[str], keep: Sequence[str] = (), limits: Limits = Limits()
) -> list[dict[str, str]] | None:
    """Execute ``program``, then each expression or statement in its namespace.

    keep: builtins that the program may redefine for the expressions; of all others they see the true ones.
    Returns a reply for each, {"printed", "value"} (its repr, "" for a statement) or {"raised"}; None when the program
    failed, exceeded a limit or exited. Raises InputError where the system has no resource limits or it would be root.
    """
    if os.name != "posix":
        raise InputError("running code needs the resource limits of Linux or macOS; use another grader here")
    check_walls()
    report = _report(program, expressions, keep, limits)
    return report and report.replies


@dataclass(frozen=True)
class Report:
    """The report of the child; code that takes it over may write anything else."""

    missing: list[str]
    replies: list[dict[Literal["printed", "value", "raised"], str]]


@cache
def check_walls() -> None:
    """Say which walls this system lacks. InputError where no sandbox can be set up."""
    report = _report("", [], (), Limits(wall=60.0))
    if report is None:
        raise InputError(
            "no program can be run apart here: as root that needs Linux with Landlock, or a Python that every user may "
            "read; start this as a user without privileges"
        )
    missing = report.missing if isolation() else [*report.missing, "namespaces"]
    if missing:
        say(f"Programs in answers are held less firmly here, where {' and '.join(missing)} are missing.")


def _report(program: str, expressions: Sequence[str], keep: Sequence[str], limits: Limits) -> Report | None:
    token = secrets.token_hex(16)
    work = {"program": program, "expressions": list(expressions), "keep": list(keep), "limits": limits.of_resources()}
    request = f"{json.dumps(work)}\n{token}\n".encode()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o777)  # as root, the child becomes the user nobody, who must be able to write here
        reply = _talk(request, os.path.realpath(folder), limits.wall)
    if not reply.startswith(token.encode()):
        return None
    try:
        report = TypeAdapter(Report).validate_json(reply[len(token) :])
    except ValidationError:
        return None
    return report if len(report.replies) == len(expressions) else None


def _talk(request: bytes, folder: str, seconds: float) -> bytes:
    """The child's report, b"" after ``seconds``; its whole process group is killed."""
    with tempfile.TemporaryFile() as report:  # the limit of a file's size holds for it, as it would not for a pipe
        process = subprocess.Popen(
            [*isolation(), sys.executable, "-I", "-B", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=report,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # numpy must start no threads: they are refused
            start_new_session=True,
        )
        try:
            process.communicate(request, timeout=seconds)
        except subprocess.TimeoutExpired:
            return b""
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # PermissionError: an ended group on macOS
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdin.close()
        report.seek(0)
        return report.read()


@cache
def isolation() -> tuple[str, ...]:
    """A command prefix that cuts the network and kills all processes of the child with it; () if there is none."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    user = () if os.geteuid() == 0 else ("--user",)
    command = (unshare, *user, "--net", "--pid", "--fork", "--kill-child")
    works = subprocess.run([*command, "true"], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    return command if works else ()
