"""The rows of speed of ``experiments/gpu_check.py``: a pair of random weights under every decoder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from decoding import LM, MTAD, Autoregressive, Backoff, Speculative, generate
from experiments.decision import ALL
from experiments.engine_speed.forwards import wait
from experiments.engines_under_test.peers import twin
from experiments.shared.energy import counter
from policies import Logistic, Policy, Random, Rule

BATCHED = (4, 16, 64)


def logistic(vocab: int, device: torch.device) -> Policy:
    """On all features, weights fitted to noise; it never says True, so all that it costs is itself."""
    rng, classes = np.random.default_rng(0), torch.zeros(vocab, dtype=torch.uint8)
    policy = Logistic(ALL, classes=classes).fit(rng.normal(size=(200, len(ALL))), rng.random(200))
    return policy.with_threshold(math.inf).to(device)


def rows(small: LM, large: LM) -> dict[str, Callable[[], object]]:
    """Decoders by the name of their row."""
    device = large.device
    return {
        "small": lambda: Autoregressive(small),
        "large": lambda: Autoregressive(large),
        "decision:rule": lambda: Backoff([small, large], Rule("entropy", math.inf).to(device)),
        "decision:logistic": lambda: Backoff([small, large], logistic(small.vocab, device)),
        "hand-off:80": lambda: Backoff([small, large], Random(0.2).to(device)),
        "hand-off:90": lambda: Backoff([small, large], Random(0.1).to(device)),
        "speculative:4": lambda: Speculative([small, large], 4),
        "mtad:4": lambda: MTAD([small, large], beams=4, length=4),
    }


def measured(pair: tuple[LM, LM], batch: int, new: int, prompt: int) -> Iterator[dict]:
    """One row after the other. A first text warms up: what its recordings take is told, and not timed."""
    small, large = pair
    device, joules = large.device, counter(large.device)
    ids = torch.randint(small.vocab, (batch, prompt), generator=torch.Generator().manual_seed(0)).to(device)
    for name, make in rows(small, large).items():
        if batch > 1 and name.startswith("mtad"):
            continue
        decoder, times = make(), []
        warm_up = recording_costs(pair, lambda: generate(decoder, ids, max_new_tokens=new, eos_token_id=(), seed=0))  # noqa: B023
        spent = None if joules is None else joules()
        for tokens in (new // 2, new):
            wait(device)
            began = time.perf_counter()
            result = generate(decoder, ids, max_new_tokens=tokens, eos_token_id=(), seed=0)
            wait(device)
            times.append(time.perf_counter() - began)
        yield {
            "row": name,
            "batch": batch,
            # Of the second half of the tokens: reading the prompt and what happens once cancel out.
            "seconds_a_token": (times[1] - times[0]) / (new - new // 2),
            "share_by_large": float((result.writers == 1).float().mean()) if "hand-off" in name else None,
            "calls": result.counts["calls"],
            "warm_up": warm_up,
            "joules": None if spent is None else joules() - spent,
        }


def recording_costs(pair: tuple[LM, LM], write: Callable[[], object]) -> dict:
    """The graphs that are recorded while ``write`` runs: their number, seconds, and bytes on the device."""
    costs = [lm.recorders.cost for lm in pair if lm.recorders is not None]
    cuda = pair[1].device.type == "cuda"
    told = lambda: (  # noqa: E731
        sum(cost.count for cost in costs),
        sum(cost.seconds for cost in costs),
        torch.cuda.memory_reserved() if cuda else 0,
    )
    before = told()
    write()
    names = "recordings", "seconds", "bytes"
    return {name: b - a for name, a, b in zip(names, before, told(), strict=True)}


def peers(pair: tuple[LM, LM], new: int, prompt: int) -> Iterator[dict]:
    """transformers' ``generate`` of the large model, alone and assisted by the small one with drafts of 4."""
    small, large = map(twin, pair)
    device = pair[1].device
    ids = torch.randint(pair[0].vocab, (1, prompt), generator=torch.Generator().manual_seed(0)).to(device)
    small.generation_config.num_assistant_tokens_schedule = "constant"
    small.generation_config.num_assistant_tokens = 4
    small.generation_config.assistant_confidence_threshold = 0.0
    for name, options in (("transformers", {}), ("transformers-assisted:4", {"assistant_model": small})):
        times = []
        for tokens in (new // 2, new // 2, new):
            wait(device)
            began = time.perf_counter()
            large.generate(
                ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, **options
            )
            wait(device)
            times.append(time.perf_counter() - began)
        yield {"row": name, "batch": 1, "seconds_a_token": (times[2] - times[1]) / (new - new // 2)}
