"""A new certificate for a finished run: its policy at its threshold, on prompts that nothing has seen."""

from dataclasses import asdict, replace

from train.certification.certification import certificate_of, losses_of, references_of
from train.certification.record import claim_text
from train.certify import check_settings
from train.common import atomic
from train.common.load_run import FinishedRun
from train.common.progress import note
from train.data.prompts import Prompt
from train.data.splits import independent, split_hash

LEAST = 2  # prompts, below which a certificate says nothing


def fresh(found: FinishedRun, prompts: list[Prompt]) -> list[Prompt]:
    """Those of ``prompts`` that are of no group that the run has used, one of each group. ValueError for too few."""
    used = {name for names in found.policy.provenance["groups"].values() for name in names}
    others = [prompt for prompt in prompts if prompt.group not in used]
    kept = independent(others, [prompt for some in found.splits.values() for prompt in some])
    if len(kept) < LEAST:
        raise ValueError(f"{len(kept)} of {len(prompts)} prompts are new to the run; a certificate needs fresh ones")
    if len(kept) < len(prompts):
        note(f"{len(kept):,} of {len(prompts):,} prompts are of groups of their own that the run has not used")
    return kept


def recertify(found: FinishedRun, prompts: list[Prompt], budget: float) -> tuple[bool, str]:
    """Whether the policy of the run holds ``budget``, a mean loss, on ``fresh`` prompts; and the claim, one sentence.

    Confidence and cap are those of the run. The losses and the certificate are written to a folder of the run that
    these prompts name, so a second call on them reads what the first has measured.
    """
    check_settings(budget, found.settings.confidence, found.settings.loss_cap)
    folder = found.folder / f"recertified-{split_hash(prompts)[:12]}"
    folder.mkdir(exist_ok=True)
    settings = replace(found.settings, quality_budget=budget)
    job = replace(found, settings=settings, folder=folder, splits={"certify": prompts})
    losses = losses_of(job, 0, found.policy, references_of(job))
    certificate = certificate_of(job, [losses], 1)
    claim = claim_text(settings, certificate, 1)
    known = {"claim": claim, "budget": budget, "confidence": settings.confidence, "loss_cap": settings.loss_cap}
    said = {key: value for key, value in asdict(certificate).items() if key not in ("pvalues", "uppers")}
    mean = {"mean_loss": float(losses["loss"].mean())}
    atomic.write_json(folder / "certificate.json", known | atomic.plain(said) | mean)
    return certificate.chosen is not None, claim
