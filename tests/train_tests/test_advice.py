"""The advice of a run: what to deploy, and a command that the program takes."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from decoding.cli.dtypes import DtypeOptions
from decoding.cli.options import parse
from decoding.serve import ServeOptions
from train.common.result import AgainstRandom, MethodRow
from train.evaluation.advice import advice

DRAFTS = {"method": "speculative", "length": "2"}


def row(key: str, speedup: float, low: float, loss: float = 0.0, most: float = 0.0) -> MethodRow:
    speeds = {"speedup": speedup, "speedup_interval": [low, speedup + 0.2]}
    losses = {"loss": loss, "loss_interval": [0.0, most], "length_ratio": 1.0, "total_time_ratio": 1.0}
    return MethodRow(key, f"the {key} one", 10.0, **speeds, **losses, plain_regret=0.0, at_cap=0.0)


def comparison(high: float) -> AgainstRandom:
    return AgainstRandom(0.2, -0.1, [-0.2, high], 0.95, True)


@pytest.fixture
def job(tmp_path):
    dtypes = DtypeOptions(small_dtype="int4")
    settings = SimpleNamespace(small="a b.gguf", large=None, dtypes=dtypes)
    return SimpleNamespace(settings=settings, folder=tmp_path)


@pytest.mark.parametrize(
    ("tuned", "exact", "high", "said"),
    [
        (row("tuned", 1.5, 1.4, 0.1, 0.2), row("exact", 1.6, 1.5), -0.01, "Deploy exact drafts (the exact one), 1.60x"),
        (row("tuned", 2.5, 2.4, 0.1, 0.2), row("exact", 1.6, 1.5), -0.01, "Deploy the tuned policy, 2.50x"),
        (row("tuned", 2.5, 2.4, 0.1, 0.2), row("exact", 1.6, 1.5), 0.01, "Deploy exact drafts (the exact one), 1.60x"),
        (row("tuned", 2.5, 2.4, 0.1, 0.2), row("exact", 0.9, 0.8), 0.01, "Deploy the large model alone"),
        (row("tuned", 2.5, 2.4), row("exact", 1.6, 1.5), 0.01, "Deploy the tuned policy, 2.50x"),
        (row("tuned", 1.1, 0.9, 0.1, 0.2), row("exact", 1.2, 0.9), -0.01, "Deploy the large model alone"),
    ],
)
def test_the_advice_names_what_is_surely_better_and_its_command(job, tuned, exact, high, said):
    found = advice(job, tuned, exact, DRAFTS, comparison(high))
    assert found.startswith(said)
    module, options = re.fullmatch(r".*`python -m ([\w.]+) ([^`]*)`", found).groups()
    if module == "decoding.serve":
        parsed = parse(shlex.split(options), ServeOptions)
        if "tuned" in said:
            assert parsed.policy == Path(job.folder / "policy.json")
        else:
            assert (parsed.small, parsed.method, parsed.length) == ("a b.gguf", "speculative", 2)
            assert parsed.dtypes.small_dtype == "int4"
    else:
        assert module == "decoding.measure_cost" and "--small 'a b.gguf'" in found
