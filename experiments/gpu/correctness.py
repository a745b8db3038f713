"""The checks of ``experiments/gpu_check.py`` that come before any speed: texts, waits, kernels, streams."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from decoding import LM, MTAD, Autoregressive, Backoff, Sampling, Speculative, generate
from decoding.cli.dtypes import DtypeOptions
from decoding.generation import commits, start
from experiments.engine_speed.random_models import random_pair
from experiments.gpu.speed import logistic
from policies import Random, Rule
from policies.features.distribution import Distribution


def decoders(small: LM, large: LM) -> dict[str, Callable[[], object]]:
    device = large.device
    rule, chance = Rule("top1", 0.05, "<=").to(device), Random(0.3).to(device)
    learned = logistic(small.vocab, device).with_threshold(0.5)
    return {
        "autoregressive": lambda: Autoregressive(large),
        "hand-off by a rule": lambda: Backoff([small, large], rule),
        "hand-off by chance": lambda: Backoff([small, large], chance),
        "hand-off by all features": lambda: Backoff([small, large], learned),
        "speculative": lambda: Speculative([small, large], 4),
        "speculative with a stop": lambda: Speculative([small, large], 4, stop=rule),
        "mtad": lambda: MTAD([small, large], beams=3, length=3, tree=True),
    }


def pairs(device: str) -> tuple[tuple[LM, LM], tuple[LM, LM]]:
    """The same tiny pair in float32 twice: with graphs, and without."""
    graphs = random_pair("tiny", device, DtypeOptions().resolved(["float32"] * 2))
    return graphs, tuple(LM(lm.model) for lm in graphs)


def texts(device: str, new: int) -> dict:
    """Texts with graphs and a host that hears late, against those of eager forwards and a host that waits."""
    graphs, eager = pairs(device)
    found = {}
    for batch in (1, 4):
        ids = torch.randint(256, (batch, 9), generator=torch.Generator().manual_seed(1)).to(device)
        for sampling in (Sampling(), Sampling(1.0)):
            for name in decoders(*graphs):
                options = {"max_new_tokens": new, "eos_token_id": (5, 9), "sampling": sampling, "seed": 1}
                twice = [generate(decoders(*graphs)[name](), ids, **options).sequences for _ in range(2)]
                waited = generate(decoders(*eager)[name](), ids, stream=lambda piece: None, **options).sequences
                key = f"{name}, batch {batch}, {'greedy' if sampling.greedy else 'sampling'}"
                found[key] = all(text.shape == waited.shape and text.equal(waited) for text in twice)
    return {"equal": found, "passed": all(found.values())}


def waits(device: str, new: int) -> dict:
    """The first wait of the host in the loop of each decoder, in torch's words; none is allowed, and a CPU has none.

    Torch refuses what waits while it is in the loop, after the first commits and before the last ones: there a prompt
    is read, and a budget cuts drafts. An event that one small copy has arrived is no such wait.
    """
    graphs, _ = pairs(device)
    ids, found = torch.full((1, 9), 3, device=device), {}
    for name in decoders(*graphs):
        generate(decoders(*graphs)[name](), ids, max_new_tokens=new, eos_token_id=(), seed=1)  # records
        try:
            found[name] = {
                "commits": hot_loop(decoders(*graphs)[name](), ids, new, device.startswith("cuda")),
                "waits": None,
            }
        except RuntimeError as error:
            found[name] = {"commits": None, "waits": str(error).splitlines()[0]}
    return {"waits": found, "passed": all(one["commits"] for one in found.values())}


@torch.inference_mode()
def hot_loop(decoder, ids: torch.Tensor, new: int, debug: bool, first: int = 2, last: int = 8) -> int:
    """Commits that were made while torch, with ``debug``, refused to wait. RuntimeError for a wait."""
    state = start(decoder, ids, None, new, (), Sampling(), 1)
    state.ahead, made = True, 0
    try:
        for count, _ in enumerate(commits(decoder, state)):
            hot = count >= first and state.buffer.room > last
            made += hot
            if debug:
                torch.cuda.set_sync_debug_mode("error" if hot else "default")
    finally:
        if debug:
            torch.cuda.set_sync_debug_mode("default")
    return made


def streams(device: str, new: int) -> dict:
    """``texts`` in a process of its own, under torch's sanitizer of streams where there are any."""
    root = Path(__file__).parents[2]
    code = (
        f"from experiments.gpu.correctness import texts; import sys; sys.exit(not texts({device!r}, {new})['passed'])"
    )
    environment = os.environ | {"PYTHONPATH": str(root)}
    if device.startswith("cuda"):
        environment["TORCH_CUDA_SANITIZER"] = "1"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    return {"sanitizer": device.startswith("cuda"), "passed": done.returncode == 0, "said": done.stderr[-2000:]}


def kernels(device: str, rows: int) -> dict:
    """Largest difference of the features of Triton's kernels to torch's, on random and masked logits."""
    if not device.startswith("cuda"):
        return {"passed": True, "differences": None}
    from policies.features.triton_kernels import KernelDistribution

    apart = {}
    for name, logits in cases(rows, device):
        found, expected = KernelDistribution(logits), Distribution(logits)
        for feature in ("top1", "entropy", "varentropy", "top", "top10_mass"):
            ours, theirs = getattr(found, feature), getattr(expected, feature)
            same_nan = bool((ours.isnan() == theirs.isnan()).all())
            apart[f"{name}, {feature}"] = float((ours - theirs).nan_to_num().abs().max()) if same_nan else None
    return {"passed": all(x is not None and x < 1e-5 for x in apart.values()), "differences": apart}


def cases(rows: int, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    for scale in (0.1, 1, 10, 100):
        yield f"scale {scale}", scale * torch.randn(rows, 32_000, device=device)
    masked = 5 * torch.randn(rows, 32_000, device=device)
    yield "masked", masked.masked_fill(torch.rand_like(masked) < 0.9, -torch.inf)
    yield "broken", masked.index_fill(1, torch.tensor([7], device=device), torch.nan)
