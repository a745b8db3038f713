"""What a certificate says, as plain data for policy.json, result.json and the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from train.certify import Certificate
from train.data.prompts import Prompt
from train.evaluation.live import LARGE, bootstrap, speedup

ASSUMPTIONS = (
    "New prompts come from where the certification prompts came from, independently, in the same mix of families; the "
    "families below are a description, not a promise for each.",
    "Candidates, their order, budget, confidence and cap were fixed before the certification prompts were touched "
    "(candidates.json), and those prompts are used for this one certificate.",
    "Loss is the {loss} of greedy text up to the same number of new tokens, under the same two models. A loss above "
    "the cap counts as the cap.",
    "The speed is an estimate of expected cost: the calls that each text took, at batch 1, priced by the measured "
    "timing table, with a 95 % bootstrap interval; wall clock is that of the hold-out. Neither is part of the promise.",
)
TEST = (
    "fixed-sequence testing, safest candidate first, each by betting (Waudby-Smith & Ramdas 2024) on the capped "
    "losses, prompts in the order of a hash of seed and prompt id"
)


def record(
    config,
    loss_name: str,
    certificate: Certificate,
    frozen: Sequence[dict],
    measured: Sequence[dict[str, np.ndarray]],
    reference: dict[str, np.ndarray],
    prompts: Sequence[Prompt],
) -> dict:
    """Everything that the promise rests on; ``measured`` are the columns of the candidates that were tested."""
    shown = 0 if certificate.chosen is None else certificate.chosen
    return {
        "claim": claim_text(config, certificate, len(frozen)),
        "chosen": certificate.chosen,
        "budget": config.quality_budget,
        "confidence": config.confidence,
        "loss_cap": config.loss_cap,
        "bound": certificate.bound,
        "above_cap": certificate.above,
        "level": certificate.level,
        "above_cap_level": certificate.tail_level,
        "prompts": certificate.n,
        "seed": config.seed,
        "test": TEST,
        "candidates": [
            *(
                candidate | _tested(certificate, i, own, reference, config.loss_cap)
                for i, (candidate, own) in enumerate(zip(frozen, measured, strict=False))
            ),
            *frozen[len(measured) :],
        ],
        "families": _families(prompts, measured[shown]["loss"], config.loss_cap),
        "assumptions": [text.format(loss=loss_name) for text in ASSUMPTIONS],
    }


def claim_text(config, certificate: Certificate, frozen: int) -> str:
    """The promise, or that there is none, in one sentence."""
    if certificate.chosen is None:
        return (
            f"Cannot certify a loss of {config.quality_budget:g} on {certificate.n} prompts: all that is sure of the "
            f"safest candidate is a loss of at most {certificate.bound:.4f} (confidence {config.confidence:g}, losses "
            f"capped at {config.loss_cap:g})."
        )
    return (
        f"Certified (candidate {certificate.chosen + 1} of {frozen}): with probability {config.confidence:g} over the "
        f"{certificate.n} certification prompts, the expected loss of a prompt, capped at {config.loss_cap:g}, is at "
        f"most {certificate.bound:.4f}, and at most {certificate.above:.1%} of prompts lose more than the cap."
    )


def instead(methods: Sequence[dict]) -> str:
    """What to do without a promise, from the measured methods of the hold-out."""
    exact = max((m for m in methods if m["key"] in ("speculative", "tree")), key=lambda method: method["speedup"])
    return (
        f"Use exact decoding, which loses nothing: {exact['label']} is {exact['speedup']:.2f}x as fast here. "
        f"policy.json hands every token on; what was tuned is in uncertified.json."
    )


def _tested(certificate: Certificate, i: int, own: dict, reference: dict, cap: float) -> dict:
    """What was measured of one candidate."""
    capped = np.minimum(own["loss"], cap)
    both = {LARGE: reference, "own": own}
    return {
        "pvalue": float(certificate.pvalues[i]),
        "upper": float(certificate.uppers[i]),
        "capped_loss": float(capped.mean()),
        "loss": float(own["loss"].mean()),
        "sd": float(capped.std()),
        "above_cap": int((own["loss"] > cap).sum()),
        "priced_speedup": speedup(both, "own"),
        "priced_speedup_interval": bootstrap(lambda rows: speedup(both, "own", rows), len(capped)),
        "large_share": float(own["large"].sum() / own["tokens"].sum()),
    }


def _families(prompts: Sequence[Prompt], losses: np.ndarray, cap: float) -> list[dict]:
    """Per family, of the candidate that the bound is of."""
    names = np.array([prompt.family for prompt in prompts])
    return [
        {
            "family": str(name),
            "prompts": int((names == name).sum()),
            "capped_loss": float(np.minimum(losses[names == name], cap).mean()),
            "above_cap": int((losses[names == name] > cap).sum()),
        }
        for name in np.unique(names)
    ]
