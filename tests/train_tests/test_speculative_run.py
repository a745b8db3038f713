"""The main job for drafts: what it leaves, that decoders follow it, and what it refuses."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from result_specimens import found as specimen
from tiny_models import nudged
from tiny_runs import FAST, save_model, toy_pair, write_prompts

from decoding import LM
from decoding.__main__ import main as decode
from decoding.cost import cache
from decoding.cost.costs import ModelCosts
from policies import Rule, load
from policies.decoder_spec import DecoderSpec, spec_of
from policies.export.source import open_source
from train.common.job import Tuned
from train.evaluation.rivals import against_rival, beside_rival
from train.fit_policy import main
from train.reports import page

COST = ModelCosts(({1: 1.0, 4: 1.05, 16: 1.2}, {1: 10.0, 4: 10.5, 16: 13.0}))


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    _, large = toy_pair()
    small = nudged(large, 0.06)
    small.tokenizer = large.tokenizer
    for name, lm in (("small", small), ("large", large)):
        lm.model.save_pretrained(folder / name)
        lm.tokenizer.save_pretrained(folder / name)
    other = save_model(folder / "other", seed=3, layers=1)
    prompts = write_prompts(folder / "prompts.jsonl", 30)
    return SimpleNamespace(small=folder / "small", large=folder / "large", other=other, prompts=prompts)


def arguments(toys, output, **changes):
    options = {"small": toys.small, "large": toys.large, "prompts": toys.prompts, "output": output} | FAST
    options |= {"method": "speculative", "trials": 45, "longest": 5} | changes
    return [str(x) for name, value in options.items() for x in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def finished(toys, tmp_path_factory):
    """A run whose timing table is given, so that only what runs live depends on the clock."""
    output = tmp_path_factory.mktemp("finished")
    folder = output / "default"
    folder.mkdir()
    cache.write(folder / "cost.json", [], COST)
    assert main(arguments(toys, output)) == 0
    return SimpleNamespace(output=output, folder=folder, result=json.loads((folder / "result.json").read_text()))


def test_it_leaves_a_stop_a_report_and_its_data(toys, finished):
    result = finished.result
    assert [m["key"] for m in result["methods"]] == ["large", "small", "speculative", "tuned"]
    assert result["method"] == "speculative" and result["goal"] == {}
    exact = {m["key"]: m for m in result["methods"]}
    for key in ("speculative", "tuned"):
        assert exact[key]["loss"] == 0 and exact[key]["length_ratio"] == 1 and exact[key]["large_share"] is None
    assert exact["small"]["loss"] > 0.05
    constant = dict(map(tuple, result["frontier"]["constant"]))
    assert list(constant) == [1, 2, 3, 4, 5]
    assert exact["speculative"]["length"] == max(constant, key=constant.get)
    assert len(result["trials"]) == 45 and all(t["feasible"] for t in result["trials"])
    assert max(t["speedup"] for t in result["trials"]) >= max(constant.values()) > 1
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "longest draft, tokens" in page and "Speed over the best constant length" in page
    assert (finished.folder / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_the_policy_says_what_it_is_for(toys, finished):
    identities = [LM.load(path).identity() for path in (toys.small, toys.large)]
    policy = load(finished.folder / "policy.json", identities)
    spec, tuned = spec_of(policy.provenance), finished.result["methods"][-1]
    assert (spec.name, spec.settings["length"]) == ("speculative", tuned["length"])
    assert policy.provenance["splits"] == finished.result["splits"]
    predicted = policy.provenance["predicted"]
    assert predicted["speedup"] == pytest.approx(dict(finished.result["frontier"]["stop"])[tuned["length"]])
    assert len(predicted["rounds_by_draft_length"]) <= tuned["length"] + 1 and sum(predicted["rounds_by_draft_length"])
    source = open_source(finished.folder / "policy.json", None, None)
    assert (source.role, source.length) == ("stop", tuned["length"])
    assert open_source(finished.folder / "policy.json", "handoff", 3).length == 3


def test_a_decoder_follows_it(toys, finished, capsys):
    """Without another word: the text is the large model's own."""
    models = ["--small", str(toys.small), "--large", str(toys.large), "--max-new-tokens", "12", "w5 w9 w20"]
    assert decode(["--policy", str(finished.folder / "policy.json"), *models]) == 0
    out = capsys.readouterr()
    assert decode(["--method", "large", *models]) == 0
    assert out.out == capsys.readouterr().out
    assert "accepted" in out.err


