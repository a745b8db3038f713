"""Tracking writes every trial to an offline W&B run, and nothing W&B does costs the search."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from train.common.settings import FitPolicy
from train.common.tracking import Tracker
from train.reports import figure
from train.search.study import DONE, finished, join_study, open_study, run_study

RESULT = {
    "verdict": "fine",
    "chosen_trial": 1,
    "methods": [
        {"key": "large", "label": "large alone", "speedup": 1.0, "loss": 0.0, "large_share": None},
        {"key": "tuned", "label": "tuned", "speedup": 1.32, "loss": 0.048, "large_share": 0.5},
    ],
}


def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    if trial.number == 2:
        raise optuna.TrialPruned
    trial.set_user_attr("predicted_speedup", 1 + x)
    trial.set_user_attr("not a scalar", [1, 2])
    trial.set_constraint("speed", 0.5 - x)
    return x


def logs(tracker):
    """The callback of the main job."""
    return lambda study, trial: tracker.trials(study, study.get_trials(states=DONE))


def search(callback, trials=3):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=trials, callbacks=[callback])
    return study


def inspect(folder: Path, *flags: str) -> str:
    (run,) = (folder / "wandb").glob("offline-run-*") if (folder / "wandb").exists() else (folder,)
    wandb = Path(sys.executable).with_name("wandb")
    command = [str(wandb), "leet", "inspect", "--json", *flags, str(run)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_offline_run_holds_every_trial_and_the_table(tmp_path, capfd, monkeypatch):
    for name in ("WANDB_SILENT", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "run"
    with Tracker("offline", folder, "night", {"path": Path("/x"), "seeds": (1, 2)}) as tracker:
        figure.draw(RESULT, folder / "frontier.png")
        study = search(logs(tracker))
        tracker.table(RESULT)
    assert "wandb" not in capfd.readouterr().err
    assert "WANDB_DATA_DIR" not in os.environ
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and folder not in p.parents]

    records = [json.loads(line) for line in inspect(folder).splitlines()]
    rows = [r["history"]["item"] for r in records if r["type"] == "history"]
    trials = [row for row in rows if "state" in row]
    assert [row["trial"] for row in trials] == [0, 1, 2]
    assert [row["param/x"] for row in trials] == [t.params["x"] for t in study.trials]
    for row, trial in zip(trials[:2], study.trials, strict=False):
        assert row["objective/value"] == trial.value
        assert row["constraint/speed"] == trial.constraints["speed"]
        assert row["feasible"] == (trial.constraints["speed"] <= 0)
        assert row["attr/predicted_speedup"] == 1 + trial.params["x"]
        assert "attr/not a scalar" not in row
    assert trials[2]["state"] == "PRUNED"
    assert "objective/value" not in trials[2]
    assert [r["metric"]["step_metric"] for r in records if r["type"] == "metric" and "glob_name" in r["metric"]] == [
        "trial"
    ]

    run = json.loads(inspect(folder, "--summary"))
    assert run["name"] == "night"
    assert run["config"] == {"path": "/x", "seeds": [1, 2]}
    assert run["summary"]["tuned/speedup"] == 1.32
    assert run["summary"]["verdict"] == "fine"
    assert run["summary"]["methods"]["nrows"] == 2
    assert run["summary"]["frontier"]["_type"] == "image-file"
    assert run["exit_code"] == 0


def test_the_files_of_a_run_are_its_artifacts(tmp_path, capfd):
    folder = tmp_path / "run"
    (folder / "traces").mkdir(parents=True)
    contents = {"study.journal": b"trials", "traces/meta.json": b"{}", "traces/shard-00000.parquet": b"PAR1"}
    for name, content in (contents | {"policy.json": b"{}", "traces/shard-00001.tmp": b"half"}).items():
        (folder / name).write_bytes(content)
    with Tracker("offline", folder, "night", {}) as tracker:
        tracker.files("study", "traces")
        tracker.files("policy")
    assert capfd.readouterr().err == ""
    artifacts = [json.loads(line)["artifact"] for line in inspect(folder).splitlines() if '"artifact"' in line]
    found = {a["name"]: (a["type"], sorted(e["path"] for e in a["manifest"]["contents"])) for a in artifacts}
    assert found == {
        "night-study": ("study", ["study.journal"]),
        "night-traces": ("traces", ["traces/meta.json", "traces/shard-00000.parquet"]),
        "night-policy": ("policy", ["policy.json"]),
    }
    assert not [p for p in tmp_path.rglob("*") if folder not in p.parents and p != folder]


def test_disabled_does_not_import_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Tracker("disabled", tmp_path / "run", "night", {}) as tracker:
        search(logs(tracker))
        tracker.table(RESULT)
    assert not (tmp_path / "run").exists()


def test_no_wandb_is_one_line_and_a_whole_search(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Tracker("offline", tmp_path, "night", {}) as tracker:
        study = search(logs(tracker))
        tracker.table(RESULT)
    assert len(study.trials) == 3
    assert_one_line(capfd)


class Broken:
    """A run in which the named methods raise."""

    def __init__(self, *names):
        self.names = names
        self.summary = {}
        self.calls = []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append(name)
            if name in self.names:
                raise OSError(28, "No space left\non device")

        return call


@pytest.mark.parametrize("name", ["define_metric", "log", "finish"])
def test_first_failure_turns_tracking_off(name, tmp_path, monkeypatch, capfd):
    import wandb

    run = Broken(name)
    monkeypatch.setattr(wandb, "init", lambda **kwargs: run)
    with Tracker("offline", tmp_path, "night", {}) as tracker:
        search(logs(tracker))
        tracker.table(RESULT)
    assert run.calls.count(name) == 1
    assert_one_line(capfd)


def test_online_without_network_goes_on_offline(tmp_path, monkeypatch, capfd):
    import wandb

    run, asked = Broken(), []

    def init(mode, **kwargs):
        asked.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("no network")
        return run

    monkeypatch.setattr(wandb, "init", init)
    with Tracker("online", tmp_path, "night", {}) as tracker:
        search(logs(tracker))
    assert asked == ["online", "offline"]
    assert run.calls.count("log") == 3
    assert run.calls[-1] == "finish"
    assert_one_line(capfd)


def test_the_runs_own_error_passes_through(tmp_path, monkeypatch):
    import wandb

    codes = []
    run = Broken()
    run.finish = lambda exit_code: codes.append(exit_code)
    monkeypatch.setattr(wandb, "init", lambda **kwargs: run)
    with pytest.raises(KeyError, match="mine"), Tracker("offline", tmp_path, "night", {}):
        raise KeyError("mine")
    assert codes == [1]


def test_each_start_goes_on_in_one_run_and_logs_a_trial_once(tmp_path):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for trials in (2, 1):
        with Tracker("offline", tmp_path, "night", {}) as tracker:
            study.optimize(objective, n_trials=trials, callbacks=[logs(tracker)])
            tracker.trials(study, study.get_trials())
    starts = list((tmp_path / "wandb").glob("offline-run-*"))
    known = json.loads((tmp_path / "wandb" / "logged.json").read_text())
    assert len(starts) == 2 and all(known["id"] in start.name for start in starts)
    lines = [line for start in starts for line in inspect(start).splitlines()]
    rows = [r["history"]["item"] for r in map(json.loads, lines) if r["type"] == "history"]
    assert sorted(row["trial"] for row in rows) == known["trials"] == [0, 1, 2]
    assert sorted(row["_step"] for row in rows) == [0, 1, 2]  # or the rows of one start would hide the other's


@pytest.mark.parametrize(
    ("variables", "option", "mode"),
    [
        ({}, None, "offline"),
        ({"WANDB_MODE": "disabled"}, None, "disabled"),
        ({"WANDB_MODE": "online"}, None, "online"),
        ({"WANDB_DISABLED": "true"}, None, "disabled"),
        ({"WANDB_MODE": "disabled"}, "offline", "offline"),
        ({"WANDB_MODE": "dryrun"}, None, "offline"),
    ],
)
def test_the_environment_is_heeded_unless_an_option_says_otherwise(variables, option, mode, tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert FitPolicy().wandb is None
    assert Tracker(option, tmp_path, "night", {}).mode == mode


def test_no_file_of_a_run_holds_the_password_of_its_database(tmp_path, monkeypatch):
    url = "postgresql+psycopg2://me:hunter22@host/db?sslpassword=hunter33"
    monkeypatch.setattr(sys, "argv", ["fit_policy.py", "--storage", url])  # W&B notes the command line
    with Tracker("offline", tmp_path, "night", {"storage": url}) as tracker:
        search(logs(tracker))
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hunter" not in kept and b"postgresql+psycopg2://me:***@host/db?***" in kept


def assert_one_line(capfd):
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("[I ")]
    assert len(lines) == 1
    assert "racking" in lines[0]


KILLED = """
import os, signal, sys
from pathlib import Path
from train.common.tracking import Tracker
from train.search.study import finished, open_study, run_study
folder = Path(sys.argv[1])
study = open_study(folder / "study.journal", 0, [])

