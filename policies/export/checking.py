"""Check of an exported folder: its bytes, its models, and the versions of the installed engines.

It reads bytes and JSON; nothing in the folder is imported or run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from policies.export.bundle import FORMAT, MANIFEST, SEAL, VERSION, seal
from policies.export.source import ExportError
from policies.export.targets import TARGETS
from policies.export.versions import out_of_range
from policies.storage import documents
from policies.storage.documents import FileError, show
from policies.storage.files import PolicyError
from policies.storage.identity import compare, identities


def check(folder: Path, models: list[dict[str, str]] | None = None, policy: str | None = None) -> dict[str, Any]:
    """The manifest of ``folder``. ``models``: identities of the models it must be for; ``policy``: its policy's sha256.

    Raises ExportError, one sentence, for a changed byte, a missing or an added file, another version of the format or
    of an engine, other models, or another policy.
    """
    folder, models = Path(folder), None if models is None else identities(models)
    data = _read(folder, MANIFEST)
    if _read(folder, SEAL) != seal(data):
        raise ExportError(_changed(folder, MANIFEST))
    try:
        manifest = _manifest(folder, data)
        _check_files(folder, manifest["files"])
        problem = out_of_range(manifest["engines"]) or _other(folder, manifest["provenance"], models, policy)
    except ExportError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ExportError(f"{folder}: {MANIFEST} is not a manifest of this package; export the policy again") from error
    if problem is not None:
        raise ExportError(f"{folder}: {problem}; export the policy again")
    return manifest


def _manifest(folder: Path, data: bytes) -> dict[str, Any]:
    manifest = documents.parse(data, folder / MANIFEST, "export the policy again")
    version, target = manifest["version"], manifest["target"]
    known = all(isinstance(manifest[key], dict) for key in ("files", "engines", "provenance"))
    if manifest["format"] != FORMAT or not known or not isinstance(target, str):
        raise TypeError("no manifest")
    if version != VERSION:
        raise ExportError(f"{folder}: it has version {show(version)}, this package reads {VERSION}; export again")
    if target not in TARGETS:
        raise ExportError(f"{folder}: unknown target {show(target)}; the known ones are {', '.join(TARGETS)}")
    return manifest


def _other(folder: Path, source: dict[str, Any], models: list[dict[str, str]] | None, policy: str | None) -> str | None:
    if models is not None and source["models"]:
        try:
            compare(folder, source["models"], models, strict=True)
        except PolicyError as error:
            raise ExportError(str(error)) from error
    return "it was made from another policy file" if policy not in (None, source["policy"]["sha256"]) else None


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, wanted in files.items():
        data = _read(folder, name)
        if hashlib.sha256(data).hexdigest() != wanted["sha256"]:
            raise ExportError(_changed(folder, name))
    # Pipes and __pycache__ too: Python runs a .pyc of the right name in place of the module that was checked.
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    there = {path.relative_to(folder).as_posix() for path in paths}
    added = sorted(there - set(files) - {MANIFEST, SEAL})
    if added:
        raise ExportError(f"{folder}: {added[0]} is not in the manifest; remove it, or export the policy again")


def _changed(folder: Path, name: str) -> str:
    return f"{folder}: {name} was changed or cut short (its sha256 differs); export the policy again"


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or path.is_symlink():
        raise ExportError(f"{folder}: {show(name)} is not a file of this folder; export the policy again")
    try:
        return documents.read_bytes(path, "give an exported folder")
    except FileError as error:
        raise ExportError(str(error)) from error
