"""The command that trains a tuned policy on its own path, on a toy run: what it leaves, refuses and goes on with."""

import json
import shutil
from pathlib import Path

import pytest

from policies import load
from policies.storage import documents
from train.reinforce import main

SMALL = ("--episodes", 16, "--prompts", 2, "--group", 4, "--max-new-tokens", 6, "--threads", 1)


def steps(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "reinforce" / "steps.jsonl").read_text().splitlines()]


def test_it_leaves_a_policy_that_says_where_it_comes_from(tuned_run, tmp_path, capfd):
    folder = shutil.copytree(tuned_run, tmp_path / "run")
    assert main([str(folder), *map(str, SMALL)]) == 0
    assert "wrote" in capfd.readouterr().out
    before = load(folder / "policy.json")
    after = load(folder / "reinforced.json", models=before.models)
    assert after.kind == before.kind and after.names == before.names
    assert after.coef_.tolist() != before.coef_.tolist()
    assert after.mean_.tolist() == before.mean_.tolist()
    assert after.provenance["groups"] == before.provenance["groups"]
    assert after.provenance["from"] == before.describe()
    assert after.provenance["reinforced"]["steps"] == 2
    assert "verdict" not in after.provenance  # that was measured of the other one
    rows = steps(folder)
    assert [row["step"] for row in rows] == [0, 1]
    assert rows[-1]["state"]["weights"] == pytest.approx([*after.coef_.tolist(), float(after.intercept_)])
    for row in rows:
        assert {"reward", "objective", "violation", "multiplier", "entropy"} <= row.keys()
        assert row["multiplier"] >= 0 < row["entropy"] and row["objective"] > 0


def test_a_killed_run_ends_where_it_would_have(tuned_run, tmp_path):
    whole, cut = (shutil.copytree(tuned_run, tmp_path / name) for name in ("whole", "cut"))
    assert main([str(whole), *map(str, SMALL)]) == 0
    assert main([str(cut), *map(str, SMALL), "--episodes", "8"]) == 0
    assert len(steps(cut)) == 1
    assert main([str(cut), *map(str, SMALL)]) == 0
    assert steps(cut) == steps(whole)
    assert (cut / "reinforced.json").read_text() == (whole / "reinforced.json").read_text()
    assert main([str(cut), *map(str, SMALL), "--lr", "0.5"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--group", 1), "--group must be at least 2, not 1"),
        (("--episodes", 0), "--episodes must be at least 1"),
        (("--temperature", 0), "--temperature must be positive"),
        (("--lr", 1e39), "--lr must be at most 1000, not 1e+39"),
        (("--lr", "nan"), "--lr must be a finite number"),
        (("--longest", 2), "no fitting prompt has up to 2 tokens"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tuned_run, capfd, options, message):
    before = sorted(tuned_run.rglob("*"))
    capfd.readouterr()
    assert main([str(tuned_run), *map(str, options)]) == 2
    err = capfd.readouterr().err
    assert err.startswith("reinforce: ") and message in err and err.count("\n") == 1
    assert sorted(tuned_run.rglob("*")) == before


def test_what_is_no_finished_run_is_refused(tuned_run, tmp_path, capfd):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "has no run.json; give the folder of a finished run" in capfd.readouterr().err
    folder = shutil.copytree(tuned_run, tmp_path / "run")
    result = documents.read(folder / "result.json", "")
    result["splits"]["fit"]["hash"] = "another"
    documents.write(folder / "result.json", result)
    assert main([str(folder)]) == 2
    assert "the prompts of" in capfd.readouterr().err


def test_a_policy_without_weights_has_no_gradient(tuned_run, tmp_path, capfd):
    from policies import Rule

    folder = shutil.copytree(tuned_run, tmp_path / "run")
    before = load(folder / "policy.json")
    Rule("entropy", 1.0).save(folder / "policy.json", before.models, before.provenance)
    assert main([str(folder)]) == 2
    assert "kind 'rule' has no gradient" in capfd.readouterr().err
