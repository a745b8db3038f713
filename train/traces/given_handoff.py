"""Hand-off traces collected earlier: what they are of is written beside them, and compared when they are used again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from decoding import LM
from train.data.prompts import Prompt, template_hash
from train.data.splits import split_hash
from train.traces.handoff_traces import TraceError, Traces, read_meta, read_traces


def about_handoff(small: LM, large: LM, prompts: Sequence[Prompt], max_new_tokens: int) -> dict:
    """What traces of ``prompts`` are of, for their meta.json."""
    return {
        "models": [small.identity(), large.identity()],
        "template": template_hash(large.tokenizer),
        "prompts": {p.id: split_hash([p]) for p in prompts},
        "max_new_tokens": max_new_tokens,
    }


def given_handoff(folder: Path, small: LM, large: LM, prompts: Sequence[Prompt], max_new_tokens: int) -> Traces:
    """The traces in ``folder``, which may hold more prompts than needed. TraceError when they are of something else."""
    wanted, meta, traces = about_handoff(small, large, prompts, max_new_tokens), read_meta(folder), read_traces(folder)
    differing = [key for key, value in wanted.items() if key != "prompts" and meta.get(key) != value]
    if differing:
        raise TraceError(f"the traces in {folder} are of another run ({', '.join(differing)} differ)")
    there, known = set(traces["prompt"][traces["trajectory"] == "mixed"].tolist()), meta.get("prompts", {})
    missing = [name for name, digest in wanted["prompts"].items() if name not in there or known.get(name) != digest]
    if missing:
        raise TraceError(
            f"the traces in {folder} lack {len(missing)} of {len(wanted['prompts'])} prompts, such as {missing[0]}"
        )
    return traces
