"""The rows of ``experiments/speed.py``: what each needs, and the settings of which its best one is searched."""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from policies.decoder_spec import EXACT, spec_of

LENGTHS = tuple({"length": length} for length in (2, 3, 4, 6))
LLAMA_CPP = (*({"length": n, "p_min": 0.0} for n in (2, 3, 4, 8)), {"length": 8, "p_min": 0.6})


class RowKind(NamedTuple):
    """A row by the engine that ``worker`` starts for it."""

    engine: str
    settings: tuple[dict, ...] = ({},)
    """those of which the fastest is searched, if there are several"""
    small: bool = False
    """whether the small model is loaded too"""
    lacks: Callable[[tuple[str, str]], str | None] = lambda sources: None
    """why it cannot run on the sources (small, large), if it cannot"""


def _lacks(name: str, package: str, extra: str, sources: tuple[str, ...]) -> str | None:
    """Why the engine ``name``, which reads .gguf files, cannot run."""
    if importlib.util.find_spec(package) is None:
        return f'{name} is not installed; pip install "two-model-decoding[{extra}]"'
    lacking = [source for source in sources if not source.endswith(".gguf")]
    return f"{name} reads .gguf files, which {lacking[0]} is not" if lacking else None


_no_llama_cpp = partial(_lacks, "llama.cpp", "xllamacpp", "llamacpp")
_no_openvino = partial(_lacks, "OpenVINO GenAI", "openvino_genai", "openvino")


ROWS = {
    "transformers": RowKind("transformers"),
    "transformers-assisted": RowKind("transformers", LENGTHS, small=True),
    "llama.cpp": RowKind("llama.cpp", lacks=lambda sources: _no_llama_cpp(sources[1:])),
    "llama.cpp-draft": RowKind("llama.cpp", LLAMA_CPP, small=True, lacks=_no_llama_cpp),
    "openvino": RowKind("openvino", lacks=lambda sources: _no_openvino(sources[1:])),
    "openvino-draft": RowKind("openvino", LENGTHS, small=True, lacks=_no_openvino),
    "large": RowKind("ours"),
    "exact": RowKind("ours", LENGTHS, small=True),
}
"""Every row but ``tuned:RUN``, by name."""
TUNED = RowKind("ours", small=True)


def parse(row: str) -> RowKind:
    """The kind of a ``row``: NAME, NAME:LENGTH or tuned:RUN. ValueError, one sentence, for anything else."""
    name, colon, value = row.partition(":")
    if name == "tuned":
        policy_of(row)
        return TUNED
    if name not in ROWS:
        raise ValueError(f"unknown row {row!r}; the known ones are {', '.join(ROWS)} and tuned:RUN")
    kind = ROWS[name]
    if not colon:
        return kind
    if not kind.small or not value.isdecimal() or not 1 <= int(value) <= 64:
        raise ValueError(f"row {row!r} must be a name or, of rows that draft, NAME:LENGTH with 1 to 64 tokens")
    return kind._replace(settings=({**kind.settings[0], "length": int(value)},))


def policy_of(row: str) -> Path:
    """The policy.json of the row ``tuned:RUN``. ValueError when there is none."""
    run = Path(row.partition(":")[2])
    file = run if run.suffix == ".json" else run / "policy.json"
    if not file.is_file():
        raise ValueError(f"row {row!r} needs {file}, which train/fit_policy.py writes; there is none")
    return file.resolve()


def decoder_of(row: str, setting: dict) -> dict:
    """The decoder of a row of this engine: its name, settings and policy."""
    if row.startswith("tuned:"):
        from policies import load

        file = policy_of(row)
        policy = load(file)
        spec, dtypes = spec_of(policy.provenance), [known.get("dtype") for known in policy.models]
        return {"name": spec.name, "settings": spec.settings, "policy": str(file), "dtypes": dtypes}
    return {"name": "speculative" if setting else "large", "settings": setting, "policy": None, "dtypes": []}


def exact(decoder: dict) -> bool:
    """Whether the decoder writes what the large model alone would."""
    if decoder["name"] == "large":
        return True
    return decoder["name"] in ("speculative", "specinfer") and decoder["settings"].get("accept", EXACT) == EXACT
