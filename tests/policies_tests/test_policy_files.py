"""A policy file loads to something valid or is refused with one sentence; nothing in between."""

import copy
import json
import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies import MLP, Logistic, Momentum, Periodic, PolicyError, Random, Rule, load
from policies.storage import documents

MODELS = [
    {"name": "small", "tokenizer": "t", "config": "c0", "weights": "w0", "generation_config": "g"},
    {"name": "large", "tokenizer": "t", "config": "c1", "weights": "w1", "generation_config": "g"},
]
CLASSES = torch.zeros(20, dtype=torch.uint8)


def _saved(policy, folder):
    policy.save(folder / "policy.json", MODELS, {"split": "abc"})
    return folder / "policy.json"


@pytest.fixture
def logistic(tmp_path):
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    return _saved(Logistic(("entropy", "mean_entropy")).fit(x, (x[:, 0] > 0).float()), tmp_path)


@pytest.fixture
def mlp(tmp_path):
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    policy = MLP(("entropy", "last_is_digit"), hidden=(4,), epochs=1, classes=CLASSES)
    return _saved(policy.fit(x, (x[:, 0] > 0).float()), tmp_path)


def _refusal(path, **options):
    with pytest.raises(PolicyError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert "\n" not in message and ". " not in message and message[-1] not in ".;"  # one sentence
    assert "; " in message  # what is wrong; what would be right
    return message


REFUSED = [
    ({"schema": 2}, "newer"),
    ({"schema": "1"}, "'schema'"),
    ({"schema": True}, "'schema'"),
    ({"kind": "forest"}, "unknown kind 'forest'"),
    ({"kind": ["rule"]}, "unknown kind"),
    ({"kind": "rule"}, "a rule reads 2 features"),
    ({"kind": "never"}, "'features'"),
    ({"kind": "mlp"}, "'settings'"),
    ({"features": None}, "'features'"),
    ({"features": ["entropy", "luck"]}, "unknown feature 'luck'"),
    ({"features": ["entropy", 3]}, "unknown feature 3"),
    ({"features": ["entropy"]}, "'history'"),
    ({"threshold": None}, "'threshold'"),
    ({"threshold": "0.5"}, "'threshold'"),
    ({"threshold": True}, "'threshold'"),
    ({"threshold": 10**400}, "'threshold'"),
    ({"threshold": float("nan")}, "not valid JSON"),
    ({"history": ["agreed"]}, "'history'"),
    *(({"window": value}, "'window'") for value in (4, "8", None, [8], 10**30)),
    ({"settings": []}, "'settings'"),
    ({"settings": {"C": 1}}, "'settings'"),
    ({"weights": []}, "'weights'"),
    ({"weights": {}}, "'mean' is missing"),
    ({"weights": {"mean": ["a"]}}, "'mean'"),
    ({"weights": {"mean": [0, 0], "scale": [0, 1], "coef": [0, 0], "intercept": 0}}, "not positive"),
    ({"weights": {"mean": [0], "scale": [1, 1], "coef": [0, 0], "intercept": 0}}, "shape [1]"),
    ({"models": {}}, "'models'"),
    ({"models": [{"name": "small"}]}, "'models'"),
    ({"provenance": 3}, "'provenance'"),
    ({"tensors": 3}, "'tensors'"),
    ({"tensors": {"file": "gone.safetensors", "sha256": "0"}}, "cannot be read"),
    ({"tensors": {"file": "../x\0", "sha256": "0"}}, "cannot be read"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=str)
def test_each_refusal_is_one_sentence(logistic, change, message):
    document = json.loads(logistic.read_text()) | change
    logistic.write_text(json.dumps(document))
    assert message in _refusal(logistic)


DEEP = '{"a": ' + "[" * 100 + "]" * 100 + "}"  # json reads it, but not what handles its value


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{", '{"schema": 1', "\ufeff{}", "[" * 100_000, '{"a": 1e999, "b": NaN}', '{"a": 1, "a": 1}', DEEP],
)
def test_what_is_not_a_policy_is_refused(tmp_path, text):
    (tmp_path / "policy.json").write_text(text)
    _refusal(tmp_path / "policy.json")


def test_a_changed_number_is_noticed_and_may_be_meant(logistic):
    document = json.loads(logistic.read_text())
    assert load(logistic).threshold.item() == 0.5
    document["threshold"] = 0.25
    logistic.write_text(json.dumps(document))
    assert "it was changed after it was written ('checksum' differs); save the policy again, or " in _refusal(logistic)
    del document["checksum"]
    logistic.write_text(json.dumps(document))
    assert load(logistic).threshold.item() == 0.25


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "policy.json")
    assert "not a regular file" in _refusal(tmp_path / "policy.json")


def test_a_huge_file_is_not_read(logistic):
    os.truncate(logistic, documents.LARGEST + 1)
    assert "536,870,913 bytes" in _refusal(logistic)


def test_bytes_a_folder_and_nothing_are_refused(tmp_path):
    (tmp_path / "policy.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "policy.json", tmp_path, tmp_path / "absent.json"):
        _refusal(path)


ODD = ["0.5", None, [0.5], {}, -1, 10**400]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Rule("top1", 0.4, "<="), {"direction": "<"}),
        (Periodic(3), {"every": 3.0}),
        (Periodic(3), {"every": True}),
        (Random(0.5), {"rate": 0.5}),
        *((Momentum(), {"gap": 0.0, "memory": value}) for value in ODD),
        *((Momentum(), {"gap": value, "memory": 0.7}) for value in ODD),
    ],
)
def test_settings_are_checked(tmp_path, kind, settings):
    path = _saved(kind, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": settings}))
    _refusal(path)


def test_tensors_are_the_ones_saved(mlp):
    beside = mlp.with_suffix(".safetensors")
    blob = beside.read_bytes()
    beside.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    assert "sha256" in _refusal(mlp)
    beside.write_bytes(blob[:40])
    assert "sha256" in _refusal(mlp)
    beside.unlink()
    assert "cannot be read" in _refusal(mlp)


def test_a_file_that_is_no_safetensors_is_refused_even_with_its_sha(mlp):
    import hashlib

    document = json.loads(mlp.read_text())
    mlp.with_suffix(".safetensors").write_bytes(b"pickle")
    document["tensors"]["sha256"] = hashlib.sha256(b"pickle").hexdigest()
    mlp.write_text(json.dumps(document))
    assert "not a safetensors file" in _refusal(mlp)


def test_a_missing_class_table_is_refused(tmp_path):
    policy = Rule("last_is_digit", 0.5, classes=CLASSES)
    path = _saved(policy, tmp_path)
    document = json.loads(path.read_text())
    del document["tensors"]
    path.write_text(json.dumps(document))
    assert "need a table" in _refusal(path)
    with pytest.raises(PolicyError, match="need a table"):
        Rule("last_is_digit", 0.5).save(path)


def _live(**changed):
    models = copy.deepcopy(MODELS)
    models[1] |= changed
    return models


def test_another_tokenizer_is_always_refused(logistic):
    for strict in (True, False):
        assert "another tokenizer" in _refusal(logistic, models=_live(tokenizer="u", weights="w2"), strict=strict)


@pytest.mark.parametrize("part", ["config", "weights"])
def test_other_weights_are_refused_when_strict_and_warned_of_otherwise(logistic, part):
    assert f"another {part}" in _refusal(logistic, models=_live(**{part: "new"}))
    with pytest.warns(UserWarning, match=f"another {part}") as caught:
        load(logistic, models=_live(**{part: "new"}), strict=False)
    assert caught[0].filename == __file__


def _in(*dtypes):
    return [model | {"dtype": dtype} for model, dtype in zip(MODELS, dtypes, strict=True)]


def test_a_policy_of_quantised_weights_is_for_these(tmp_path):
    path = tmp_path / "policy.json"
    Rule("entropy", 1.0).save(path, _in("bfloat16", "int4"))
    assert load(path, models=_in("bfloat16", "int4")).models == _in("bfloat16", "int4")
    for other in ("float32", "int8"):
        said = f"model 1, large, was in int4 and is in {other}; "
        assert said + "load it in int4, " in _refusal(path, models=_in("bfloat16", other))
        with pytest.warns(UserWarning, match=said + "its threshold was measured in int4") as caught:
            load(path, models=_in("bfloat16", other), strict=False)
        assert caught[0].filename == __file__


def test_between_float_dtypes_there_is_a_warning(tmp_path):
    path = tmp_path / "policy.json"
    Rule("entropy", 1.0).save(path, _in("float32", "float32"))
    for strict in (True, False):
        with pytest.warns(UserWarning, match="model 0, small, was in float32 and is in bfloat16; its thr"):
            load(path, models=_in("bfloat16", "float32"), strict=strict)


def test_a_policy_of_a_time_before_dtypes_is_for_any(logistic):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(logistic, models=_in("int4", "int4"))


def test_the_same_models_under_another_name_are_the_same(logistic):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(logistic, models=_live(name="renamed"))
    assert "2 models, not 1" in _refusal(logistic, models=MODELS[:1])


def test_a_policy_bound_to_no_model_fits_all(tmp_path):
    Rule("entropy", 2.0).save(tmp_path / "policy.json")
    load(tmp_path / "policy.json", models=MODELS)


def test_a_refused_save_leaves_the_old_file(logistic):
    before = logistic.read_bytes()
    never_finite = Rule("entropy", float("inf"))
    for save in (
        lambda: never_finite.save(logistic),
        lambda: Rule("entropy", 1.0).save(logistic, provenance={"loss": float("nan")}),
        lambda: Rule("entropy", 1.0).save(logistic, provenance={"when": object()}),
        lambda: Rule("entropy", 1.0).save(logistic, models=[{"name": "small"}]),
        lambda: Rule("entropy", 1.0).save(logistic.with_suffix(".safetensors")),
    ):
        with pytest.raises(PolicyError, match="not written, because"):
            save()
    assert logistic.read_bytes() == before and [p.name for p in logistic.parent.iterdir()] == ["policy.json"]


def test_numbers_are_written_as_they_were_typed(tmp_path):
    path = _saved(Rule("entropy", 0.4), tmp_path)
    assert '"threshold": 0.4,' in path.read_text()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["mlp", "entropy"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _mutate(document, place, value, remove):
    if not place:
        return value
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    if remove:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return document


def _loads_or_refuses(path):
    try:
        policy = load(path, models=MODELS, strict=False)
    except PolicyError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        scores = policy.score_table(torch.zeros(3, len(policy.names)), torch.zeros(3, 5))
        assert scores.shape == (3,) and policy.threshold.isfinite() and policy.describe()


@pytest.mark.filterwarnings("ignore:.*another:UserWarning")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("saved", ["logistic", "mlp"])
def test_any_mutation_loads_or_is_refused(request, saved, data):
    path = request.getfixturevalue(saved)
    text = path.read_text()
    document = json.loads(text)
    place = data.draw(st.sampled_from(list(_places(document))))
    mutated = _mutate(document, place, data.draw(json_values), data.draw(st.booleans()))
    try:
        path.write_text(json.dumps(mutated))
        _loads_or_refuses(path)
    finally:
        path.write_text(text)


@pytest.mark.filterwarnings("ignore:.*another:UserWarning")
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_truncation_or_damage_loads_or_is_refused(mlp, data):
    for path in (mlp, mlp.with_suffix(".safetensors")):
        blob = path.read_bytes()
        cut = data.draw(st.integers(0, len(blob)))
        junk = data.draw(st.binary(max_size=4))
        try:
            path.write_bytes(blob[:cut] + junk + blob[cut + len(junk) :] if data.draw(st.booleans()) else blob[:cut])
            _loads_or_refuses(mlp)
        finally:
            path.write_bytes(blob)
