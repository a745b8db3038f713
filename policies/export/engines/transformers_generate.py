"""Target ``transformers``: a folder for ``model.generate(..., custom_generate=DIR, trust_remote_code=True)``.

It holds copies of this package's own engine and policies, so that both decide alike. transformers copies a folder file
by file and only follows ``from .x import``: the copies lie in one folder, each under a name of its own.
"""

from __future__ import annotations

import base64
import importlib.util
import re
from pathlib import Path

from policies.export.source import DECODERS, ExportError, Source
from policies.export.target import Files, Target, no_verification
from policies.export.templates import template

ROOTS = {
    "decoding.decoders.backoff": "Backoff",
    "decoding.decoders.mtad": "MTAD",
    "decoding.decoders.speculative": "Speculative",
    "decoding.generation": "generate as engine",
    "decoding.models.lm": "LM",
    "decoding.models.settings": "REFUSED, REFUSED_DRAWING",
    "decoding.state.sampling": "Sampling",
    "policies.loading": "load",
}
"""modules that ``generate.py`` imports, and the names it uses"""
PACKAGE_IMPORT = re.compile(r"^(\s*)from ((?:decoding|policies)\.[\w.]+) import", re.MULTILINE)
METHOD = {role: decoder for decoder, role in DECODERS.items()}
DATA = '''"""The policy's own files, and the defaults of generate."""

FILES = {files!r}
OPTIONS = {options!r}
'''


def write(source: Source) -> Files:
    saved = {name: base64.b64encode(data).decode() for name, data in source.files.items()}
    options = {"method": METHOD[source.role], "length": source.length}
    files = copied_sources() | {
        "policy_data.py": DATA.format(files=saved, options=options),
        "generate.py": template("custom_generate.py.txt").replace("@IMPORTS@", _imports()),
        "requirements.txt": "transformers>=5.17\ntransformers<5.24\ntorch>=2.11\nsafetensors>=0.5\nnumpy>=1.24\n",
    }
    return {f"custom_generate/{name}": text for name, text in files.items()} | {"README.md": _readme(source)}


def copied_sources() -> dict[str, str]:
    """The text of every module that the engine and the policies import, with imports from the same folder."""
    found: dict[str, str] = {}
    waiting = list(ROOTS)
    while waiting:
        module = waiting.pop()
        name = f"{_flat(module)}.py"
        if name not in found:
            text = _file(module).read_text(encoding="utf-8")
            needed = [match[2] for match in PACKAGE_IMPORT.finditer(text) if _file(match[2]).is_file()]
            waiting += needed
            found[name] = PACKAGE_IMPORT.sub(
                lambda m, needed=needed: f"{m[1]}from .{_flat(m[2])} import" if m[2] in needed else m[0], text
            )
    return found


def _flat(module: str) -> str:
    return module.replace(".", "_")


def _file(module: str) -> Path:
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ExportError(f"the transformers target copies the package {package!r}, which is not installed; install it")
    return Path(next(iter(spec.submodule_search_locations))).joinpath(*rest).with_suffix(".py")


def _imports() -> str:
    """The imports of ``generate.py``: every copied module, for some versions copy only what it imports itself."""
    used = [f"from .{_flat(module)} import {names}" for module, names in ROOTS.items()]
    rest = sorted({name.removesuffix(".py") for name in copied_sources()} - {_flat(module) for module in ROOTS})
    unused = [f"from .{name} import __name__ as _{name}" for name in rest]
    return "\n".join([*used, "from .policy_data import FILES, OPTIONS", *unused])


def _readme(source: Source) -> str:
    names = [model["name"] for model in source.policy.models] or ["the small model", "the large model"]
    return template("custom_generate.md").format(
        small=names[0],
        large=names[-1],
        method=METHOD[source.role],
        description=source.policy.describe(),
        length=source.length,
        tuned_for=source.tuned_for,
    )


TARGET = Target(
    name="transformers",
    summary="custom_generate/: backoff, speculative and MTAD inside model.generate, on transformers 5.17 to 5.23",
    write=write,
    refuse=no_verification,
    carries="every policy but those that verify drafted tokens",
    engines={"transformers": ("5.17", "5.24"), "torch": ("2.11", "2.14")},
)
