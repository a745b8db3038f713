"""What an engine cannot carry is refused, or its nearest setting is written with what was measured of it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from export_specimens import MODELS, PROVENANCE

from policies import Logistic, Rule
from policies.export.__main__ import main
from policies.export.nearest import _best

ROWS = 400


@pytest.fixture
def run(tmp_path):
    """A run whose policy reads entropy, and traces in which top1 falls with entropy but for some noise."""
    draw = np.random.default_rng(0)
    entropy = draw.uniform(0, 4, ROWS).astype(np.float32)
    top1 = np.clip(1 - entropy / 4 + draw.normal(scale=0.05, size=ROWS), 0.01, 0.99).astype(np.float32)
    columns = {"entropy": entropy, "top1": top1, "top10": np.sqrt(top1), "group": [f"g{i % 10}" for i in range(ROWS)]}
    (tmp_path / "traces").mkdir()
    for i in range(2):
        part = {name: column[i::2] for name, column in columns.items()}
        parquet.write_table(pa.table(part), tmp_path / "traces" / f"shard-{i:05d}.parquet")
    Rule("entropy", 2.0).save(tmp_path / "policy.json", MODELS, PROVENANCE)
    return tmp_path


def export(run, target, *more):
    arguments = [str(run / "policy.json"), "--to", target, "--output", str(run / "out"), *more]
    return main(arguments)


def test_refused_without_the_word_written_with_it(run, capsys):
    assert export(run, "transformers-config", "--role", "stop") == 2
    assert "reads 'entropy'" in capsys.readouterr().err and not (run / "out").exists()
    assert export(run, "transformers-config", "--role", "stop", "--approximate") == 0
    said = capsys.readouterr().out
    assert "cannot carry this policy" in said and "nearest setting: escalate when top1 <= " in said
    limit = json.loads((run / "out" / "generation_config.json").read_bytes())["assistant_confidence_threshold"]
    assert 0.4 < limit < 0.6
    note = json.loads((run / "out" / "manifest.json").read_bytes())["provenance"]["approximation"]
    assert note["rows"] == ROWS // 2 and 0.9 < note["agreement"] < 1 and 0.3 < note["policy_ends"] < 0.7
    assert f"{note['agreement']:.1%}" in said


def test_each_engine_gets_a_threshold_on_its_own_probability(run):
    assert export(run, "llama.cpp", "--role", "stop", "--approximate") == 0
    draft = json.loads((run / "out" / "xllamacpp.json").read_bytes())["speculative"]["draft"]
    assert 0.6 < draft["p_min"] < 0.8


def test_an_engine_without_a_threshold_gets_a_length(run, capsys):
    assert export(run, "vllm", "--role", "stop", "--approximate", "--length", "3") == 0
    assert json.loads((run / "out" / "speculative_config.json").read_bytes())["num_speculative_tokens"] == 3
    assert "nearest setting: never escalate" in capsys.readouterr().out


def test_what_fits_is_not_approximated(run):
    Rule("top1", 0.3, "<=").save(run / "policy.json", MODELS, PROVENANCE)
    assert export(run, "openvino", "--role", "stop", "--approximate", "--traces", str(run / "nowhere")) == 0
    held = json.loads((run / "out" / "manifest.json").read_bytes())["provenance"]
    assert held["approximation"] is None


@pytest.mark.parametrize(
    ("policy", "target", "more", "sentence"),
    [
        (Rule("entropy", 2.0), "vllm", (), "no setting near a hand-off"),
        (Rule("tv", 0.5), "python", ("--role", "stop"), "carries no approximations"),
        (Rule("tv", 0.5), "vllm", ("--role", "stop"), "traces do not hold 'tv'"),
        (Rule("margin", 0.5), "vllm", ("--role", "stop"), "it lacks the column 'margin'"),
        (Rule("entropy", 2.0), "vllm", ("--role", "stop", "--traces", "nowhere"), "nowhere: it holds no shards"),
        (Rule("entropy", -1.0), "openvino", ("--role", "stop"), "the nearest ends every draft at once"),
    ],
)
def test_what_cannot_be_fitted_is_refused(run, capsys, policy, target, more, sentence):
    policy.save(run / "policy.json", MODELS, PROVENANCE)
    assert export(run, target, "--approximate", *more) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (run / "out").exists()


def test_the_best_threshold_is_the_best_of_all():
    draw = np.random.default_rng(1)
    for _ in range(20):
        values = draw.integers(0, 6, 30).astype(np.float32)  # with ties
        ends = (values + draw.normal(scale=2, size=30)) < 3
        found = _best(values, ends)
        scores = {x: ((values <= x) == ends).sum() for x in [-1.0, *np.unique(values)]}
        assert scores[-1.0 if found is None else found] == max(scores.values())


def test_a_fit_is_measured_on_other_prompts(run):
    """Two groups in which the probability means the opposite: a fit on one is wrong about all of the other."""
    groups = np.arange(ROWS) % 2
    entropy = np.tile([1.0, 1.0, 3.0, 3.0], ROWS // 4).astype(np.float32)
    top1 = np.where(groups == 0, 1 - entropy / 4, entropy / 4).astype(np.float32)
    table = pa.table({"entropy": entropy, "top1": top1, "group": [f"g{g}" for g in groups]})
    for path in (run / "traces").iterdir():
        path.unlink()
    parquet.write_table(table, run / "traces" / "shard-00000.parquet")
    assert export(run, "openvino", "--role", "stop", "--approximate") == 0
    assert json.loads((run / "out" / "manifest.json").read_bytes())["provenance"]["approximation"]["agreement"] == 0


def test_a_policy_of_several_features_is_scored_as_it_is(run):
    x = np.stack([np.linspace(0, 4, 50), np.linspace(1, 0, 50)], 1)
    Logistic(("entropy", "top1")).fit(x, x[:, 0] > 2).save(run / "policy.json", MODELS, PROVENANCE)
    assert export(run, "openvino", "--role", "stop", "--approximate") == 0
    note = json.loads((run / "out" / "manifest.json").read_bytes())["provenance"]["approximation"]
    assert note["agreement"] > 0.9
