"""The main job: what it leaves, what it refuses, and that a stopped run goes on where it was."""

import json
import platform
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_runs import FAST, fit_policy, save_model, write_prompts

from decoding import LM
from policies import load
from train.fit_policy import main
from train.search.study import join_study

SURELY = {"quality_budget": 0.95}
RESULTS = ["frontier.png", "log.txt", "methods.md", "policy.json", "report.html", "result.json"]


def thinking(model: str) -> str:
    """The model, with a template that ends in <think>: all that it answers is thought."""
    for file in (path for path in Path(model).iterdir() if path.suffix in (".json", ".jinja")):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("}} w4", "}} <think>").replace('"w4"', '"<think>"'), encoding="utf-8")
    return model


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    return SimpleNamespace(
        small=thinking(save_model(folder / "small", seed=1, layers=1)),
        large=thinking(save_model(folder / "large", seed=2, layers=7)),
        other=thinking(save_model(folder / "other", seed=3, layers=1)),
        foreign=save_model(folder / "foreign", seed=4, layers=1, letter="v"),
        prompts=write_prompts(folder / "prompts.jsonl"),
        folder=folder,
    )


def arguments(toys, output, **changes):
    """The options of a run."""
    options = {"small": toys.small, "large": toys.large, "prompts": toys.prompts, "output": output} | FAST | changes
    return [str(x) for name, value in options.items() for x in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def finished(toys, tmp_path_factory):
    """A run from the start to the end: its folder and what it said."""
    output = tmp_path_factory.mktemp("finished")
    process = fit_policy(*arguments(toys, "runs", **SURELY), "--frontier", cwd=output)
    return SimpleNamespace(output=output / "runs", folder=output / "runs" / "default", process=process)


def trials(folder: Path) -> dict[int, float]:
    """Values of the finished trials; read from a copy, so that a running job is left alone."""
    path = folder / "study.journal"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    written = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["trial_id"]: row["values"][0] for row in written if row["op_code"] == 6 and row["state"] == 1}


def lines(path: Path) -> list[bytes]:
    """Whole lines."""
    return [x for x in path.read_bytes().splitlines(keepends=True) if x.endswith(b"\n")] if path.exists() else []


