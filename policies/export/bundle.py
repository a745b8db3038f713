"""An exported folder: the files of a target, a manifest with their hashes, and the hash of the manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from policies.export.portable import dumps
from policies.export.source import ExportError, Source
from policies.export.target import Target
from policies.export.versions import recorded
from policies.storage.atomic import replacing

FORMAT, VERSION = "decision-policy-export", 1
MANIFEST, SEAL = "manifest.json", "manifest.sha256"
"""The manifest holds the hash of every other file, the seal that of the manifest."""


def write_bundle(source: Source, target: Target, folder: Path) -> list[str]:
    """Write the files of ``target`` and a manifest to the new ``folder``, all or nothing; returns their paths in it.

    ExportError if the target cannot carry the policy, or the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} exists and is not an empty folder; give another --output")
    files = target.files(source)
    manifest = dumps(_manifest(source, target, files), indent=2)
    files = files | {MANIFEST: manifest, SEAL: seal(manifest)}
    with replacing(folder) as unfinished:
        for name, data in files.items():
            path = unfinished / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return sorted(files)


def seal(manifest: bytes) -> bytes:
    """The hash of ``manifest`` as ``sha256sum -c`` reads it."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def _manifest(source: Source, target: Target, files: dict[str, bytes]) -> dict[str, Any]:
    hashes = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "target": target.name,
        "engines": recorded(target.engines),
        "files": dict(sorted(hashes.items())),
        "provenance": source.provenance(),
    }