def objective(trial):
    if len(finished(study)) == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return trial.suggest_float("x", 0, 1)

with Tracker("offline", folder, "night", {}) as tracker:
    run_study(study, objective, 20, [lambda study, trial: tracker.trials(study, finished(study))])
"""


@pytest.mark.slow
def test_a_killed_leader_and_another_worker_lose_no_trial(tmp_path):
    """Read back by W&B's own program from the files of all starts: every trial once, and the result once."""
    folder = tmp_path / "run"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("WANDB_SERVICE", None)  # that of this process would outlive the killed one
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    helper = join_study(folder / "study.journal")  # another worker goes on meanwhile
    run_study(helper, lambda trial: trial.suggest_float("x", 0, 1), 16, [])
    study = open_study(folder / "study.journal", 0, [])
    for _ in range(2):  # the run is finished, and begun once more
        with Tracker("offline", folder, "night", {}) as tracker:
            log = lambda study, _=None: tracker.trials(study, finished(study))  # noqa: E731
            run_study(study, lambda trial: trial.suggest_float("x", 0, 1), 20, [log])
            log(study)
            tracker.table(RESULT)
    starts = list((folder / "wandb").glob("offline-run-*"))
    assert len(starts) == 3
    lines = [line for start in starts for line in inspect(start).splitlines()]
    rows = [r["history"]["item"] for r in map(json.loads, lines) if r["type"] == "history"]
    assert sorted(row["trial"] for row in rows if "state" in row) == [trial.number for trial in finished(study)]
    assert len(finished(study)) == 20
    assert len([row for row in rows if any(key.startswith("methods") for key in row)]) == 1
    assert sorted(row["_step"] for row in rows) == list(range(len(rows)))
