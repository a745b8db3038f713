"""A real PostgreSQL server on this machine, for a test."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDERS = "/usr/lib/postgresql/*/bin"  # of Debian's package
USERS = ("postgres", "nobody")


def programs() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``; None without them."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/").glob(FOLDERS[1:]))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


def why_not() -> str | None:
    """Why no server can be started here; None where one can."""
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        return "psycopg2 is missing: pip install psycopg2-binary"
    return None if programs() else "PostgreSQL is missing: apt-get install postgresql"


@contextmanager
def server() -> Iterator[str]:
    """The URL of the empty database of a fresh server, which is stopped and removed in the end."""
    folder, bin_folder = Path(tempfile.mkdtemp(prefix="postgres-")), programs()
    how = _as_somebody(folder)
    run = lambda *command: subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=folder, **how)  # noqa: E731
    data, log = str(folder / "data"), str(folder / "log")
    try:
        run(bin_folder / "initdb", "-D", data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-sync")
        port = _free_port()
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run(bin_folder / "pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://tests@127.0.0.1:{port}/postgres"
        finally:
            run(bin_folder / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_somebody(folder: Path) -> dict:
    """Options of a process that may run the server, to whom ``folder`` is given: it refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    import pwd

    known = {user.pw_name: user for user in pwd.getpwall()}
    user = next(known[name] for name in USERS if name in known)
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]
