"""The dtypes of weights as options: one for each model; a wrong one is refused before anything is read."""

import pytest
import torch
from tiny_runs import save_model

from decoding import LM, measure_cost
from decoding.__main__ import main as decode
from decoding.cli.dtypes import DtypeOptions
from decoding.cost import cache
from decoding.models import defaults
from decoding.models.dtypes import settled
from decoding.models.sources import locate
from experiments import frontier, mtad, speed
from policies import Rule
from train import distill, fit_policy

NOWHERE = ["--small", "nowhere", "--large", "nowhere"]
COMMANDS = {
    "decoding": (decode, ["text", *NOWHERE]),
    "measure_cost": (measure_cost.main, NOWHERE),
    "fit_policy": (fit_policy.main, NOWHERE),
    "speed": (speed.main, NOWHERE),
    "frontier": (frontier.main, NOWHERE),
    "mtad": (mtad.main, NOWHERE),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: save_model(folder / name, seed, layers=1) for seed, name in enumerate(("small", "large"))}


def test_each_model_has_its_own():
    options = DtypeOptions("bfloat16", large_dtype="int4")
    assert [options.of(role) for role in ("small", "middle", "large")] == ["bfloat16", "bfloat16", "int4"]
    assert {DtypeOptions().of(role) for role in ("small", "large")} == {"auto"}


def test_auto_becomes_what_was_loaded_and_nothing_else_does():
    assert DtypeOptions().resolved(("int4", "int8")) == DtypeOptions("auto", "int4", "int8")
    assert DtypeOptions("float16").resolved(("int4", "int8")) == DtypeOptions("auto", "float16", "float16")
    assert DtypeOptions(large_dtype="int8").resolved(("int4", "int4")) == DtypeOptions("auto", "int4", "int8")
    assert DtypeOptions().resolved((None, "gguf")) == DtypeOptions("auto", "auto", "auto")


@pytest.mark.parametrize("option", ["--dtype", "--small-dtype", "--large-dtype"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_one_is_one_sentence_before_anything_is_read(name, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main, rest = COMMANDS[name]
    assert main([*rest, option, "float8"]) == 2
    error = capsys.readouterr().err
    assert f"{option} must be one of auto, file, int4, int8, bfloat16, float16, float32, not 'float8'\n" in error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_so_it_is_for_the_distillers_target(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert distill.cli(["--target", "nowhere", "--self-prompts", "3", "--target-dtype", "float8"]) == 2
    assert "--target-dtype must be one of auto, file, int4" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_auto_of_float_weights_is_float32_and_an_identity_names_what_was_loaded(pair):
    for dtype, loaded in (("auto", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")):
        lm = defaults.load_model("small", pair["small"], dtype=dtype)
        assert lm.dtype == lm.identity()["dtype"] == loaded and lm.model.dtype == getattr(torch, loaded)


@pytest.mark.parametrize("held", ["float32", "bfloat16", "float16"])
def test_auto_is_what_the_files_hold_where_that_is_fast(held, pair, tmp_path, monkeypatch):
    LM.load(pair["small"], dtype=held, packed=False).model.save_pretrained(tmp_path)
    found, fast = locate(tmp_path), {"bfloat16": {"cpu", "cuda"}, "float16": {"cuda"}, "float32": set()}[held]
    for there in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        for device in ("cpu", "cuda"):
            chosen = held if device in fast and (there or device == "cuda") else "float32"
            assert settled("auto", found, torch.device(device)) == (getattr(torch, chosen), None)
            assert settled("float32", found, torch.device(device)) == (torch.float32, None)


def test_what_auto_chose_is_said(pair, capsys):
    assert decode(["w3 w4", "--small", pair["small"], "--large", pair["large"], "--max-new-tokens", "2"]) == 0
    assert "weights: small float32; large float32\n" in capsys.readouterr().err


def test_costs_are_of_a_dtype(pair):
    exact, rounded = ([LM.load(pair[name], dtype=dtype) for name in pair] for dtype in ("float32", "bfloat16"))
    mixed = [exact[0], rounded[1]]
    assert len({cache.cache_file(models) for models in (exact, rounded, mixed)}) == 3


@pytest.fixture
def loaded(monkeypatch):
    """The dtypes that models were loaded in, by role."""
    found, load = {}, defaults.load_model

    def recorded(role, source, *how):
        lm = load(role, source, *how)
        found[role] = lm.dtype
        return lm

    monkeypatch.setattr(defaults, "load_model", recorded)
    return found


def test_a_policy_is_served_in_the_dtypes_that_it_was_tuned_in(pair, loaded, tmp_path, capsys):
    path, rest = tmp_path / "policy.json", [x for name, source in pair.items() for x in (f"--{name}", source)]
    models = [LM.load(pair["small"], dtype="bfloat16"), LM.load(pair["large"])]
    Rule("entropy", 1.0).save(path, [lm.identity() for lm in models])
    command = ["w5 w6", *rest, "--policy", str(path), "--max-new-tokens", "4"]
    assert decode(command) == 0
    assert loaded == {"small": "bfloat16", "large": "float32"}
    assert "warning" not in capsys.readouterr().err
    assert decode([*command, "--small-dtype", "float32"]) == 0
    assert loaded == {"small": "float32", "large": "float32"}
    assert (
        "small, was in bfloat16 and is in float32; its threshold was measured in bfloat16\n" in capsys.readouterr().err
    )


def test_without_a_policy_the_options_decide(pair, loaded):
    rest = [x for name, source in pair.items() for x in (f"--{name}", source)]
    assert decode(["w5 w6", *rest, "--max-new-tokens", "4", "--dtype", "float16", "--large-dtype", "bfloat16"]) == 0
    assert loaded == {"small": "float16", "large": "bfloat16"}
