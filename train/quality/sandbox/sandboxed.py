"""The process inside the sandbox: runs a program, then evaluates expressions. Started by sandbox.py, never imported.

It only reports the value of each expression. The right values stay in the process outside, which compares: code that
takes over this process can report any value, but does not learn which one is right.
"""

import builtins
import contextlib
import io
import json
import os
import resource
import runpy
import sys
import types

REFUSED = (
    *("os.fork", "os.posix_spawn", "os.exec", "os.system", "os.kill", "subprocess.", "pty.", "socket.", "shutil."),
    *("os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("ctypes.dlsym", "ctypes.call_function", "resource.", "signal.pthread_kill"),
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
LONGEST = 100_000
"""most characters that one expression may print and return"""


def main() -> None:
    channel, report = os.dup(0), os.fdopen(os.dup(1), "wb")
    request = json.loads(read_line(channel))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT, 0o600), 1)
    limit(request["limits"])
    # Isolated Python does not have this folder on its path.
    missing = runpy.run_path(os.path.join(os.path.dirname(__file__), "wall.py"))["build"](os.getcwd())
    sys.addaudithook(refusing(os.getcwd()))
    kept = dict(vars(builtins))
    sys.modules["answer"] = module = types.ModuleType("answer")  # dataclasses look up their module
    space = vars(module)
    exec(compile(request["program"], "<answer>", "exec"), space)
    seen = {name: value for name, value in space.items() if name not in kept or name in request["keep"]}
    seen["__builtins__"] = kept
    replies = [evaluate(source, seen) for source in request["expressions"]]
    token = read_line(channel)  # after the answer's code has run
    report.write(token + json.dumps({"missing": missing, "replies": replies}).encode())
    report.flush()
    os._exit(0)  # no exit handler of the answer may run


def read_line(channel: int) -> bytes:
    """One line, byte by byte: the rest stays in the pipe."""
    line = bytearray()
    while (byte := os.read(channel, 1)) not in (b"\n", b""):
        line += byte
    return bytes(line)


def limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        with contextlib.suppress(ValueError):  # macOS knows RLIMIT_AS and refuses to set it
            resource.setrlimit(getattr(resource, name), (value, value))


def refusing(folder: str):
    """An audit hook (PEP 578) that refuses Python code processes, sockets and writing outside of ``folder``."""

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(REFUSED):
            raise PermissionError(event)
        if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & WRITES:
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if os.path.dirname(path) != folder:
                raise PermissionError(path)

    return hook


def evaluate(source: str, space: dict) -> dict[str, str]:
    """The printed output and the repr ("" for a statement), or the error."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            value = value_of(source, space)
        if len(value) + printed.tell() > LONGEST:
            raise ValueError("too long")
    except BaseException as error:  # SystemExit and all others fail the test
        return {"raised": f"{type(error).__name__}: {error}"[:LONGEST]}
    return {"printed": printed.getvalue(), "value": value}


def value_of(source: str, space: dict) -> str:
    try:
        code = compile(source, "<expression>", "eval")
    except SyntaxError:
        exec(compile(source, "<statement>", "exec"), space)
        return ""
    return repr(eval(code, space))


if __name__ == "__main__":
    main()
