"""The certification of a run: thresholds are frozen, then tested in order on prompts that nothing else has touched."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from policies import Policy
from policies.decoder_spec import DecoderSpec
from policies.storage import documents
from train.certification.record import record
from train.certify import Certificate, certify
from train.common import atomic
from train.common.cli import InputError
from train.common.generations import batches, places, seeds_of
from train.common.job import Job, Tuned
from train.common.result import Candidate, CertificateRecord
from train.common.rows import CandidateRow, ReferenceRow
from train.data.prompts import Prompt
from train.data.splits import refuse_overlap, split_hash
from train.evaluation.text_shards import TextBatch, written
from train.replay.pricing import alone, handoff_seconds
from train.search.backoff import GRID, Search
from train.search.goal import LEAST_SPEEDUP
from train.workers.blueprint import Blueprint

CANDIDATES = 5
CANDIDATE = "candidate"
"""the decoder whose texts are written"""


def certification(job: Job, search: Search, tuned: Tuned) -> CertificateRecord:
    """The certificate of ``tuned``, whose threshold becomes that of the candidate that passed, if one did.

    Candidates are measured in their order, and none after the first that fails. Raises InputError when the
    certification prompts have already been used on other candidates: their losses are known by now.
    """
    refuse_overlap(job.splits)
    frozen = candidates(search, tuned)
    freeze(job.folder / "candidates.json", job, tuned, frozen)
    prompts, references = job.splits["certify"], references_of(job)
    policy_at = lambda quantile: tuned.policy.with_threshold(search.threshold(tuned.policy, quantile))  # noqa: E731
    measured: list[dict[str, np.ndarray]] = []
    for i, candidate in enumerate(frozen):
        measured.append(losses_of(job, i, policy_at(candidate.quantile), references))
        certificate = certificate_of(job, measured, len(frozen))
        if certificate.pvalues[-1] > certificate.level:
            break
    reference = alone(prompts, [references[p.id] for p in prompts], job.cost)
    if certificate.chosen is not None:
        tuned.quantile = frozen[certificate.chosen].quantile
        tuned.policy = policy_at(tuned.quantile)
    return record(job, certificate, frozen, measured, reference)


def candidates(search: Search, tuned: Tuned) -> list[Candidate]:
    """Up to CANDIDATES thresholds of the tuned policy, safest first and its own last.

    They are evenly spaced in the loss that replay predicts; those that would be no speedup are left out.
    """
    curve = search.curve(tuned.policy)
    last = int(np.abs(GRID - tuned.quantile).argmin())
    losses = np.maximum.accumulate(curve[: last + 1, 1])
    picked = [int(np.searchsorted(losses, losses[-1] * i / CANDIDATES, "right")) - 1 for i in range(1, CANDIDATES)]
    worth = [i for i in picked if i >= 0 and curve[i, 0] * tuned.faster >= LEAST_SPEEDUP]
    return [Candidate(float(GRID[i]), float(curve[i, 0]), float(curve[i, 1])) for i in sorted({*worth, last})]


def freeze(path: Path, job: Job, tuned: Tuned, found: list[Candidate]) -> None:
    """Write the candidates down before a certification prompt is touched; InputError when others were before."""
    now = {
        "trial": tuned.trial,
        "quantiles": [round(c.quantile, 6) for c in found],
        "prompts": split_hash(job.splits["certify"]),
    }
    if not path.exists():
        documents.write(path, now)
    elif documents.read(path, "certify on prompts that no run has seen, under another --name") != now:
        raise InputError(
            f"the certification prompts of {job.folder} have been used on other candidates, so they can promise "
            f"nothing about these; certify on prompts that no run has seen, under another --name"
        )


def certificate_of(job: Job, measured: list[dict[str, np.ndarray]], frozen: int) -> Certificate:
    losses, ids = np.stack([one["loss"] for one in measured], 1), [prompt.id for prompt in job.splits["certify"]]
    how = job.settings
    return certify(losses, how.quality_budget, how.confidence, how.loss_cap, ids, how.seed, frozen)


def references_of(job: Job) -> dict[str, list[int]]:
    """The large model's own answers by prompt id."""
    at, large = places(job.splits["certify"]), Blueprint.of(job.models, DecoderSpec("large"))
    batch_of = lambda some: TextBatch(CANDIDATE, some, [at[some[0].id]])  # noqa: E731
    rows_of = lambda batch, texts: [{"answer": text["answer"]} for text in texts]  # noqa: E731
    done = _collect(job, "large", "certification, large model alone", large, batch_of, rows_of)
    return {name: row["answer"] for name, row in done.items()}


def losses_of(job: Job, number: int, policy: Policy, references: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Columns [prompts] of one candidate: loss, priced seconds, tokens, and those that the large model wrote."""
    at, candidate = places(job.splits["certify"]), Blueprint.of(job.models, DecoderSpec("backoff"), policy)

    def batch_of(some: list[Prompt]) -> TextBatch:
        return TextBatch(CANDIDATE, some, seeds_of(job.seeds, at[some[0].id]), [references[p.id] for p in some])

    def rows_of(batch: TextBatch, texts: list[dict]) -> list[dict]:
        """The means of the texts of each prompt."""
        count = len(batch.prompts)
        own = [_costs(job, prompt, texts[i::count]) for i, prompt in enumerate(batch.prompts)]
        return [{name: float(np.mean(values)) for name, values in columns.items()} for columns in own]

    done = _collect(job, number, f"certification, candidate {number + 1}", candidate, batch_of, rows_of)
    names = ("loss", "seconds", "tokens", "large")
    return {name: np.array([done[p.id][name] for p in job.splits["certify"]]) for name in names}


def _costs(job: Job, prompt: Prompt, texts: list[dict]) -> dict[str, list[float]]:
    """What each of the ``texts`` of a prompt took and lost."""
    return {
        "seconds": [handoff_seconds(len(prompt.ids), text["writers"], job.cost) for text in texts],
        "tokens": [len(text["answer"]) for text in texts],
        "large": [sum(text["writers"]) for text in texts],
        "loss": [text["loss"] for text in texts],
        "regret": [text["regret"] for text in texts],
    }


def _collect(
    job: Job,
    candidate: int | str,
    title: str,
    decoder: Blueprint,
    batch_of: Callable[[list[Prompt]], TextBatch],
    rows_of: Callable[[TextBatch, list[dict]], list[dict]],
) -> dict[str, dict]:
    """The row of each prompt, those that certify.jsonl lacks by ``rows_of`` their texts; batches stay the same."""
    path = job.folder / "certify.jsonl"
    done = {
        row["id"]: row for row in atomic.read_rows(path, ReferenceRow | CandidateRow) if row["candidate"] == candidate
    }
    grouped = enumerate(batches(job.splits["certify"]))
    missing = {number: batch_of(some) for number, some in grouped if any(p.id not in done for p in some)}
    for batch, texts in written(job, title, {CANDIDATE: decoder}, missing):
        rows = [
            {"id": p.id, "candidate": candidate} | row
            for p, row in zip(batch.prompts, rows_of(batch, texts), strict=True)
        ]
        atomic.append_rows(path, rows)
        done |= {row["id"]: row for row in rows}
    return done
