"""The certification of a run: thresholds are frozen, then tested in order on prompts that nothing else has touched."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from decoding import Backoff
from policies.storage import documents
from train.certification.record import record
from train.certify import Certificate, certify
from train.common import atomic
from train.common.cli import InputError
from train.common.generations import answers, batches, places, seed_of, write
from train.common.job import Job, Tuned
from train.common.progress import track
from train.common.result import Candidate, CertificateRecord
from train.common.rows import CandidateRow, ReferenceRow
from train.data.prompts import Prompt
from train.data.splits import refuse_overlap, split_hash
from train.replay.pricing import alone, judged
from train.search.backoff import GRID, Search
from train.search.goal import LEAST_SPEEDUP

CANDIDATES = 5


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
    at = places(job.splits["certify"])

    def write_rows(some: list[Prompt]) -> list[dict]:
        return [{"answer": own} for own in answers(job.large, some, job.new, job.sampling, at[some[0].id])]

    done = _collect(job, "large", "certification, large model alone", write_rows)
    return {name: row["answer"] for name, row in done.items()}


def losses_of(job: Job, number: int, policy, references: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Columns [prompts] of one candidate: loss, priced seconds, tokens, and those that the large model wrote."""
    decoder, at = Backoff(job.models, policy.to(job.large.device)), places(job.splits["certify"])

    def judged_texts(some: list[Prompt], seed: int) -> dict[str, np.ndarray]:
        texts = write(decoder, some, job.new, job.sampling, seed)
        return judged(job.metric, some, texts, [references[p.id] for p in some], job.cost)

    def measure(some: list[Prompt]) -> list[dict]:
        columns = mean_columns([judged_texts(some, seed_of(number, at[some[0].id])) for number in range(job.seeds)])
        return [{name: float(column[i]) for name, column in columns.items()} for i in range(len(some))]

    done = _collect(job, number, f"certification, candidate {number + 1}", measure)
    names = ("loss", "seconds", "tokens", "large")
    return {name: np.array([done[p.id][name] for p in job.splits["certify"]]) for name in names}


def mean_columns(texts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The mean of the columns of several texts to the same prompts."""
    return {name: np.mean([columns[name] for columns in texts], 0) for name in texts[0]}


def _collect(job: Job, candidate: int | str, title: str, rows_of: Callable[[list[Prompt]], list[dict]]) -> dict:
    """The row of each prompt, those that certify.jsonl lacks by ``rows_of`` their batches; batches stay the same."""
    path = job.folder / "certify.jsonl"
    done = {
        row["id"]: row for row in atomic.read_rows(path, ReferenceRow | CandidateRow) if row["candidate"] == candidate
    }
    missing = [some for some in batches(job.splits["certify"]) if any(p.id not in done for p in some)]
    for some in track(missing, title):
        rows = [{"id": p.id, "candidate": candidate} | row for p, row in zip(some, rows_of(some), strict=True)]
        atomic.append_rows(path, rows)
        done |= {row["id"]: row for row in rows}
    return done
