"""A folder has one job at a time, those that join a search aside: two would time each other and mix their rows."""

from pathlib import Path

from filelock import FileLock, Timeout

_held: dict[Path, FileLock] = {}


def hold(folder: Path) -> None:
    """Hold ``folder`` until ``release`` or the end of this process, a kill included. ValueError when another does.

    A file system that knows no locks is taken at its word.
    """
    where = folder.resolve()
    if where in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(where / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(f"another job works in {folder}; wait for its end, or give this one another name") from None
    except NotImplementedError:
        return
    _held[where] = lock


def release() -> None:
    """Let go of every folder that this process holds."""
    while _held:
        _held.popitem()[1].release()
