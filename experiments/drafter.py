"""How good and how cheap is the drafter? Agreement with the target's own text on unseen prompts, and its cost.

python experiments/drafter.py --limit 100
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table


@dataclass
class Drafter:
    """Greedy agreement of a drafter with the target's own answers, by prompt family, and both models' cost."""

    small: str | None = None
    """folder, hub id or .gguf of the drafter (default: the one in the repository)"""
    prompts: str | None = None
    """prompts the drafter never saw (default: the embedded ones)"""
    limit: int = 100
    max_new_tokens: int = 96
    threads: int | None = None
    output: Path | None = None
    """write the figures to this JSON file"""


def main(config: Drafter) -> dict:
    from decoding.cost.timing import measure
    from decoding.models.defaults import load_model
    from train.data.prompts import load_prompts
    from train.distillation.agreement import expected_accepted

    if config.threads:
        torch.set_num_threads(config.threads)
    large = load_model("large", None)
    small = load_model("small", config.small)
    prompts = load_prompts(config.prompts, large.tokenizer, config.limit)
    runs = [agreements(small, large, prompt, config.max_new_tokens) for prompt in track(prompts, "target's answers")]
    by_family = defaultdict(list)
    for prompt, agree in zip(prompts, runs, strict=True):
        by_family[prompt.family].append(agree)
    small_cost, large_cost = measure([small, large])
    result = {
        "prompts": len(prompts),
        "tokens": sum(map(len, runs)),
        "agreement": float(np.concatenate(runs).mean()),
        "accepted_at_length_4": expected_accepted(runs, 4),
        "by_family": {
            family: {
                "tokens": sum(map(len, some)),
                "agreement": float(np.concatenate(some).mean()),
                "accepted_at_length_4": expected_accepted(some, 4),
            }
            for family, some in sorted(by_family.items())
        },
        "seconds_one_token": {"small": small_cost[1], "large": large_cost[1]},
        "cost_ratio": small_cost[1] / large_cost[1],
        "threads": torch.get_num_threads(),
    }
    show(result)
    if config.output is not None:
        config.output.write_text(json.dumps(result, indent=1))
    return result


def agreements(small, large, prompt, max_new_tokens: int) -> np.ndarray:
    """bool [n]: where the drafter's best token is the one in the target's greedy answer, which it reads as written."""
    from decoding import Autoregressive, generate
    from train.quality.guarded_regret import answer_logits

    ids = torch.tensor([prompt.ids])
    result = generate(Autoregressive(large), ids, max_new_tokens=max_new_tokens)
    answer = result.sequences[0, ids.shape[1] :].tolist()
    with torch.inference_mode():
        best = answer_logits(small, prompt.ids, answer).argmax(-1)
    return best.numpy() == np.array(answer)


def show(result: dict) -> None:
    table = Table("family", "tokens", "agreement", "accepted a round at length 4")
    for family, row in {**result["by_family"], "all": result}.items():
        table.add_row(family, f"{row['tokens']}", f"{row['agreement']:.3f}", f"{row['accepted_at_length_4']:.2f}")
    console = Console()
    console.print(table)
    seconds = result["seconds_one_token"]
    console.print(
        f"{result['prompts']} unseen prompts; one token: small {seconds['small'] * 1e3:.1f} ms, large "
        f"{seconds['large'] * 1e3:.1f} ms, ratio {result['cost_ratio']:.3f}"
    )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Drafter, description=__doc__))
