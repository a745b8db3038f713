"""Steps whose decision and commit are kernels in Triton's interpreter, on the tape: the text of torch operations."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="needs Triton")

TEXTS = """
import sys
sys.path[:0] = ["tests/support"]
import copy
import numpy as np
import torch
from unittest.mock import patch
from tape import Tape
from tiny_models import nudged, tiny
from decoding import LM, Autoregressive, Backoff, Sampling, Speculative, generate, generate_many
from decoding.kernels import cuda_graphs
from decoding.kernels.commit import commit
from policies import FEATURES, MLP, Logistic, Rule

NAMES = tuple(name for name, feature in FEATURES.items() if not feature.needs_target and name != "uniform")
CLASSES = torch.arange(37, dtype=torch.uint8) % 16
rng = np.random.default_rng(0)

def fitted(kind, seed=0):
    x = np.random.default_rng(seed).normal(2.4, 1, (400, len(NAMES)))
    return kind(NAMES, classes=CLASSES).fit(x, x[:, 0] + x[:, 12] > 4.8)

large = tiny(layers=2, seed=1)
lms = [nudged(large), large]
RUNS = [
    (lambda a, b: Autoregressive(a), Sampling(1.0)),
    (lambda a, b: Backoff([a, b], Rule("entropy", 2.4)), Sampling()),
    (lambda a, b: Backoff([a, b], Rule("entropy", 1.9), verify_eos=False), Sampling()),
    (lambda a, b: Backoff([a, b], fitted(Logistic)), Sampling(1.0)),
    (lambda a, b: Backoff([a, b], fitted(Logistic, 1)), Sampling()),
    (lambda a, b: Backoff([a, b], fitted(MLP)), Sampling()),
    (lambda a, b: Speculative([a, b], 4, stop=fitted(Logistic)), Sampling()),
]
texts = [[5, 11, 4], [7], [8, 3, 20, 6], [30, 31], [9, 9, 2]]

def write(pair):
    for make, sampling in RUNS:
        answers = generate_many(make(*pair), texts, batch_size=3, max_new_tokens=9, eos_token_id=(5, 9), seed=1,
                                sampling=sampling)
        yield sorted(((a.prompt, a.tokens, a.writers) for a in answers))

expected = list(write(lms))
cuda_graphs.CudaGraph = Tape
waits = ("state.generation_state", "state.host_reads", "drafting.draft_model")
for module in waits:
    patch(f"decoding.{module}.host_waits", lambda device: True).start()
patch("decoding.models.lm.recordable", lambda model: True).start()
patch("policies.features.device_path.on_gpu", lambda tensor: True).start()
patch("decoding.state.ahead.commit_kernel", lambda device: commit).start()
found = list(write([LM(nudged(lm, 0).model, graphs=True) for lm in lms]))
for i, (ours, theirs) in enumerate(zip(found, expected)):
    assert ours == theirs, (i, ours, theirs)
assert len({str(run) for run in found}) == len(RUNS)
names = {line[0].__name__ for tape in Tape.made for line in tape.lines if hasattr(line[0], "__name__")}
assert {"commit.default", "decide.default", "read_logits.default"} <= names, names
"""


def test_the_text_is_that_of_torch_operations(caplog):
    done = subprocess.run(
        [sys.executable, "-c", TEXTS], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "run eagerly" not in done.stderr
