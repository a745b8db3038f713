"""Files are written whole or not at all."""

import os
from pathlib import Path


def write(path: Path | str, data: bytes) -> None:
    """Write beside ``path``, then move it there: a reader sees the old file or the new one. Makes missing folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
