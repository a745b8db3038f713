"""This engine against transformers' own generate on the same model, prompts and tokens, in one run, interleaved.

python experiments/speed.py --limit 12
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table


@dataclass
class Speed:
    """Seconds per token of several ways to write the large model's greedy answer, paired per prompt."""

    limit: int = 12
    """prompts, spread over the families of the embedded set"""
    max_new_tokens: int = 64
    lengths: tuple[int, ...] = (1, 2, 4)
    """draft lengths of exact speculative decoding"""
    threads: int | None = None
    output: Path | None = None
    """write the figures to this JSON file"""


def main(config: Speed) -> dict:
    from decoding import Autoregressive, Speculative, default_pair
    from train.prompts import load_prompts

    if config.threads:
        torch.set_num_threads(config.threads)
    small, large = default_pair()
    prompts = load_prompts(None, large.tokenizer, config.limit)
    ours = {"autoregressive": Autoregressive(large)}
    ours |= {f"speculative {n}": Speculative([small, large], length=n) for n in config.lengths}
    theirs = reference(large)
    ways = {"transformers": lambda ids: _transformers(theirs, ids, config.max_new_tokens)}
    ways |= {name: lambda ids, d=decoder: _ours(d, ids, config.max_new_tokens) for name, decoder in ours.items()}
    seconds, equal = measure(ways, [torch.tensor([p.ids]) for p in prompts])
    result = {name: _row(seconds[name], seconds["transformers"], equal[name]) for name in ways}
    show(result)
    if config.output is not None:
        config.output.write_text(json.dumps(result, indent=1))
    return result


def reference(large):
    """The same weights in a transformers model with transformers' own default attention."""
    model = type(large.model)._from_config(large.model.config, attn_implementation="sdpa").eval()
    model.to(large.model.device, large.model.dtype).load_state_dict(large.model.state_dict())
    model.generation_config = large.model.generation_config
    return model


def measure(ways: dict, prompts: list[torch.Tensor]) -> tuple[dict, dict]:
    """Per way seconds per token [prompts], and on how many prompts its tokens equal those of the first way."""
    names = list(ways)
    for name in names:
        ways[name](prompts[0][:, :8])
    seconds, equal = {name: [] for name in names}, dict.fromkeys(names, 0)
    for i, ids in enumerate(track(prompts, "decoding")):
        answers = {}
        for name in names[i % len(names) :] + names[: i % len(names)]:
            began = time.perf_counter()
            answers[name] = ways[name](ids)
            seconds[name].append((time.perf_counter() - began) / len(answers[name]))
        for name in names:
            equal[name] += answers[name] == answers[names[0]]
    return {name: np.array(values) for name, values in seconds.items()}, equal


def _transformers(model, ids: torch.Tensor, max_new_tokens: int) -> list[int]:
    with torch.inference_mode():
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def _ours(decoder, ids: torch.Tensor, max_new_tokens: int) -> list[int]:
    from decoding import generate

    return generate(decoder, ids, max_new_tokens=max_new_tokens).sequences[0, ids.shape[1] :].tolist()


def _row(seconds: np.ndarray, base: np.ndarray, equal: int) -> dict:
    ratios = base / seconds
    return {
        "ms_per_token": float(np.median(seconds) * 1e3),
        "speedup": float(np.median(ratios)),
        "speedup_range": [float(ratios.min()), float(ratios.max())],
        "equal": f"{equal}/{len(seconds)}",
    }


def show(result: dict) -> None:
    table = Table("way", "ms/token (median)", "against transformers (median of pairs)", "same tokens")
    for name, row in result.items():
        low, high = row["speedup_range"]
        table.add_row(
            name, f"{row['ms_per_token']:.1f}", f"{row['speedup']:.2f}x ({low:.2f} to {high:.2f})", row["equal"]
        )
    Console().print(table)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Speed, description=__doc__))
