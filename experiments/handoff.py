"""Is a tuned policy better than chance? Its guarded regret against random hand-off at the same speed, on many prompts.

    python experiments/handoff.py runs/default --limit 120

The texts are written for real, in batches, by the policy and by random hand-off at two rates around its share of the
large model, on embedded prompts of groups that the run has not seen. Time is priced: the calls that each text took, at
the run's own timing table. So the hold-out's few prompts, timed one by one, become as many as patience allows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import track

from train.data.prompts import Prompt


@dataclass
class HandOff:
    """A tuned policy against random hand-off at the same priced speed, on embedded prompts that its run did not see."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a run of train/fit_policy.py on the default pair and prompts"""
    limit: int = 120
    """prompts, spread over their families"""
    batch: int = 16
    around: float = 0.1
    """how far the two rates of random hand-off lie from the policy's own share of large tokens"""
    output: Path | None = None
    """write the figures to this JSON file"""


def main(config: HandOff) -> dict:
    from decoding import Backoff, default_pair
    from policies import Random, load
    from train.common.generations import answers
    from train.evaluation.holdout import against_random
    from train.evaluation.live import LARGE, bootstrap, speedup
    from train.quality.metric import QualityMetric
    from train.replay.backoff import TimingTables
    from train.replay.pricing import alone, judged

    small, large = default_pair()
    judge = QualityMetric(large)
    policy = load(config.run / "policy.json", models=[small.identity(), large.identity()])
    before = json.loads((config.run / "result.json").read_text())
    cost = TimingTables(before["cost"]["small"], before["cost"]["large"])
    new = int(json.loads((config.run / "run.json").read_text())["settings"]["max_new_tokens"])
    prompts = unseen(large, policy.provenance["groups"], config.limit)
    groups = [prompts[i : i + config.batch] for i in range(0, len(prompts), config.batch)]
    references = [a for some in track(groups, "large") for a in answers(large, some, new)]
    measured = {LARGE: alone(prompts, references, cost)}

    def measure(name: str, rule) -> None:
        texts = written(Backoff([small, large], rule), groups, new, name)
        measured[name] = judged(judge, prompts, texts, references, cost)

    measure("tuned", policy)
    share = float(measured["tuned"]["large"].sum() / measured["tuned"]["tokens"].sum())
    measure("random_low", Random(min(1.0, share + config.around)))
    measure("random_high", Random(max(0.0, share - config.around)))
    result = {"prompts": len(prompts), "large_share": share} | against_random(measured)
    for name in ("tuned", "random_low", "random_high"):
        loss = measured[name]["loss"]
        result[name] = {
            "priced_speedup": speedup(measured, name),
            "loss": float(loss.mean()),
            "loss_interval": bootstrap(lambda rows, loss=loss: loss[rows].mean(), len(loss)),
            "plain_regret": float(measured[name]["regret"].mean()),
        }
    Console().print(result)
    if config.output is not None:
        config.output.write_text(json.dumps(result, indent=1))
    return result


def unseen(large, groups: dict[str, list[str]], limit: int, source: str | None = None) -> list[Prompt]:
    """Prompts (by default embedded) of other groups than those of the run, of similar lengths side by side."""
    from train.data.prompts import load_prompts

    seen = {group for some in groups.values() for group in some}
    prompts = [p for p in load_prompts(source, large.tokenizer, 10_000) if p.group not in seen][:limit]
    return sorted(prompts, key=lambda p: len(p.ids))


def one_of_each(large, seen: Collection[str], longest: int, source: str | None = None) -> list[Prompt]:
    """One prompt, of at most ``longest`` tokens, of each group (of the embedded prompts) not in ``seen``."""
    from train.data.prompts import load_prompts

    prompts = load_prompts(source, large.tokenizer, 10_000)
    return list({p.group: p for p in prompts if p.group not in seen and len(p.ids) <= longest}.values())


def written(decoder, groups: Sequence[list[Prompt]], new: int, title: str) -> list[tuple[list[int], list[int]]]:
    from train.common.generations import write

    return [text for some in track(groups, title) for text in write(decoder, some, new)]


if __name__ == "__main__":
    main(tyro.cli(HandOff, description=__doc__))
