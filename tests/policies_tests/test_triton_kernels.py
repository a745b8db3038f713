"""The Triton kernels compute what ``Distribution`` does, on a CPU by Triton's interpreter, and compile for two GPUs."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="needs Triton")

EQUAL = """
import torch
from policies.features.distribution import Distribution
from policies.features.triton_kernels import KernelDistribution

def check(logits):
    found, expected = KernelDistribution(logits), Distribution(logits)
    for name in ("top1", "entropy", "varentropy", "top", "top10_mass"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-5, equal_nan=True)
    known = ~logits.isnan().any(-1)
    at = logits.gather(-1, found.argmax[..., None])[..., 0]
    assert (at == logits.amax(-1))[known].all()

g = torch.Generator().manual_seed(0)
for scale in (0.1, 1.0, 5.0, 100.0):
    check(scale * torch.randn(ROWS, 700, generator=g))
    check((scale * torch.randn(FEW, 9001, generator=g)).bfloat16())
masked = 5 * torch.randn(ROWS, 300, generator=g)
masked[torch.rand(ROWS, 300, generator=g) < 0.9] = -torch.inf
check(masked)
odd = torch.randn(8, 5000, generator=g)
odd[0, 3] = odd[1, 4999] = torch.nan
odd[2], odd[3, 7], odd[4, :4096] = -torch.inf, torch.inf, -torch.inf
odd[5] = 0.0
odd[6] = -1e30
odd[7, 4500] = 1e30
check(odd)
check(torch.randn(3, 7, generator=g))
check(torch.randn(2, 3, 64, generator=g))
"""
DECIDED = """
import numpy as np
import torch
from decoding.state.policy_state import PolicyState
from decoding.state.token_buffer import TokenBuffer
from policies import FEATURES, MLP, Logistic, Rule
from policies.features import device_path

VOCAB, BATCH, PROMPT, BUDGET = 5000, 4, 6, 20
NAMES = tuple(name for name, feature in FEATURES.items() if not feature.needs_target and name != "uniform")
g = torch.Generator().manual_seed(0)
CLASSES = torch.randint(0, 16, (VOCAB,), dtype=torch.uint8, generator=g)
rng = np.random.default_rng(1)

def text_of():
    ids = torch.randint(3, 6, (BATCH, PROMPT), generator=g)
    mask = (torch.arange(PROMPT) >= torch.tensor([0, 3, 5, 1])[:, None]).long()
    text = TokenBuffer(ids * mask, mask, BUDGET, 4, (), 0)
    text.ids[:] = torch.randint(3, 6, text.ids.shape, generator=g)
    return text

def states(policy, text):
    device_path.on_gpu = lambda tensor: True
    fast = PolicyState(policy, text)
    assert type(fast.compiled) is device_path.DevicePolicy
    steps = PolicyState(policy, text)
    steps.compiled = None
    return fast, steps

def check(policy):
    text, risks, said = text_of(), [], []
    for share in (None, 0.3, 0.6):
        if share is not None:
            values = torch.cat(risks).unique()
            values = values[values.isfinite()]
            cut = int(share * (len(values) - 1))
            policy = policy.with_threshold((values[cut] + values[min(cut + 1, len(values) - 1)]) / 2)
        fast, steps = states(policy, text)
        for place in range(BUDGET):
            rows = torch.tensor([[0, 1, 2, 3], [1, 3], [2]][place % 3])
            lengths = text.prompts[rows] + place
            logits = 4 * torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(place))
            if place % 6 == 4:
                logits[:, 5:700] = -torch.inf
            if place % 6 == 5:
                logits[0, 77] = torch.nan
            if place % 2:
                logits = logits.bfloat16()
            if share is None:
                risks.append(policy.score(steps.step(logits, rows, lengths)))
                fast.decide(logits, rows, lengths)
            else:
                expected, found = steps.decide(logits, rows, lengths), fast.decide(logits, rows, lengths)
                assert expected.equal(found), (policy.names, place, expected, found)
                said += found.tolist()
            if fast.history is not None:
                torch.testing.assert_close(fast.history, steps.history, rtol=1e-5, atol=1e-5, equal_nan=True)
            for state in (fast, steps):
                if place % 4 == 3:
                    agreed = torch.rand(len(rows), generator=torch.Generator().manual_seed(place)) < 0.5
                    state.checked_by_large(rows, lengths + 1, agreed, logits.nan_to_num())
                if place % 5 == 4:
                    state.forget(rows, lengths)
    return said

for kind in (Logistic, MLP):
    policy = kind(NAMES, classes=CLASSES).fit(rng.normal(2, 2, (300, len(NAMES))), rng.random(300))
    said = check(policy)
    assert 0 < sum(said) < len(said)
for name in NAMES:
    check(Rule(name, 0.0, ">=" if len(name) % 2 else "<=", classes=CLASSES))
"""
COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from decoding.kernels import commit as c
from policies.features import decision_kernel as d
from policies.features import triton_kernels as k

WHOLE = ("rows", "lengths", "ids", "prompts", "checked", "plan", "recorded", "best", "tokens", "limits", "eos", "said")
pointers = dict.fromkeys(WHOLE, "*i64")
pointers |= {"logits": "*bf16", "indices": "*i32", "classes": "*u8", "out": "*i1", "escalates": "*i1", "writers": "*i8"}
NUMBERS = ("stride", "vocab", "parts", "places", "slots", "columns", "window", "known_classes", "features", "width")
NUMBERS += ("n", "batch", "ends", "models")
top = {"TOP": 10, "STATE": 16}
decide = top | {"PARTS": 32, "MOMENTS": True, "REPEATED": True, "REPEATS": 8, "PLACES": 512, "FEATURES": 32}
decide |= {"WINDOW": 8, "KEPT": 2, "SQUASHED": True}
commit = {"ROWS": 2, "BATCH": 2, "ENDS": 2, "MODELS": 2, "DECIDED": True, "VERIFY": True}
for kernel, constants in (
    (k._read, {"PART": 4096, **top}),
    (k._combine, {"PARTS": 32, **top}),
    (d._decide, {**decide, "WIDTH": 0}),
    (d._decide, {**decide, "WIDTH": 32}),
    (d._decide, {**decide, "WIDTH": 0, "MOMENTS": False, "KEPT": 0, "SQUASHED": False, "REPEATED": False}),
    (c._commit, commit),
    (c._commit, {**commit, "ROWS": 64, "BATCH": 64, "DECIDED": False}),
):
    signature = {
        name: "constexpr" if name in constants else "i32" if name in NUMBERS else pointers.get(name, "*fp32")
        for name in kernel.arg_names
    }
    for capability in (80, 90):
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        found = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert f".target sm_{capability}" in found.asm["ptx"]
"""


def run(code, interpreted):
    environment = os.environ | {"TRITON_INTERPRET": "1" if interpreted else "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_features_of_few_rows():
    run(EQUAL.replace("ROWS", "6").replace("FEW", "2"), True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_features_of_many_rows():
    run(EQUAL.replace("ROWS", "2000").replace("FEW", "40"), True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whole_decisions():
    """Of every feature alone and all of them, with a history, rows that come and go, masked and broken logits."""
    run(DECIDED, True)


def test_they_compile_without_a_gpu():
    run(COMPILED, False)
