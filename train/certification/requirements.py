"""Before any work: whether a certificate can be had, and how many prompts one takes."""

from __future__ import annotations

from train.certify import LIMIT, check_settings, needed
from train.common.progress import say
from train.common.settings import FitPolicy


def check_certificate(settings: FitPolicy, certifiable: bool) -> None:
    """Print how many prompts a certificate of the budget takes. ValueError, one sentence, for one that cannot be had.

    ``certifiable`` is whether the tuning method makes certificates at all.
    """
    budget, confidence, cap, n = settings.quality_budget, settings.confidence, settings.loss_cap, settings.certify
    if n < 0:
        raise ValueError(f"--certify is a number of prompts, not {n}")
    if n and budget is None:
        raise ValueError("--certify needs --quality-budget: a certificate promises a loss")
    if n and not certifiable:
        raise ValueError(f"leave out --certify: --method {settings.method} makes no certificate")
    if n:
        check_settings(budget, confidence, cap)
    elif budget is None or not budget < cap or not certifiable:
        return
    enough = [needed(budget, confidence, cap, part * budget) for part in (0.0, 0.5, 0.75)]
    if n and (enough[0] is None or n < enough[0]):
        raise ValueError(f"--certify {n} certifies nothing: {_prompts(enough[0])} are needed even if the loss is 0")
    say(
        f"to certify a loss of {budget:g} (at confidence {confidence:g}, losses capped at {cap:g}), --certify needs "
        f"{_prompts(enough[0])} if the true loss is 0, {_prompts(enough[1])} if it is half of that and "
        f"{_prompts(enough[2])} at three quarters{f'; it has {n}' if n else ''}"
    )


def _prompts(n: int | None) -> str:
    return f"more than {LIMIT} prompts" if n is None else f"{n} prompts"
