"""Prompts that finished runs have not used: neither to fit, nor to tune, nor to hold out."""

from collections.abc import Sequence

from train.common.load_run import FinishedRun
from train.data.prompts import Prompt, prompts_for


def unseen_prompts(*runs: FinishedRun) -> list[Prompt]:
    """Prompts of the first run's source, of groups that none of ``runs`` has used. ValueError when there are none."""
    used = {group for run in runs for groups in run.policy.provenance["groups"].values() for group in groups}
    prompts = prompts_for(runs[0].settings, runs[0].models, 10_000)
    unseen = [p for p in prompts if p.group not in used]
    if not unseen:
        why = "tune a run with a smaller --limit or --holdout"
        raise ValueError(f"{runs[0].folder} has used every group of prompts; {why}")
    return unseen


def one_of_each_group(prompts: Sequence[Prompt], longest: int) -> list[Prompt]:
    """One prompt of each group, of at most ``longest`` tokens."""
    return list({p.group: p for p in prompts if len(p.ids) <= longest}.values())


def shortest_first(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts of similar length side by side: they share batches."""
    return sorted(prompts, key=lambda p: len(p.ids))
