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
COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from policies.features import triton_kernels as k

pointers = {"logits": "*bf16", "indices": "*i32", "best": "*i64"}
for kernel, sizes in ((k._read, {"PART": 4096}), (k._combine, {"PARTS": 32})):
    constants = {"TOP": 10, "STATE": 16, **sizes}
    numbers = ("stride", "vocab", "parts")
    signature = {
        name: "constexpr" if name in constants else "i32" if name in numbers else pointers.get(name, "*fp32")
        for name in kernel.arg_names
    }
    for capability in (80, 90):
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        found = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert f".target sm_{capability}" in found.asm["ptx"]
"""


def run(code, interpreted):
    environment = os.environ | {"TRITON_INTERPRET": "1" if interpreted else "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_features_of_few_rows():
    run(EQUAL.replace("ROWS", "6").replace("FEW", "2"), True)


@pytest.mark.slow
def test_the_features_of_many_rows():
    run(EQUAL.replace("ROWS", "2000").replace("FEW", "40"), True)


def test_they_compile_without_a_gpu():
    run(COMPILED, False)
