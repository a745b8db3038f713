"""Traces collected earlier: what they are of is written beside them, and compared when they are used again."""

from collections.abc import Container, Sequence, Set
from dataclasses import asdict
from pathlib import Path

from decoding import LM, Sampling
from policies.storage.documents import FileError
from train.data.prompts import Prompt, template_hash
from train.data.splits import split_hash
from train.traces.draft_traces import DRAFT_SCHEMA, DraftTraces, read_drafts
from train.traces.handoff_traces import read_meta
from train.traces.trace_sample import TraceSample, read_sample


def about(
    small: LM,
    large: LM,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    longest_draft: int | None = None,
    sampling: Sampling = Sampling(),
) -> dict:
    """A description of the traces of ``prompts`` for their meta.json; ``longest_draft`` of draft traces only.

    Of greedy texts it says nothing of ``sampling``, as those did that were collected before there were others.
    """
    drafts = {} if longest_draft is None else {"drafts": DRAFT_SCHEMA, "longest": longest_draft}
    drawn = {} if sampling.greedy else {"sampling": asdict(sampling)}
    return (
        drafts
        | drawn
        | {
            "models": [small.identity(), large.identity()],
            "template": template_hash(large.tokenizer),
            "prompts": {p.id: split_hash([p]) for p in prompts},
            "max_new_tokens": max_new_tokens,
        }
    )


def given_handoff(
    folder: Path, *what, sampling: Sampling = Sampling(), fitting: Container[str] = (), seed: int = 0
) -> TraceSample:
    """The traces in ``folder``, of more prompts perhaps. FileError unless they are of what ``about(*what)`` says.

    fitting, seed: as ``read_sample`` takes them.
    """
    sample, wanted = read_sample(folder, fitting, seed), about(*what, sampling=sampling)
    _check(folder, {"sampling": None} | wanted, sample.there)
    return sample


def given_drafts(
    folder: Path,
    small: LM,
    large: LM,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    longest_draft: int,
    sampling: Sampling = Sampling(),
) -> DraftTraces:
    """As ``given_handoff``, of drafts."""
    traces, wanted = read_drafts(folder), about(small, large, prompts, max_new_tokens, longest_draft)
    _check(folder, wanted | {"sampling": asdict(sampling)}, traces.there)
    return traces


def _check(folder: Path, wanted: dict, there: Set[str]) -> None:
    meta, prompts = read_meta(folder), wanted.pop("prompts")
    differing = [key for key, value in wanted.items() if meta.get(key) != value]
    known = meta.get("prompts")
    if differing or not isinstance(known, dict):
        fault = f"its traces are of another run ({', '.join(differing or ['prompts'])} differ)"
        raise FileError(folder, fault, "give others, or let them be collected")
    missing = [name for name, digest in prompts.items() if name not in there or known.get(name) != digest]
    if missing:
        fault = f"its traces lack {len(missing)} of {len(prompts)} prompts, such as {missing[0]}"
        raise FileError(folder, fault, "give others, or let them be collected")
