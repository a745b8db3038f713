"""A tuning method is a file and a line: a toy one runs through the command line and the main job."""

import json
import subprocess
import sys

import pytest
from tiny_runs import ENV, FAST, ROOT, save_toys, typed

from train.common import schema
from train.common.load_run import load_run
from train.common.settings import FitPolicy
from train.fit_policy import main
from train.methods import METHODS, tuning_method
from train.methods.base import TuningMethod
from train.pipeline import run
from train.search.goal import Goal


@pytest.fixture
def toy(monkeypatch):
    """The line, and no schema of settings that was made before it or outlives it."""
    monkeypatch.setitem(METHODS, "toy", "toy_method:ToyMethod")
    schema._adapter.cache_clear()
    yield
    schema._adapter.cache_clear()


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return save_toys(tmp_path_factory.mktemp("toys"), 40)


@pytest.fixture(scope="module")
def finished(toys, tmp_path_factory):
    """A run of the toy in this process."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "toy", "toy_method:ToyMethod")
        run(FitPolicy(**toys | FAST | {"output": folder, "method": "toy", "target_speedup": 1.7}))
    return folder / "default"


def test_a_method_is_one_line(toy, finished):
    found = load_run(finished)
    assert (found.settings.method, found.settings.target_speedup, found.settings.traces) == ("toy", 1.7, None)
    assert found.goal == Goal(speedup=1.7)
    assert found.result.verdict.endswith("x as fast as the large model alone; and that is all.")
    assert [row.key for row in found.result.methods][:3] == ["large", "small", "tuned"]
    assert found.result.chosen.params["threshold"] == pytest.approx(found.policy.threshold.item())
    assert found.policy.provenance["toy"] is True
    report = (finished / "report.html").read_text(encoding="utf-8")
    assert "a toy stops." in report and "held-out prompts the toy is" in report


def test_the_command_line_knows_it(toy, toys, tmp_path, capfd):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "toy" in capfd.readouterr().out
    changes = {"method": "toy", "certify": 40, "quality_budget": 0.1, "output": tmp_path / "runs"}
    assert main(typed(toys | changes)) == 2
    assert "leave out --certify: --method toy makes no certificate" in capfd.readouterr().err


def test_an_unknown_method_is_refused(capfd):
    with pytest.raises(SystemExit):
        main(["--method", "toy"])
    assert "toy" in capfd.readouterr().err


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_all_that_is_asked_of_it(name):
    method = tuning_method(name)
    assert TuningMethod in method.__mro__
    assert method.threshold_note.endswith(".") and len(method.plane) == 2
    for verb in ("__init__", "tune", "measure_holdout", "predicted", "check_traces"):
        assert getattr(method, verb).__qualname__ != getattr(TuningMethod, verb).__qualname__, verb


def test_help_imports_no_model_code():
    code = (
        "import sys\n"
        "from train.fit_policy import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'optuna', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_a_run_of_another_version_is_refused(toy, finished, name):
    path = finished / name
    written = path.read_bytes()
    found = json.loads(written)
    try:
        for change, said in (({"format": 1}, ": it was written by another version of this program"), ({}, ": .*")):
            broken = {key: value for key, value in found.items() if key in ("format", "name")} | change
            path.write_text(json.dumps(broken))
            with pytest.raises(ValueError, match=f"{name}{said}; run train/fit_policy.py again"):
                load_run(finished)
    finally:
        path.write_bytes(written)
    load_run(finished)
