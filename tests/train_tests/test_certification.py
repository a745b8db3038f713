"""The certificate of the main job: what it leaves, what it refuses, and that a stopped run goes on."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tyro
from tiny_runs import FAST, save_toys, typed

from policies import load
from policies.storage import documents
from train.certification import certification
from train.certify import certify
from train.common.preparation import prepare
from train.common.progress import log_to
from train.common.result import Candidate
from train.data.prompts import Prompt, PromptError
from train.data.splits import refuse_overlap, reserve
from train.fit_policy import FitPolicy, main

SURELY = {"quality_budget": 0.9, "loss_cap": 0.95, "certify": 40}
NEVER = {"quality_budget": 0.6, "loss_cap": 0.99, "certify": 60}


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return save_toys(tmp_path_factory.mktemp("toys"), 120)


def arguments(toys, output, **changes):
    options = toys | {"output": output} | FAST | {"max_new_tokens": 8} | changes
    return typed(options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def certified(toys, tmp_path_factory):
    """A run whose promise is easy to keep."""
    output = tmp_path_factory.mktemp("certified")
    assert main(arguments(toys, output, **SURELY)) == 0
    folder = output / "default"
    return SimpleNamespace(output=output, folder=folder, result=json.loads((folder / "result.json").read_text()))


def test_the_promise_stands_in_every_file(certified):
    found, folder = certified.result["certificate"], certified.folder
    assert found["chosen"] == len(found["candidates"]) - 1
    assert found["bound"] <= 0.9
    assert certified.result["verdict"].startswith(found["claim"])
    assert "with probability 0.9 over the 40 certification prompts" in found["claim"]
    policy = load(folder / "policy.json")
    assert policy.provenance["certificate"] == found
    assert set(policy.provenance["traffic"]["columns"]) == {*policy.names, "escalated", "accepted"}
    assert found["claim"] in (folder / "report.html").read_text(encoding="utf-8")
    assert not (folder / "uncertified.json").exists()
    assert certified.result["policy"]["quantile"] == found["candidates"][found["chosen"]]["quantile"]


def test_it_is_what_certify_says_of_the_losses_measured(certified):
    found, rows = certified.result["certificate"], lines(certified.folder / "certify.jsonl")
    ids = [row["id"] for row in rows if row["candidate"] == "large"]
    loss = {(row["candidate"], row["id"]): row["loss"] for row in rows if row["candidate"] != "large"}
    table = np.array([[loss[i, name] for i in range(len(found["candidates"]))] for name in ids])
    again = certify(table, 0.9, 0.9, 0.95, ids, seed=0)
    assert again.pvalues.tolist() == pytest.approx([c["pvalue"] for c in found["candidates"]])
    assert (again.chosen, again.bound) == (found["chosen"], pytest.approx(found["bound"]))
    shown = found["candidates"][found["chosen"]]
    assert shown["capped_loss"] == pytest.approx(np.minimum(table[:, -1], 0.95).mean())
    assert sum(f["prompts"] for f in found["families"]) == 40
    assert sum(f["prompts"] * f["capped_loss"] for f in found["families"]) == pytest.approx(40 * shown["capped_loss"])


def test_candidates_go_from_safe_to_tuned(certified):
    found = certified.result["certificate"]["candidates"]
    quantiles = [c["quantile"] for c in found]
    assert quantiles == sorted(set(quantiles))
    assert 2 <= len(found) <= certification.CANDIDATES
    assert found[0]["replayed_loss"] < found[-1]["replayed_loss"]
    assert found[0]["large_share"] > found[-1]["large_share"]
    assert found[0]["priced_speedup"] < found[-1]["priced_speedup"]


def test_the_certification_prompts_are_nobody_else_s(certified):
    splits = certified.result["splits"]
    assert {name: part["prompts"] for name, part in splits.items()} == {
        "fit": 12, "tune": 6, "holdout": 12, "certify": 40
    }  # fmt: skip
    groups = load(certified.folder / "policy.json").provenance["groups"]
    others = {group for name, some in groups.items() if name != "certify" for group in some}
    assert not others & set(groups["certify"])
    traced = json.loads((certified.folder / "traces" / "meta.json").read_text())["prompts"]
    measured = {row["id"] for row in lines(certified.folder / "certify.jsonl")}
    assert len(measured) == 40
    assert not measured & traced.keys()
    for name in ("tune", "holdout"):
        assert not measured & {row["id"] for row in lines(certified.folder / f"{name}.jsonl")}


@pytest.mark.slow
def test_a_run_that_was_stopped_measures_only_what_is_missing(toys, certified, tmp_path):
    folder = shutil.copytree(certified.output, tmp_path / "runs") / "default"
    path = folder / "certify.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[:100]) + rows[100][:9])  # killed in the middle of the second candidate
    for name in ("result.json", "policy.json", "report.html"):
        (folder / name).unlink()
    assert main(arguments(toys, tmp_path / "runs", **SURELY)) == 0
    assert path.read_bytes().startswith(b"".join(rows[:100]))
    again = json.loads((folder / "result.json").read_text())
    assert again["certificate"] == certified.result["certificate"]


def test_other_candidates_on_the_same_prompts_are_refused(toys, certified, tmp_path, capfd):
    """More trials may choose another policy, and by now the losses on these prompts are known."""
    folder = shutil.copytree(certified.output, tmp_path / "runs") / "default"
    frozen = documents.read(folder / "candidates.json", "")
    documents.write(folder / "candidates.json", frozen | {"quantiles": [0.1, 0.2]})
    capfd.readouterr()
    assert main(arguments(toys, tmp_path / "runs", **SURELY)) == 2
    err = capfd.readouterr().err
    assert "have been used on other candidates" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_what_cannot_be_certified_falls_back_to_exact_decoding(toys, certified, tmp_path, monkeypatch):
    """The tuned policy is frozen as the only candidate, far beyond what its budget allows."""
    monkeypatch.setattr(certification, "candidates", reckless)
    traces = certified.folder / "traces"
    assert main(arguments(toys, tmp_path, **NEVER, traces=traces)) == 0
    folder = tmp_path / "default"
    result = json.loads((folder / "result.json").read_text())
    found = result["certificate"]
    assert found["chosen"] is None
    assert found["bound"] > 0.6
    assert len(found["candidates"]) == 2
    assert found["candidates"][1]["pvalue"] is None  # not measured: the first had failed
    assert {row["candidate"] for row in lines(folder / "certify.jsonl")} == {"large", 0}
    assert result["verdict"].startswith("Cannot certify a loss of 0.6 on 60 prompts")
    exact = [m for m in result["methods"] if m["key"] in ("speculative", "tree")]
    fastest = max(exact, key=lambda method: method["speedup"])["label"]
    assert len(exact) == 2
    assert f"Use exact decoding, which loses nothing: {fastest} is" in result["verdict"]
    assert load(folder / "policy.json").kind == "always"
    assert load(folder / "uncertified.json").kind == "logistic"
    assert "<td>–</td>" in (folder / "report.html").read_text(encoding="utf-8")


def reckless(search, chosen):
    return [Candidate(q, 2.0, 0.1) for q in (0.99, 1.0)]


BAD = {
    "without a budget": ({"certify": 40}, "--certify needs --quality-budget"),
    "too few to certify anything": ({"quality_budget": 0.02, "certify": 20}, "--certify 20 certifies nothing: 42"),
    "more than there are": ({"quality_budget": 0.3, "loss_cap": 0.6, "certify": 95}, "and 95 are needed"),
    "negative": ({"quality_budget": 0.02, "certify": -1}, "--certify is a number of prompts, not -1"),
    "cap below the budget": ({"quality_budget": 0.3, "certify": 50}, "below the loss cap of 0.25"),
    "confidence": ({"quality_budget": 0.02, "certify": 50, "confidence": 1}, "the confidence is 1;"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_a_promise_that_cannot_be_made_is_one_sentence(toys, tmp_path, capfd, changes, message):
    assert main(arguments(toys, tmp_path / "runs", **changes)) == 2
    err = capfd.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def prompt(number, text=None, group=None):
    name = f"p{number}"
    return Prompt(name, "default", group or name, text or f"words of {name}", (1,), None)


def test_reserved_prompts_are_of_groups_of_their_own():
    used = [prompt(0), prompt(1, group="shared")]
    pool = [
        *used,
        prompt(2, group="shared"),
        prompt(3),
        prompt(4, text="words of p3"),
        prompt(5),
        prompt(6, "Words of p0!"),
    ]
    assert [p.id for p in reserve(pool, used, 2)] == ["p3", "p5"]
    with pytest.raises(PromptError, match="2 groups hold no prompt of the 2 in the other splits, and 3"):
        reserve(pool, used, 3)


def test_splits_that_overlap_are_refused():
    refuse_overlap({"tune": [prompt(0), prompt(1)], "certify": [prompt(2)]})
    for twin in (prompt(0), prompt(7, group="p1"), prompt(8, text="WORDS of p1")):
        with pytest.raises(PromptError, match="of the split certify is in one group with"):
            refuse_overlap({"tune": [prompt(0), prompt(1)], "certify": [prompt(2), twin]})


def test_what_is_noted_of_the_prompts_is_said_once_and_logged(toys, tmp_path, capfd):
    """They are read twice, for the tuning and for the certificate."""
    lines = Path(toys["prompts"]).read_text().splitlines()
    rows = [json.loads(line) | {"category": "odd"} for line in lines] + [{"id": "long", "prompt": "w5 " * 300}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"prompts": tmp_path / "own.jsonl", "trials": 1, "traces": tmp_path / "nowhere"} | SURELY
    assert main(arguments(toys, tmp_path / "stopped", **options)) == 2
    (tmp_path / "runs" / "default").mkdir(parents=True)
    capfd.readouterr()
    del options["traces"]
    settings = tyro.cli(FitPolicy, args=arguments(toys, tmp_path / "runs", **options))
    job = prepare(settings)
    with log_to(job.folder / "log.txt"):
        pass
    said = capfd.readouterr().out
    notes = [line for line in said.splitlines() if "own.jsonl: " in line]
    assert len(notes) == 2 and "category not read" in notes[0] and "1 of 121 prompts: more than" in notes[1]
    assert (job.folder / "log.txt").read_text().splitlines() == notes
