"""Files and folders that appear whole or not at all, also when the process that writes them is killed."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Let errors of writing in the block, such as that of a full disk, be OSErrors that name ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` for a file or a folder, moved to ``path`` when the block ends without an error.

    A reader sees the old file or the new one. Missing parent folders are made. ``decoding.cost.cache`` names its
    temporary files alike; it may not import this package.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def write(path: Path | str, data: bytes) -> None:
    """Write ``data`` to ``path`` through ``replacing``; it is on disk when this returns."""
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes of this machine left in ``folder``, at any depth.

    Those of living processes, and of other machines (the folder may be shared), are left alone.
    """
    ours = re.compile(rf".+\.{re.escape(platform.node())}\.(\d+)\.tmp")
    for path in list(folder.rglob("*.tmp")):
        name = ours.fullmatch(path.name)
        if name and not lives(int(name[1])):
            _remove(path)


def lives(process: int) -> bool:
    """Whether this machine runs a process of this number; True where it is not safe to ask."""
    if os.name != "posix":  # elsewhere os.kill ends the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
