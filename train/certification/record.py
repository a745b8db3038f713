"""The record of a certificate, for policy.json, result.json and the report: the claim and all that it rests on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from decoding.cli.sampling import described
from train.certify import Certificate
from train.common.job import Job
from train.common.result import Candidate, CertificateRecord, FamilyLosses, MethodRow
from train.common.settings import FitPolicy
from train.data.prompts import Prompt
from train.evaluation.live import LARGE, bootstrap, speedup

ASSUMPTIONS = (
    "New prompts come from where the certification prompts came from, independently, in the same mix of families; the "
    "families below are a description, not a promise for each.",
    "Candidates, their order, budget, confidence and cap were fixed before the certification prompts were touched "
    "(candidates.json), and those prompts are used for this one certificate.",
    "Loss is the {loss} of {text} text up to the same number of new tokens, under the same two models. A loss above "
    "the cap counts as the cap.",
    "The speed is an estimate of expected cost: the calls that each text took, in batches of {batch}, priced by the "
    "measured timing table, with a 95 % bootstrap interval; wall clock is that of the hold-out. Neither is part of the "
    "promise.",
)
TEST = (
    "fixed-sequence testing, safest candidate first, each by betting (Waudby-Smith & Ramdas 2024) on the capped "
    "losses, prompts in the order of a hash of seed and prompt id"
)


def about(job: Job) -> dict[str, object]:
    """The parts of the assumptions that depend on the job. A promise about greedy texts says nothing of drawn ones."""
    text = "greedy" if job.sampling.greedy else f"sampled ({described(job.sampling)}; mean of {job.seeds} texts)"
    return {"loss": job.metric.loss_name, "text": text, "batch": job.settings.batch_size}


def record(
    job: Job,
    certificate: Certificate,
    frozen: Sequence[Candidate],
    measured: Sequence[dict[str, np.ndarray]],
    reference: dict[str, np.ndarray],
) -> CertificateRecord:
    """Everything that the promise rests on; ``measured`` are the columns of the candidates that were tested."""
    settings, shown = job.settings, 0 if certificate.chosen is None else certificate.chosen
    tested = [
        _tested(candidate, certificate, i, own, reference, settings.loss_cap)
        for i, (candidate, own) in enumerate(zip(frozen, measured, strict=False))
    ]
    return CertificateRecord(
        claim=claim_text(settings, certificate, len(frozen)),
        chosen=certificate.chosen,
        budget=settings.quality_budget,
        confidence=settings.confidence,
        loss_cap=settings.loss_cap,
        bound=float(certificate.bound),
        above_cap=certificate.above,
        level=certificate.level,
        above_cap_level=certificate.tail_level,
        prompts=certificate.n,
        seed=settings.seed,
        test=TEST,
        candidates=[*tested, *frozen[len(measured) :]],
        families=_families(job.splits["certify"], measured[shown]["loss"], settings.loss_cap),
        assumptions=[one.format(**about(job)) for one in ASSUMPTIONS],
    )


def claim_text(settings: FitPolicy, certificate: Certificate, frozen: int) -> str:
    """The promise, or that there is none, in one sentence."""
    n, bound, cap = certificate.n, certificate.bound, settings.loss_cap
    if certificate.chosen is None:
        return (
            f"Cannot certify a loss of {settings.quality_budget:g} on {n} prompts: all that is sure of the safest "
            f"candidate is a loss of at most {bound:.4f} (confidence {settings.confidence:g}, losses capped at "
            f"{cap:g})."
        )
    return (
        f"Certified (candidate {certificate.chosen + 1} of {frozen}): with probability {settings.confidence:g} over "
        f"the {n} certification prompts, the expected loss of a prompt, capped at {cap:g}, is at most {bound:.4f}, and "
        f"at most {certificate.above:.1%} of prompts lose more than the cap."
    )


def instead(methods: Sequence[MethodRow]) -> str:
    """Advice on what to use without a certificate, from the measured methods of the hold-out."""
    exact = max((m for m in methods if m.key in ("speculative", "tree")), key=lambda method: method.speedup)
    return (
        f"Use exact decoding, which loses nothing: {exact.label} is {exact.speedup:.2f}x as fast here. "
        f"policy.json escalates every token; the tuned policy is in uncertified.json."
    )


def _tested(
    candidate: Candidate, certificate: Certificate, i: int, own: dict, reference: dict, cap: float
) -> Candidate:
    """``candidate`` with what was measured of it."""
    capped = np.minimum(own["loss"], cap)
    both = {LARGE: reference, "own": own}
    return replace(
        candidate,
        pvalue=float(certificate.pvalues[i]),
        upper=float(certificate.uppers[i]),
        capped_loss=float(capped.mean()),
        loss=float(own["loss"].mean()),
        sd=float(capped.std()),
        above_cap=int((own["loss"] > cap).sum()),
        priced_speedup=speedup(both, "own"),
        priced_speedup_interval=bootstrap(lambda rows: speedup(both, "own", rows), len(capped)),
        large_share=float(own["large"].sum() / own["tokens"].sum()),
    )


def _families(prompts: Sequence[Prompt], losses: np.ndarray, cap: float) -> list[FamilyLosses]:
    """Per family, the losses of the candidate that the bound is of."""
    names = np.array([prompt.family for prompt in prompts])
    of = lambda name: losses[names == name]  # noqa: E731
    return [
        FamilyLosses(str(name), len(of(name)), float(np.minimum(of(name), cap).mean()), int((of(name) > cap).sum()))
        for name in np.unique(names)
    ]