def test_the_same_command_again_measures_nothing(toys, finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "default")
    assert main(arguments(toys, tmp_path)) == 0
    again = json.loads((folder / "result.json").read_text())
    assert {k: v for k, v in again.items() if k not in ("created", "checksum")} == {
        k: v for k, v in finished.result.items() if k not in ("created", "checksum")
    }


def test_draft_traces_may_be_given(toys, finished, tmp_path, capfd):
    given = finished.folder / "traces"
    changes = {"max_new_tokens": 5}, {"longest": 4}, {"small": toys.other}, {"limit": 20}, {"method": "backoff"}
    for change in changes:
        assert main(arguments(toys, tmp_path, traces=given, **change)) == 2
        err = capfd.readouterr().err
        assert err.count("\n") == 1 and str(given) in err
    assert not list(tmp_path.iterdir())
    fewer = shutil.copytree(given, tmp_path / "fewer")
    for name in ("shard-00001.parquet", "checksums.jsonl"):
        (fewer / name).unlink()
    assert main(arguments(toys, tmp_path / "runs", traces=fewer)) == 2
    assert "lack 8 of" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_speedup": 1.5}, "leave out --target-speedup: --method speculative loses nothing"),
        ({"quality_budget": 0.1}, "leave out --quality-budget: --method speculative loses nothing"),
        ({"certify": 300}, "--certify needs --quality-budget"),
        ({"longest": 0}, "--longest must be at least 1"),
    ],
)
def test_goals_are_refused(toys, tmp_path, capfd, changes, message):
    assert main(arguments(toys, tmp_path / "runs", **changes)) == 2
    err = capfd.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_there_is_no_frontier_without_a_loss(toys, tmp_path, capfd):
    assert main([*arguments(toys, tmp_path / "runs"), "--frontier"]) == 2
    assert "leave out --frontier" in capfd.readouterr().err


def test_a_constant_length_asks_no_policy():
    decoder = Tuned(Rule.never(), DecoderSpec("speculative", {"length": 4}), 3, None).decoder(toy_pair())
    assert decoder.stop is None and decoder.length == 4


def test_the_comparison_is_paired():
    """On every prompt a tenth faster: the interval is that ratio, however much the prompts differ."""
    seconds, measured = [1.0, 5.0, 30.0, 2.0], {}
    for name, factor in (("large", 3.0), ("speculative", 1.1), ("tuned", 1.0)):
        rows = {"seconds": [factor * s for s in seconds], "tokens": [8.0] * 4, "loss": [0.0] * 4}
        measured[name] = {key: np.array(values) for key, values in rows.items()}
    found = against_rival(measured, "speculative", "the best constant length")
    assert found.ratio == pytest.approx(1.1)
    assert found.interval == pytest.approx([1.1, 1.1])
    assert "it is faster than the best constant" in beside_rival(found, found.of)
    assert "not clearly" in beside_rival(replace(found, interval=[0.9, 1.2]), found.of)


OLD = {"role": "stop", "length": 3, "keep": True}
WRONG = [{"decoder": decoder} for decoder in ("backoff", [], {"name": 1}, {"settings": 3}, {"a": 1})]


@pytest.mark.parametrize("wrong", [OLD, *WRONG])
def test_a_decoder_that_cannot_be_read_is_refused(wrong):
    with pytest.raises(ValueError, match="tune it again"):
        spec_of(wrong)
    assert spec_of({}) == DecoderSpec("backoff", {})


def test_a_report_of_drafts_needs_no_stop(tmp_path):
    result = specimen() | {"plane": ["length", "speedup"], "frontier": {"constant": [(1, 1.2)]}}
    page.write_html(result, tmp_path / "report.html")
    assert "constant length (predicted)" in (tmp_path / "report.html").read_text(encoding="utf-8")
