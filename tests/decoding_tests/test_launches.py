"""Launches and waits of a token, by the tape and the simulated device: the table of experiments/README.md."""

import os
import subprocess
import sys

import pytest
from launch_counts import table


def test_a_token_is_one_recording_and_one_copy_to_the_host():
    found = table(["autoregressive", "hand-off, logistic, 17 features"])
    assert len(found) == 2
    for before, after in found.values():
        assert (after.launches, after.waits, after.copies) == (2, 0, 1)
        assert before.launches > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["speculative, 4: a round", "MTAD, 3 beams of 3: a round", "hand-off, every token escalated"]
)
def test_a_round_makes_the_host_wait_for_one_copy(name):
    _, after = table([name])[name]
    assert after.waits == 0
    assert after.copies == (2 if name.startswith("hand-off") else 1)  # the small model's step is told, twice


KERNELS = """
import sys
sys.path[:0] = ["tests/support"]
from launch_counts import table

names = "autoregressive", "hand-off, a rule", "hand-off, logistic, 17 features", "hand-off, MLP, 17 features"
found = table(names, kernels=True)
print({name: after.kernels for name, (_, after) in found.items()})
assert len(found) == 4 and all(0 < after.kernels <= 5 for _, after in found.values())
"""


@pytest.mark.slow
def test_a_decision_and_its_commit_are_five_kernels():
    pytest.importorskip("triton", reason="needs Triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