def test_it_leaves_a_policy_a_report_a_picture_and_its_data(toys, finished):
    assert finished.process.returncode == 0, finished.process.stderr
    assert finished.process.stderr == ""
    assert "held-out prompts the tuned policy is" in " ".join(finished.process.stdout.split())
    folder = finished.folder
    # Standard output is no terminal here: it has the same lines as the log, from the first step in the folder on.
    logged = (folder / "log.txt").read_text()
    assert finished.process.stdout.endswith(logged)
    assert re.search(r"^collecting traces (\d+)/\1, 0:00:\d\d in all\n", logged)
    assert "\nsearching 12/12, 0:0" in logged
    names = {path.name for path in folder.iterdir()}
    assert names - {"policy.safetensors", ".lock", ".study.journal.lock"} == {
        *RESULTS, "study.journal", "traces", "run.json", "cost.json", "tune.jsonl", "threshold.jsonl", "holdout.jsonl",
        "texts.jsonl"
    }  # fmt: skip
    identities = [LM.load(toys.small).identity(), LM.load(toys.large).identity()]
    policy = load(folder / "policy.json", models=identities)
    assert policy.kind == "logistic"
    result = json.loads((folder / "result.json").read_text())
    assert result["methods"][0]["key"] == "large"
    assert {m["key"] for m in result["methods"]} == {
        "large", "small", "random_low", "random_high", "speculative", "tree", "tuned"
    }  # fmt: skip
    tuned = next(m for m in result["methods"] if m["key"] == "tuned")
    assert tuned["speedup"] > 1
    assert tuned["loss"] <= 1
    assert {name: part["prompts"] for name, part in result["splits"].items()} == {"fit": 16, "tune": 8, "holdout": 16}
    assert len(lines(folder / "tune.jsonl")) == 8
    assert len(lines(folder / "holdout.jsonl")) == FAST["timed"]
    assert len(result["trials"]) == len(trials(folder)) == 12
    assert policy.provenance["splits"] == result["splits"]
    assert 0 <= result["calibration"]["brier"] <= 1 and result["calibration"]["bins"]
    assert policy.provenance["decoder"] == {"name": "backoff", "settings": {}}
    assert result["front"] and [[p["speedup"], p["loss"]] for p in result["front"]] == result["frontier"]["front"]
    assert "<h2>Predicted Pareto front</h2>" in (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8").lower()
    assert sorted(path.name for path in finished.output.parent.iterdir()) == ["runs"]


def test_it_says_that_all_the_large_model_wrote_is_thought(finished):
    result = json.loads((finished.folder / "result.json").read_text())
    assert result["thought"] == {"share": 1.0, "answers": 16, "unfinished": 16}
    said = "100% of what the large model wrote is thought (<think>...</think>); 16 of 16 answers end within it"
    assert said in " ".join(finished.process.stdout.split())
    assert said.replace("<", "&lt;").replace(">", "&gt;") in (finished.folder / "report.html").read_text("utf-8")


def refusal(capfd, *options) -> str:
    """The one line of a refused run."""
    capfd.readouterr()
    code = main(list(options))
    err = capfd.readouterr().err
    assert code == 2, err
    assert err.startswith("fit_policy: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


def test_the_same_command_again_changes_no_trial_and_no_measurement(toys, finished, tmp_path, capfd):
    output = tmp_path / "runs [/x] :fire: \x1b[31m"  # names are printed as they are, and control characters shown
    folder = shutil.copytree(finished.output, output) / "default"
    for name in RESULTS:
        (folder / name).unlink()
    (folder / "traces" / f"meta.json.{platform.node()}.{10**30}.tmp").touch()  # as a kill leaves it
    before, measured = trials(folder), [(folder / f"{name}.jsonl").read_bytes() for name in ("tune", "holdout")]
    shards = {path.name: path.stat().st_mtime_ns for path in (finished.folder / "traces").iterdir()}
    assert main([*arguments(toys, output, **SURELY), "--frontier"]) == 0
    shown = "".join(capfd.readouterr().out.split())
    assert r"runs[/x]:fire:\x1b[31m/default/policy.json" in shown
    assert trials(folder) == before
    assert len(join_study(folder / "study.journal").trials) == 12
    assert [(folder / f"{name}.jsonl").read_bytes() for name in ("tune", "holdout")] == measured
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "traces").iterdir()} == shards
    assert all((folder / name).exists() for name in RESULTS)
    old, new = (json.loads((x / "result.json").read_text()) for x in (finished.folder, folder))
    for document in (old, new):
        del document["created"], document["checksum"]
        document["verdict"] = re.sub("`.*?`", "", document["verdict"])  # a command, which names the folder
    assert new == old


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"quality_budget": 0.9}, "another --quality-budget"),
        ({"quality_budget": 0.95, "seed": 1}, "another --seed"),
        ({"quality_budget": 0.95, "policy": "rule"}, "another --policy"),
        ({"quality_budget": 0.95, "limit": 30}, "another --limit"),
        ({"quality_budget": 0.95, "small": "other"}, "another --small, models;"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_settings_are_refused(toys, finished, capfd, changes, what):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    changes = changes | ({"small": toys.other} if "small" in changes else {})
    assert what in refusal(capfd, *arguments(toys, finished.output, **changes))
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before


@pytest.mark.slow
def test_traces_may_be_given(toys, finished, tmp_path, capfd):
    changes = {"traces": finished.folder / "traces", "quality_budget": 0.001, "policy": "rule"}
    assert main(arguments(toys, tmp_path, **changes)) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "a loss of 0.001 allows no speedup over 1.05x with this pair: use the large model alone" in out
    assert not (tmp_path / "default" / "traces").exists()
    assert not (tmp_path / "default" / "policy.json").exists()


def test_a_speedup_out_of_reach_is_said(toys, finished, tmp_path, capfd):
    changes = {"traces": finished.folder / "traces", "target_speedup": 500, "policy": "rule"}
    assert main(arguments(toys, tmp_path, **changes)) == 0
    assert "500x is out of reach of this pair" in " ".join(capfd.readouterr().out.split())
    assert not (tmp_path / "default" / "policy.json").exists()


def test_traces_of_something_else_are_refused(toys, finished, tmp_path, capfd):
    given, output = finished.folder / "traces", tmp_path / "runs"
    (tmp_path / "empty").mkdir()
    spoilt = shutil.copytree(given, tmp_path / "spoilt")
    next(spoilt.glob("*.parquet")).write_bytes(b"PAR1")
    lost, fewer = (shutil.copytree(given, tmp_path / name) for name in ("lost", "fewer"))
    for folder in (lost, fewer):
        (folder / "shard-00000.parquet").unlink()
    (fewer / "checksums.jsonl").unlink()
    others = write_prompts(tmp_path / "others.jsonl", 40)
    text = Path(others).read_text().replace("w5 ", "w6 ")
    Path(others).write_text(text)  # the same ids, other prompts
    for match, changes in {
        "nowhere/meta.json: it cannot be read": {"traces": tmp_path / "nowhere"},
        "empty/meta.json: it cannot be read": {"traces": tmp_path / "empty"},
        "parquet: it was changed after it was written": {"traces": spoilt},
        "shard-00000.parquet: it is missing": {"traces": lost},
        "lack": {"traces": fewer},
        "models differ": {"traces": given, "small": toys.other},
        "of 24 prompts": {"traces": given, "prompts": others},
        "max_new_tokens differ": {"traces": given, "max_new_tokens": 5},
    }.items():
        assert match in refusal(capfd, *arguments(toys, output, **SURELY, **changes))
        assert not output.exists()


BAD = {
    "no prompts file": ({"prompts": "nowhere.jsonl"}, "does not exist"),
    "empty prompts": ({"prompts": b""}, "empty"),
    "blank prompts": ({"prompts": b"\n \n"}, "holds no prompts"),
    "not UTF-8": ({"prompts": b'{"prompt": "w5"}\n{"prompt": "\xff"}\n'}, "line 2: byte 0xff is not UTF-8"),
    "not JSON": ({"prompts": b"w5 w6\n"}, "invalid JSON"),
    "too few prompts": ({"prompts": b'{"prompt": "w5 w6"}\n'}, "need at least 3 groups"),
    "long prompt": ({"prompts": b'{"prompt": "' + b"w5 " * 250 + b'"}\n'}, "has 252 tokens and the limit is 244"),
    "no room": ({"max_new_tokens": 300}, "--max-new-tokens 300 leaves no room for a prompt: the models read"),
    "both goals": ({"target_speedup": 1.5, "quality_budget": 0.1}, "not both"),
    "budget": ({"quality_budget": 1.5}, "between 0 and 1"),
    "speedup": ({"target_speedup": 0.9}, "factor over 1"),
    "NaN": ({"target_speedup": "nan"}, "must be a finite number"),
    "no small model": ({"small": "/nowhere/small"}, "no small model at /nowhere/small"),
    "no large model": ({"large": "/nowhere/large.gguf"}, "no large model at /nowhere/large.gguf"),
    "tokenizers": ({"small": "foreign"}, "different tokenizers"),
    "device": ({"device": "abacus"}, "'abacus'"),
    "dtype": ({"dtype": "float99"}, "'float99'"),
    "limit": ({"limit": 0}, "limit is 0"),
    "trials": ({"trials": 0}, "--trials must be at least 1"),
    "tokens": ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1"),
    "threads": ({"threads": 0}, "--threads must be at least 1"),
    "seed": ({"seed": -1}, "--seed must be at least 0"),
    "no URL": ({"storage": "nonsense"}, "no database answers at --storage nonsense"),
    "no database": ({"storage": "sqlite:////nowhere/study.db"}, "no database answers at --storage sqlite"),
    "longest": ({"longest": 0}, "--longest must be at least 1"),
    "name": ({"name": "a/b"}, "plain folder name"),
    "name of the parent": ({"name": ".."}, "plain folder name"),
    "no name": ({"name": ""}, "plain folder name"),
    "file in the way": ({"output": "file"}, "cannot be made or written"),
    "file above": ({"output": "file/deeper"}, "cannot be made or written"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_writes_nothing(toys, tmp_path, capfd, changes, message):
    (tmp_path / "file").write_text("in the way")
    changes = dict(changes)
    if isinstance(changes.get("prompts"), bytes):
        (tmp_path / "own.jsonl").write_bytes(changes["prompts"])
        changes["prompts"] = tmp_path / "own.jsonl"
    if changes.get("small") == "foreign":
        changes["small"] = toys.foreign
    output = tmp_path / changes.pop("output", "runs")
    before = sorted(tmp_path.rglob("*"))
    assert message in refusal(capfd, *arguments(toys, output, **changes))
    assert sorted(tmp_path.rglob("*")) == before


def test_there_must_be_a_run_to_join(toys, tmp_path, capfd):
    assert "there is no run to join" in refusal(capfd, *arguments(toys, tmp_path / "runs"), "--join")
    assert not list(tmp_path.iterdir())


def test_an_unknown_kind_of_policy_is_refused(toys, tmp_path, capfd):
    with pytest.raises(SystemExit) as error:
        main(arguments(toys, tmp_path / "runs", policy="oracle"))
    assert error.value.code == 2
    assert "oracle" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_script_says_one_line_and_exits_2(toys, tmp_path):
    process = fit_policy(*arguments(toys, "runs", prompts="nowhere.jsonl"), cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith("fit_policy: nowhere.jsonl does not exist")
    assert not list(tmp_path.iterdir())
