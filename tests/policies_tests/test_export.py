"""An exported folder is what was written, or it is refused with one sentence."""

import hashlib
import json
import os
import py_compile
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from export_specimens import MODELS, PROVENANCE, SPECIMENS, exported, saved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies import Logistic, Margins, Momentum, Rule
from policies.export.__main__ import main
from policies.export.bundle import seal
from policies.export.checking import check
from policies.export.source import ROLES, ExportError
from policies.export.targets import TARGETS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder of every kind of file, made once."""
    root = tmp_path_factory.mktemp("exports")
    return [exported(SPECIMENS["mlp"](), target, root / target) for target in ("json", "python", "transformers")]


def refusal(folder, **options):
    with pytest.raises(ExportError) as caught:
        check(folder, **options)
    message = str(caught.value)
    assert message.startswith(str(folder)) and "\n" not in message and message[-1] not in ".;" and "; " in message
    return message


def resealed(folder, **changes):
    """The manifest with other fields, and a seal that fits."""
    manifest = json.loads((folder / "manifest.json").read_bytes()) | changes
    data = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(data)
    (folder / "manifest.sha256").write_bytes(seal(data))
    return folder


@pytest.fixture
def folder(tmp_path):
    return exported(SPECIMENS["logistic"](), "python", tmp_path)


def test_what_was_written_is_believed(folders):
    for folder in folders:
        assert check(folder, models=MODELS)["provenance"]["models"] == MODELS


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_byte_that_changes_is_noticed(folders, data):
    folder = data.draw(st.sampled_from(folders))
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    before = path.read_bytes()
    where = data.draw(st.integers(0, len(before) - 1))
    flipped = before[where] ^ data.draw(st.integers(1, 255))
    try:
        path.write_bytes(before[:where] + bytes([flipped]) + before[where + 1 :])
        refusal(folder)
        path.write_bytes(before[:where])
        refusal(folder)
    finally:
        path.write_bytes(before)


def test_missing_added_and_linked_files_are_refused(folder, tmp_path):
    (folder / "extra.py").write_text("1")
    assert "extra.py is not in the manifest" in refusal(folder)
    (folder / "extra.py").unlink()
    shutil.move(folder / "policy.py", tmp_path / "policy.py")
    assert "policy.py: it cannot be read" in refusal(folder)
    (folder / "policy.py").symlink_to(tmp_path / "policy.py")
    assert "not a file of this folder" in refusal(folder)
    assert "cannot be read" in refusal(tmp_path / "nothing")


def test_a_pipe_is_refused(folder):
    """Reading it would wait for ever."""
    os.mkfifo(folder / "extra.fifo")
    assert "extra.fifo is not in the manifest" in refusal(folder)
    os.replace(folder / "extra.fifo", folder / "policy.py")
    assert "policy.py: it is not a regular file" in refusal(folder)


def test_compiled_code_is_refused(folder):
    """Python would run it in place of policy.py."""
    source = folder / "policy.py"
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compiled = py_compile.compile(str(source), invalidation_mode=unchecked)
    assert f"__pycache__/{Path(compiled).name} is not in the manifest" in refusal(folder)


def test_checking_runs_nothing(folder, tmp_path):
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\n".encode()
    (folder / "policy.py").write_bytes(trap)
    refusal(folder)
    resealed(folder, files={"policy.py": {"sha256": hashlib.sha256(trap).hexdigest(), "bytes": len(trap)}})
    check(folder)
    assert not (tmp_path / "sprung").exists()


def test_other_versions_are_refused(folder):
    assert "version 2, this package reads 1" in refusal(resealed(folder, version=2))
    resealed(folder, version=1, engines={"numpy": {"from": "0.9", "before": "1", "installed": "0.9"}})
    assert "written for numpy 0.9 up to 1" in refusal(folder)
    resealed(folder, engines={"no-such-engine": {"from": "1", "before": "2", "installed": None}})
    check(folder)  # an engine that is not here says nothing
    assert "unknown target 'abacus'" in refusal(resealed(folder, target="abacus"))
    assert "not a manifest" in refusal(resealed(folder, format="zip"))
    assert "not a manifest" in refusal(resealed(folder, files=None))


@pytest.mark.parametrize(
    "changes",
    [
        {"engines": {"numpy": 3}},
        {"engines": {"numpy": {"from": "new", "before": "newer"}}},
        {"files": {"policy.py": None}},
        {"files": {"policy.py": {}}},
        {"provenance": {}},
        {"provenance": {"models": [{"name": "small.gguf"}] * 2, "policy": {}}},
        {"target": ["python"]},
    ],
)
def test_a_sealed_manifest_of_nonsense_is_refused_too(folder, changes):
    assert "not a manifest" in refusal(resealed(folder, **changes), models=MODELS, policy="0" * 64)


def test_a_manifest_cannot_point_out_of_its_folder(folder):
    assert "not a file of this folder" in refusal(resealed(folder, files={"../saved/policy.json": {"sha256": ""}}))


def test_other_models_and_policies_are_refused(folder):
    other = [MODELS[0], MODELS[1] | {"weights": "w9"}]
    assert "model 1 was large.gguf" in refusal(folder, models=other)
    assert "another tokenizer" in refusal(folder, models=[m | {"tokenizer": "u"} for m in MODELS])
    assert "another policy file" in refusal(folder, policy="0" * 64)


def test_provenance_is_in_every_export(folder, tmp_path):
    held = json.loads((folder / "manifest.json").read_bytes())["provenance"]
    assert held["models"] == MODELS and held["tokenizer"] == "t" and held["tuning"] == PROVENANCE
    assert held["certificate"] == PROVENANCE["certificate"] and held["machine"] == PROVENANCE["machine"]
    assert held["engine"]["name"] == "two-model-decoding"
    assert len(held["prompts"]) == len(held["policy"]["sha256"]) == 64
    again = exported(SPECIMENS["logistic"](), "json", tmp_path)
    assert json.loads((again / "policy.json").read_bytes())["provenance"] == held


def test_the_command_exports_checks_and_lists(tmp_path, capsys):
    path, out = saved(SPECIMENS["logistic"](), tmp_path), tmp_path / "out"
    assert main([str(path), "--to", "python", "--output", str(out)]) == 0
    assert main([str(path), "--check", str(out)]) == 0
    assert "python, 1 files, as written" in capsys.readouterr().out
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name}: " in listed for name in TARGETS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give one of --to TARGET"),
        (["--list", "--check", "x"], "give one of --to TARGET"),
        (["--to", "python"], "needs a policy.json"),
        (["POLICY", "--to", "abacus", "--output", "NEW"], "unknown target 'abacus'"),
        (["POLICY", "--to", "python", "--output", "FULL"], "not an empty folder"),
        (["POLICY", "--to", "python", "--output", "NEW", "--role", "judge"], "unknown role 'judge'"),
        (["POLICY", "--to", "python", "--output", "NEW", "--length", "0"], "from 1 to 64"),
        (["MISSING", "--to", "python", "--output", "NEW"], "cannot be read"),
        (["--check", "NEW"], "cannot be read"),
    ],
)
def test_the_command_refuses_with_a_sentence(tmp_path, capsys, arguments, sentence):
    saved(Rule("top1", 0.4, "<="), tmp_path)
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    places = {"POLICY": tmp_path / "policy.json", "NEW": tmp_path / "new", "FULL": full, "MISSING": tmp_path / "no"}
    assert main([str(places.get(word, word)) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_judge_of_drafts_goes_to_json_only(tmp_path):
    judge = Logistic(("kl",)).fit([[0.0], [1.0], [2.0]], [0.0, 0.5, 1.0])
    with pytest.raises(ExportError, match="'kl' is a feature of drafted tokens"):
        exported(judge, "python", tmp_path)
    check(exported(judge, "json", tmp_path))


def test_a_name_of_the_list_is_a_target():
    assert all(name == target.name for name, target in TARGETS.items())


@pytest.mark.parametrize("policy", [Momentum(2.0), Margins(2)], ids=lambda policy: policy.kind)
def test_a_baseline_that_no_engine_knows_is_refused_by_every_target(policy):
    for target in TARGETS.values():
        for role in ROLES:
            reason = target.reason(SimpleNamespace(policy=policy, role=role))
            assert reason == f"a {policy.kind} policy is a baseline to compare with, and no engine was taught it"
