"""Where a model is: a folder, a .gguf file, or files of the hub, from its cache where they are there."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

FILE_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".onnx")
"""Suffixes by which a source is a file, neither a folder nor a hub id."""
PARTS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
"""Files of a model on the hub that are downloaded: not its weights in other formats."""
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
URL = re.compile(r"^(?:https?://)?(?:huggingface\.co|hf\.co)/")
PLACE = re.compile(r"^([^/]+/[^/]+)/(?:resolve|blob|tree)/[^/]+/?")
WAYS = "a model is a folder, a .gguf file, a hub id (owner/name), or a .gguf file of the hub (owner/name/FILE.gguf)"


@dataclass(frozen=True, slots=True)
class Source:
    """Files of one model on this machine, and the name that it goes by."""

    name: str
    folder: Path
    gguf: str | None = None
    """name of the GGUF file in the folder"""

    @property
    def options(self) -> dict[str, str]:
        """Arguments for transformers besides the folder."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}

    def __str__(self) -> str:
        return self.name


def locate(source) -> Source:
    """The files of ``source``: downloaded only if the hub's cache has not got them.

    FileNotFoundError for a path that is not there, without asking the hub, and where the hub cannot be reached or lacks
    the model; ValueError where several files could be meant. Both say how to write it.
    """
    if isinstance(source, Source):
        return source
    path, text = Path(source), str(source)
    if path.is_dir():
        return _folder(path, text)
    if path.is_file() and path.suffix == ".gguf":
        return Source(text, path.parent, path.name)
    if URL.match(text):
        text = PLACE.sub(r"\1/", URL.sub("", text).partition("?")[0]).removesuffix("/")
    if "://" in text:
        raise ValueError(f"{source} is not on the hub: download the model, and pass its folder or .gguf file")
    repo, file, kind = _hub_names(text)
    if not may_be_hub_id(repo) or (path.exists() and repo == str(source)):
        what = "GGUF file" if path.suffix == ".gguf" else "model folder"
        raise FileNotFoundError(f"no {what} at {source}; {WAYS}")
    if file is None and kind is None:
        return _repository(repo)
    return _hub_file(repo, file or _of_kind(repo, kind))


def may_be_hub_id(source: str) -> bool:
    """Whether to ask the hub, which takes half a minute where it cannot be reached.

    Not if ``source`` can only be a path, nor for a missing name in an existing folder, such as ``runs/mine``.
    """
    path, slashes = Path(source), source.count("/")
    only_path = path.is_absolute() or source.startswith((".", "~")) or "\\" in source or slashes > 1
    return not (only_path or path.suffix in FILE_SUFFIXES or (slashes == 1 and path.parent.is_dir()))


def shards(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights, whether they are there or not; none if only others are.

    ValueError, LookupError, TypeError or AttributeError for a damaged index.
    """
    if (folder / INDEX).exists():
        parts = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(parts))]
    return [file for file in [folder / "model.safetensors"] if file.exists()]


def _hub_names(text: str) -> tuple[str, str | None, str | None]:
    """The repository, and the file or the quantisation (after a colon) that the text names."""
    if text.endswith(".gguf") and text.count("/") >= 2:
        owner, name, file = text.split("/", 2)
        return f"{owner}/{name}", file, None
    repo, colon, kind = text.partition(":")
    return (repo, None, kind) if colon and "\\" not in kind else (text, None, None)


def _folder(path: Path, name: str) -> Source:
    found = sorted(file.name for file in path.glob("*.gguf"))
    if (path / "config.json").exists() or not found:
        return Source(name, path)
    if len(found) > 1:
        raise ValueError(f"{path} has several GGUF files; pass one of them: {', '.join(found)}")
    return Source(str(path / found[0]), path, found[0])


def _repository(repo: str) -> Source:
    """All of a model on the hub. A cache that holds only some of its files is completed."""
    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
        if _complete(folder):
            return Source(repo, folder)
    except (LocalEntryNotFoundError, ValueError):  # ValueError: a name that none can have, as the hub will say
        pass
    folder = Path(_asked(repo, snapshot_download, repo, allow_patterns=PARTS, ignore_patterns=["*/*", "consolidated*"]))
    if not (folder / "config.json").exists() and (files := _gguf_files(repo)):
        raise ValueError(f"{repo} has several models; write {repo}/FILE with one of {', '.join(files)}")
    return Source(repo, folder)


def _complete(folder: Path) -> bool:
    try:
        weights = shards(folder)
    except (ValueError, LookupError, TypeError, AttributeError):
        return False
    known = any((folder / name).exists() for name in TOKENIZERS)
    return known and (folder / "config.json").exists() and bool(weights) and all(file.exists() for file in weights)


def _hub_file(repo: str, file: str) -> Source:
    try:
        path = Path(hf_hub_download(repo, file, local_files_only=True))
    except LocalEntryNotFoundError:
        path = Path(_asked(repo, hf_hub_download, repo, file))
    return Source(f"{repo}/{file}", path.parent, path.name)


def _of_kind(repo: str, kind: str) -> str:
    """The GGUF file of a quantisation, such as Q4_K_M."""
    files = _gguf_files(repo)
    found = [file for file in files if re.search(rf"(?<![a-z0-9]){re.escape(kind.lower())}\.gguf$", file.lower())]
    if len(found) != 1:
        raise ValueError(f"{repo} has no single GGUF file of {kind}; write {repo}/FILE with one of {', '.join(files)}")
    return found[0]


def _gguf_files(repo: str) -> list[str]:
    """Those of the repository, or of its part in the cache where the hub cannot be reached."""
    try:
        found = _asked(repo, HfApi().list_repo_files, repo)
    except FileNotFoundError:
        folder = Path(_asked(repo, snapshot_download, repo, local_files_only=True))
        found = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
    return sorted(file for file in found if file.endswith(".gguf"))


def _asked(repo: str, ask, *args, **options):
    """The answer of the hub; FileNotFoundError, one sentence, where there is none."""
    try:
        return ask(*args, **options)
    except GatedRepoError as error:
        why = f"accept its terms at https://huggingface.co/{repo}, then run `hf auth login`"
        raise FileNotFoundError(f"{repo} asks for permission: {why}") from error
    except RemoteEntryNotFoundError as error:
        raise FileNotFoundError(f"{repo} on the hub has no file {args[-1]}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(f"no folder and no model on the hub is named {repo} ({WAYS})") from error
    except (OSError, ValueError) as error:  # connections, offline mode, and names that cannot be
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"no folder is named {repo}, it is not in the hub's cache, and the hub cannot be asked: {why}"
        ) from error
