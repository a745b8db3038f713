"""Target ``transformers``: a folder for ``model.generate(..., custom_generate=DIR, trust_remote_code=True)``.

It holds copies of this package's own engine and policies, as text, so that what is decided there is decided here.
transformers copies a folder file by file and only follows ``from .x import``: the copies lie flat, one name each.
"""

from __future__ import annotations

import ast
import base64
import importlib.util
import re
from pathlib import Path

from policies.export.source import ExportError, Source
from policies.export.target import Files, Target
from policies.export.templates import template
from policies.features.table import FEATURES

ROOTS = {
    "decoding": ("backoff", "generation", "lm", "mtad", "sampling", "speculative"),
    "policies": ("loading",),
}
IMPORTS = """from .decoding_backoff import Backoff
from .decoding_generation import NEUTRAL
from .decoding_generation import generate as engine
from .decoding_lm import LM
from .decoding_mtad import MTAD
from .decoding_sampling import Sampling
from .decoding_speculative import Speculative
from .policies_loading import load
from .policy_data import FILES, OPTIONS"""
METHOD = {"handoff": "backoff", "stop": "speculative"}
DATA = '''"""The policy's own files, and how it is used unless generate is told otherwise."""

FILES = {files!r}
OPTIONS = {options!r}
'''


def write(source: Source) -> Files:
    files = copied_sources() | {
        "policy_data.py": _data(source),
        "generate.py": template("custom_generate.py.txt").replace("@IMPORTS@", IMPORTS + _others()),
        "requirements.txt": "transformers>=5.17\ntransformers<5.24\ntorch>=2.11\nsafetensors>=0.5\nnumpy>=1.24\n",
    }
    written = {f"custom_generate/{name}": text.encode() for name, text in files.items()}
    return written | {"README.md": _readme(source).encode()}


def copied_sources() -> dict[str, str]:
    """The text of every module that the engine and the policies need, with imports that stay in one folder."""
    found: dict[str, str] = {}
    for package, roots in ROOTS.items():
        folder = _folder(package)
        waiting = list(roots)
        while waiting:
            module = waiting.pop()
            name = f"{package}_{module}.py"
            if name not in found:
                text = (folder / f"{module}.py").read_text(encoding="utf-8")
                waiting += _imported(text, package)
                found[name] = re.sub(
                    rf"^(\s*)from {package}\.(\w+) import", rf"\1from .{package}_\2 import", text, flags=re.M
                )
    return found


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ExportError(f"the transformers target copies the package {package!r}, which is not installed; install it")
    return Path(next(iter(spec.submodule_search_locations)))


def _imported(text: str, package: str) -> list[str]:
    nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level == 0)
    modules = (node.module.split(".") for node in nodes)
    return [parts[1] for parts in modules if parts[0] == package and len(parts) == 2]


def _others() -> str:
    """Imports of what ``generate.py`` does not name: some versions copy only the files that it imports itself."""
    named = re.findall(r"from \.(\w+) import", IMPORTS)
    rest = sorted(name.removesuffix(".py") for name in copied_sources())
    return "".join(f"\nfrom .{name} import __name__ as _{name}" for name in rest if name not in named)


def _data(source: Source) -> str:
    saved = {name: base64.b64encode(data).decode() for name, data in source.files.items()}
    options = {"method": METHOD[source.role], "length": source.length}
    return DATA.format(files=saved, options=options)


def _readme(source: Source) -> str:
    names = [model["name"] for model in source.policy.models] or ["the small model", "the large model"]
    return template("custom_generate.md").format(
        small=names[0],
        large=names[-1],
        method=METHOD[source.role],
        description=source.policy.describe(),
        length=source.length,
    )


def refuse(source: Source) -> str | None:
    judged = [name for name in source.policy.names if FEATURES[name].needs_target]
    return f"{judged[0]!r} is a feature of drafted tokens that the large model has read" if judged else None


TARGET = Target(
    name="transformers",
    summary="custom_generate/: backoff, speculative and MTAD inside model.generate, on transformers 5.17 to 5.23",
    write=write,
    refuse=refuse,
    carries="every policy but judges of drafts",
    engines={"transformers": ("5.17", "5.24"), "torch": ("2.11", "2.14")},
)
