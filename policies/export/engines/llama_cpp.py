"""Target ``llama.cpp``: arguments and environment of llama-server, and settings for xllamacpp.

llama.cpp ends a draft where the largest probability, renormalised over the ten largest, is below ``p_min``, and drops
that token. A threshold on any other probability is another policy, and is refused. Without a draft type, llama.cpp
loads the draft model and never uses it: the type is always written. Keys: llama.cpp b11434.
"""

from __future__ import annotations

from policies.export.draft_settings import setting_target, threshold
from policies.export.source import Source
from policies.export.target import Files
from policies.export.templates import template

TYPE = "draft-simple"
ARGUMENTS = ("--spec-type", "-md", "--spec-draft-n-max", "--spec-draft-n-min", "--spec-draft-p-min")
ENVIRONMENT = ("LLAMA_ARG_SPEC_DRAFT_N_MAX", "LLAMA_ARG_SPEC_DRAFT_N_MIN", "LLAMA_ARG_SPEC_DRAFT_P_MIN")


def write(source: Source) -> Files:
    limit = threshold(source.policy)
    knobs = (source.length, 0, 0.0 if limit is None else limit)
    values = dict(zip(ARGUMENTS, (TYPE, source.draft_model, *knobs), strict=True))
    # Type and model have no environment variable in that build.
    environment = "".join(f"{name}={value}\n" for name, value in zip(ENVIRONMENT, knobs, strict=True))
    return {
        "llama-server.args": [word for pair in values.items() for word in pair],
        "llama-server.env": environment,
        "xllamacpp.json": xllamacpp(source.draft_model, *knobs),
        "README.md": template("llama_cpp.md"),
    }


def xllamacpp(path: str, n_max: int, n_min: int, p_min: float) -> dict:
    """Attributes of ``CommonParams``, nested as there."""
    draft = {"mparams": {"path": path}, "n_max": n_max, "n_min": n_min, "p_min": p_min}
    return {"speculative": {"types": ["COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE"], "draft": draft}}


TARGET = setting_target(
    "llama.cpp",
    "arguments and environment of llama-server, settings for xllamacpp",
    write,
    ("xllamacpp", "2026.10", "2026.11"),
    "top10",
    "a fixed draft length, with or without a threshold on the top-10 share ('top10')",
)
