"""The same rows get the same score, and the same texts the same decisions, wherever a policy has gone."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from export_specimens import CLASSES, SPECIMENS, exported, source
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny

from decoding import Backoff, generate
from decoding.state.suffix import longest_repeated_suffix
from decoding.step import Step
from policies import Logistic, Rule
from policies.export.engines.onnx_graph import rows
from policies.export.engines.portable_json import SCHEMA
from policies.export.portable import document
from policies.export.runtime import FEATURES as NUMPY_FEATURES
from policies.export.runtime import Decision, PolicyState
from policies.export.runtime import longest_repeated_suffix as numpy_repeated
from policies.features.table import FEATURES, feature_columns, history_for

CLOSE = {"rtol": 1e-6, "atol": 1e-6}
ROWS = 10_000
every = pytest.mark.parametrize("kind", sorted(SPECIMENS))


def module_of(folder):
    spec = importlib.util.spec_from_file_location("exported_policy", folder / "policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected(policy, table, hidden):
    return policy.score_table(table, None if hidden is None else torch.from_numpy(hidden)).numpy()


@every
def test_numpy_module_and_json_give_the_score(kind, tmp_path):
    policy = SPECIMENS[kind]()
    table, hidden = rows(policy, ROWS)
    wanted = expected(policy, table, hidden)
    module = module_of(exported(policy, "python", tmp_path))
    read = Decision(json.loads((exported(policy, "json", tmp_path) / "policy.json").read_bytes()))
    for decision in (module.DECISION, read):
        got = decision.score(table, hidden)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, equal_nan=True, **CLOSE)
    if kind in ("rule", "logistic", "mlp"):
        assert np.isnan(wanted).any() and np.isfinite(wanted).any()  # the rows are extreme indeed


@every
def test_onnx_gives_the_score_and_the_decision(kind, tmp_path):
    pytest.importorskip("onnx", reason="pip install 'two-model-decoding[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'two-model-decoding[onnx]'")
    policy = SPECIMENS[kind]()
    table, hidden = rows(policy, ROWS, seed=1)
    folder = exported(policy, "onnx", tmp_path)
    session = runtime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
    feed = {"features": table} | ({} if hidden is None else {"hidden": hidden})
    score, escalate = session.run(["score", "escalate"], feed)
    np.testing.assert_allclose(score, expected(policy, table, hidden), equal_nan=True, **CLOSE)
    assert np.array_equal(escalate, ~(score < np.float32(policy.threshold.item())))


def test_an_onnx_graph_that_errs_is_not_written(monkeypatch, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(Logistic, "_score", lambda self, table, hidden: table.sum(-1))
    with pytest.raises(ValueError, match="does not give this policy's score"):
        exported(SPECIMENS["logistic"](), "onnx", tmp_path)
    assert not list(tmp_path.rglob("*.onnx"))


def test_without_the_extra_onnx_is_refused_with_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install 'two-model-decoding\[onnx\]'"):
        exported(Rule("top1", 0.4, "<="), "onnx", tmp_path)


@every
def test_the_json_follows_its_schema(kind, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    folder = exported(SPECIMENS[kind](), "json", tmp_path)
    schema = json.loads((folder / "policy.schema.json").read_bytes())
    assert schema == json.loads(json.dumps(SCHEMA))
    found = json.loads((folder / "policy.json").read_bytes())
    jsonschema.validate(found, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found | {"threshold": "high"}, schema)


def steps(n=200, vocab=40, seed=0):
    draw = np.random.default_rng(seed)
    logits = (4 * draw.normal(size=(n, vocab))).astype(np.float32)
    logits[0, 0], logits[1, :20], logits[2] = np.nan, -np.inf, 0
    state = {
        "position": draw.integers(0, 60, n),
        "since_large": draw.integers(0, 9, n),
        "repeated": draw.integers(0, 9, n),
        "agreed": draw.choice([0.0, 1.0, np.nan], n),
        "large_entropy": draw.choice([0.5, np.nan], n),
        "uniform": draw.random(n),
        "last_token": draw.integers(0, vocab, n),
        "history": draw.choice([0.1, 2.0, np.nan], (n, 8, 2)),
    }
    return logits, state


def test_every_feature_is_the_same_in_numpy():
    """Of all features but those of drafted tokens that the large model has read."""
    names = [name for name, feature in FEATURES.items() if not feature.needs_target]
    assert sorted(NUMPY_FEATURES) == sorted(names)
    logits, state = steps()
    step = Step(torch.from_numpy(logits), **{name: torch.from_numpy(value) for name, value in state.items()})
    wanted = feature_columns(step, names, history_for(names), CLASSES).numpy()
    found = document(source(Rule.never())) | {
        "features": names,
        "history": list(history_for(names)),
        "classes": CLASSES.tolist(),
    }
    got = Decision(found).features(logits, **state)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert np.isnan(wanted[0]).any()


@pytest.mark.parametrize("kind", ["rule", "logistic", "always", "never"])
def test_decisions_of_broken_and_sound_logits(kind, tmp_path):
    policy = SPECIMENS[kind]()
    logits, state = steps()
    state["history"] = state["history"][..., : len(policy.history)]
    step = Step(torch.from_numpy(logits), **{name: torch.from_numpy(value) for name, value in state.items()})
    assert np.array_equal(Decision(document(source(policy))).decide(logits, **state), policy(step).numpy())


def test_a_feature_that_was_not_given_is_named():
    decision = Decision(document(source(Rule("position", 3.0))))
    with pytest.raises(ValueError, match="pass position="):
        decision.decide(np.zeros(5))


@given(st.lists(st.integers(0, 2), max_size=14))
@settings(deadline=None)
def test_a_loop_is_as_long_as_the_engine_says(answer):
    padded = torch.tensor([answer + [0] * (20 - len(answer))])
    assert numpy_repeated(answer) == int(longest_repeated_suffix(padded, torch.tensor([len(answer)])))


def test_a_policy_state_decides_as_the_engine_does(prompts):
    """Token by token along an answer, with everything a policy can remember."""
    small, large = tiny(seed=1), tiny(seed=2)
    names = ("entropy", "position", "since_large", "agreed", "large_entropy", "mean_entropy", "mean_agreed", "repeated")
    policy = Logistic(names)
    coef = torch.tensor([1.0, -0.01, 0.1, -0.5, 0.2, 0.5, -0.5, -0.2])
    weights = {"mean": torch.zeros(8), "scale": torch.ones(8), "coef": coef, "intercept": torch.tensor(-3.4)}
    policy.set_weights(weights)
    ids = prompts[0][:1]
    result = generate(Backoff([small, large], policy, verify_eos=False), ids, max_new_tokens=30, eos_token_id=())
    answer, state, writers = [], PolicyState(Decision(document(source(policy)))), []
    for token in result.sequences[0, ids.shape[1] :].tolist():
        text = torch.cat([ids, torch.tensor([answer], dtype=torch.long)], 1)
        with torch.inference_mode():
            by_small, by_large = (lm.model(text).logits[0, -1].numpy() for lm in (small, large))
        escalated = state.decide(by_small, answer, int(text[0, -1]))
        if escalated:
            state.checked_by_large(len(answer) + 1, by_small.argmax() == by_large.argmax(), by_large)
        writers.append(int(escalated))
        answer.append(token)
    assert writers == result.writers[0].tolist()
    assert 0 < sum(writers) < 30


def test_the_module_needs_numpy_only(tmp_path):
    folder = exported(SPECIMENS["mlp"](), "python", tmp_path)
    code = "import sys, policy; assert not {'torch', 'policies'} & set(sys.modules); print(policy.threshold)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env={}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
