"""Run a program that a model wrote, in a process of its own, and learn what expressions in it give.

It stops accidents (endless loops, memory, files, processes) and the shortcuts known from graded code (leaving before
the tests, objects equal to everything, redefined builtins). It is no wall against an attacker: what CPython itself
lets through, it lets through. The network is cut by Linux namespaces (`unshare`) where the system allows them;
elsewhere there is no portable way, and only the audit hook refuses sockets to Python code.
"""

from __future__ import annotations

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

from train.common.cli import InputError

CHILD = Path(__file__).with_name("sandboxed.py")


@dataclass(frozen=True)
class Limits:
    cpu: int = 5
    """seconds of CPU time"""
    wall: float = 20.0
    """seconds until everything in the sandbox is killed; more than ``cpu``, for the machine may be busy"""
    memory: int = 1 << 30
    """bytes of address space"""
    file: int = 1 << 20
    """bytes of any one file, what the program prints included"""

    def of_resources(self) -> dict[str, int]:
        """By the names of the module ``resource``. No process or thread may be started: the kernel counts them by user,
        so that any other limit would depend on what else the user runs."""
        limits = {"RLIMIT_CPU": self.cpu, "RLIMIT_AS": self.memory, "RLIMIT_FSIZE": self.file}
        return limits | {"RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}


def run(
    program: str, expressions: Sequence[str], keep: Sequence[str] = (), limits: Limits = Limits()
) -> list[dict[str, str]] | None:
    """Execute ``program``, then each expression (or statement) in turn, in its namespace.

    keep: names of builtins that the program may redefine for the expressions; they see the true ones of all others.
    Returns a reply each, {"printed", "value"} (its repr, "" for a statement) or {"raised"}; None when the program
    failed, ran into a limit or left. Raises InputError where the system has no resource limits.
    """
    if os.name != "posix":
        raise InputError("running code needs the resource limits of Linux or macOS; use another grader here")
    token = secrets.token_hex(16)
    work = {"program": program, "expressions": list(expressions), "keep": list(keep), "limits": limits.of_resources()}
    request = f"{json.dumps(work)}\n{token}\n".encode()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o777)  # root hands the program to nobody, who must be able to write here
        reply = _talk(request, os.path.realpath(folder), limits.wall)
    if not reply.startswith(token.encode()):
        return None
    return json.loads(reply[len(token) :])


def _talk(request: bytes, folder: str, seconds: float) -> bytes:
    """What the child reports; b"" after ``seconds``. Its whole process group is gone afterwards."""
    process = subprocess.Popen(
        [*isolation(), sys.executable, "-I", "-B", str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # numpy starts no threads, which are refused
        start_new_session=True,
    )
    try:
        return process.communicate(request, timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        return b""
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS, of a group that ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


@cache
def isolation() -> tuple[str, ...]:
    """The command that starts another without network and in a process namespace that dies whole, () if none works."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    user = () if os.geteuid() == 0 else ("--user",)
    command = (unshare, *user, "--net", "--pid", "--fork", "--kill-child")
    works = subprocess.run([*command, "true"], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    return command if works else ()
