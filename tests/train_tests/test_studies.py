"""Several processes on one study: what a killed one leaves is ended, tried again, and never counted twice."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
from interrupted_jobs import is_free
from optuna.trial import TrialState
from tiny_runs import ENV, FAST, command, save_model, write_prompts

from train.search import orphans
from train.search import study as studies
from train.search.orphans import WORKER, fail_orphans
from train.search.study import finished, join_study, open_study, run_study, wait_for_trials

ROOT = Path(__file__).parents[2]
BASELINES = [{"x": 0.3}, {"x": 0.6}]
WORKER_CODE = """
import json, platform, sys, time
from pathlib import Path
from train.search import orphans, study as studies
how = json.loads(sys.argv[1])
orphans.HEARTBEAT = 1
where = how["url"] or Path(how["path"])
if how["victim"]:
    study = studies.open_study(where, 0, how["baselines"])
    platform.node = lambda: how["node"] or "here"
else:
    study = studies.join_study(where)
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    if how["victim"]:
        trial.set_constraint("goal", 5.0)
        time.sleep(600)
    time.sleep(0.02)
    trial.set_constraint("goal", x - 0.5)
    return x
studies.run_study(study, objective, how["trials"], [])
studies.wait_for_trials(study)
"""


def worker(where, victim: bool, node: str | None = None, trials: int = 12) -> subprocess.Popen:
    url = where if isinstance(where, str) else None
    how = {"url": url, "path": str(where), "victim": victim, "node": node, "trials": trials, "baselines": BASELINES}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER_CODE, json.dumps(how)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait(condition, *processes) -> None:
    until = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < until
        assert all(process.poll() in (None, 0) for process in processes), processes[0].stderr.read().decode()
        time.sleep(0.02)


def study_at(where):
    try:
        return join_study(where)
    except ValueError:  # not there yet
        return None


@pytest.mark.parametrize(
    "storage", ["journal", pytest.param("a database, from another machine", marks=pytest.mark.slow)]
)
def test_two_workers_one_killed(tmp_path, storage):
    """The killed one dies at the worst moment, when its constraint is written and its value is not."""
    where = tmp_path / "study.journal" if storage == "journal" else f"sqlite:///{tmp_path / 'study.db'}"
    node = platform.node() if storage == "journal" else "elsewhere"
    victim = worker(where, victim=True, node=node)
    hangs = lambda: (study := study_at(where)) and any(t.constraints for t in study.trials)  # noqa: E731
    wait(hangs, victim)
    survivor, study = worker(where, victim=False), study_at(where)
    wait(lambda: len(finished(study)) >= 3, survivor, victim)
    victim.kill()
    victim.communicate()
    _, err = survivor.communicate(timeout=100)
    assert survivor.returncode == 0, err.decode()
    study = join_study(where)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == 12
    assert states.count(TrialState.FAIL) == 1 and len(states) == 13 + states.count(TrialState.WAITING)
    for trial in finished(study):
        assert trial.constraints == {"goal": trial.params["x"] - 0.5}
        assert trial.value == trial.params["x"]
    assert study.best_value < 0.5


def test_a_lock_that_a_killed_worker_held_is_free(tmp_path, monkeypatch):
    """And a worker that only sleeps while it holds the lock keeps it: it lost it once, and ended in an error."""
    monkeypatch.chdir(tmp_path)
    where = Path("runs") / "study.journal"
    where.parent.mkdir()
    open_study(where, 0, BASELINES)
    lock = where.with_name(".study.journal.lock")
    hold = "import sys, filelock, time\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\ntime.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(lock)])
    wait(lambda: not is_free(lock), holder)
    found = []
    thread = threading.Thread(target=lambda: found.append(open_study(where, 0, [{"x": 0.9}])), daemon=True)
    thread.start()
    thread.join(2)
    assert not found
    holder.kill()
    holder.wait()
    thread.join(20)
    assert len(found) == 1 and len(found[0].trials) == 3


def test_the_killed_baseline_is_tried_again_in_its_place(tmp_path):
    where = tmp_path / "study.journal"
    victim = worker(where, victim=True, node=platform.node())
    wait(lambda: (study := study_at(where)) and any(t.constraints for t in study.trials), victim)
    victim.kill()
    victim.communicate()
    study = open_study(where, 0, BASELINES)
    run_study(study, lambda trial: trial.suggest_float("x", 0, 1), 2, [])
    wait_for_trials(study)
    assert [t.params["x"] for t in study.trials] == [0.3, 0.6]
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 2


def test_a_living_worker_is_waited_for_and_not_robbed(tmp_path):
    study = open_study(tmp_path / "study.journal", 0, [])
    study.set_user_attr(f"{WORKER} {platform.node()}:{os.getppid()}", True)
    other = study.ask()
    other.set_user_attr(WORKER, f"{platform.node()}:{os.getppid()}")
    unsigned, elsewhere = study.ask(), study.ask()
    elsewhere.set_user_attr(WORKER, f"elsewhere:{2**22 + 1}")
    began = time.monotonic()
    wait_for_trials(study, patience=0.3)
    assert time.monotonic() - began >= 0.3
    assert [study.trials[t.number].state for t in (other, unsigned, elsewhere)] == [TrialState.RUNNING] * 3


def test_what_this_process_was_interrupted_in_does_not_hold_it_up(tmp_path):
    study = open_study(tmp_path / "study.journal", 0, BASELINES)
    study.ask().set_user_attr(WORKER, f"{platform.node()}:{os.getpid()}")
    study = open_study(tmp_path / "study.journal", 0, BASELINES)
    run_study(study, lambda trial: trial.suggest_float("x", 0, 1), 2, [])
    wait_for_trials(study)
    assert sorted(t.params["x"] for t in finished(study)) == [0.3, 0.6]


def test_a_trial_that_nobody_signed_is_given_up_in_the_end(tmp_path, monkeypatch):
    study = open_study(tmp_path / "study.journal", 0, [])
    study.set_user_attr(f"{WORKER} elsewhere:1", True)
    study.ask()
    fail_orphans(study)
    assert [t.state for t in study.trials] == [TrialState.RUNNING]
    monkeypatch.setattr(orphans, "HEARTBEAT", -1)
    fail_orphans(study)
    fail_orphans(study)
    assert [t.state for t in study.trials] == [TrialState.FAIL]


def test_there_must_be_something_to_join(tmp_path):
    """And looking for it leaves nothing, neither a file nor tables."""
    (tmp_path / "empty.journal").touch()
    for where in (tmp_path / "study.journal", tmp_path / "empty.journal", f"sqlite:///{tmp_path / 'study.db'}"):
        with pytest.raises(ValueError, match="start the run without --join"):
            join_study(where)
    assert not (tmp_path / "study.journal").exists()
    assert not (tmp_path / "study.db").exists() or (tmp_path / "study.db").stat().st_size == 0


def stop_when(process, where: Path, condition) -> None:
    """Halt a worker that does not hold the journal's lock, for which the others would wait."""
    while True:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        if condition() and is_free(where.with_name(f".{where.name}.lock")):
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.013)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_documented_command_joins_a_run(tmp_path):
    """Two processes of the main job, of which the one that has joined is killed in the middle of a trial."""
    small, large = save_model(tmp_path / "small", 1, 1), save_model(tmp_path / "large", 2, 12)
    options = {"small": small, "large": large, "prompts": write_prompts(tmp_path / "p.jsonl")} | FAST
    options |= {"quality_budget": 0.95, "trials": 600}
    run = [str(x) for name, value in options.items() for x in (f"--{name.replace('_', '-')}", value)]
    start = lambda *more: subprocess.Popen(  # noqa: E731
        command(*run, *more), cwd=tmp_path, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    where = tmp_path / "runs" / "default" / "study.journal"
    main = start()
    wait(lambda: where.exists() and (study := study_at(where)) and finished(study), main)
    stop_when(main, where, lambda: True)  # else it may be done before the other has started
    helper, study = start("--join"), join_study(where)
    own = lambda trial: trial.user_attrs.get(WORKER, "").endswith(f":{helper.pid}")  # noqa: E731
    wait(lambda: any(own(trial) for trial in finished(study)), helper)
    stop_when(helper, where, lambda: any(own(t) for t in study.get_trials(states=[TrialState.RUNNING])))
    main.send_signal(signal.SIGCONT)
    helper.kill()
    helper.communicate()
    said = main.communicate(timeout=800)[1].decode()
    assert (main.returncode, said) == (0, "")
    done, states = finished(study), [trial.state for trial in study.trials]
    assert len(done) == 600 and states.count(TrialState.FAIL) == 1 and TrialState.RUNNING not in states
    lines = [json.loads(line) for line in where.read_text().splitlines()]
    ends = [line["trial_id"] for line in lines if line["op_code"] == 6 and line["state"] == 1]
    assert sorted(ends) == [trial.number for trial in done]
    for trial in done:
        assert trial.constraints["goal"] == pytest.approx(trial.user_attrs["loss"] - 0.95)
    result = json.loads((where.parent / "result.json").read_text())
    assert len(result["trials"]) == 600


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://me:hunter22@localhost:1/db",
        "postgresql+psycopg2://me:hunter22@localhost:port/db",
        "postgresql:me:hunter22@localhost",
        "sqlite:////no/such/folder/x?password=hunter22",
    ],
)
def test_no_sentence_holds_a_password(url):
    with pytest.raises(ValueError, match="no database answers at --storage .*") as caught:
        studies.check_storage(url)
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter" not in shown and "***" in shown


def test_a_search_that_is_not_there_is_named_without_its_password(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}?password=hunter22"
    with pytest.raises(ValueError, match="no search to join at sqlite:.*") as caught:
        join_study(f"sqlite:///{tmp_path / 'study.db'}")
    assert str(studies.shown(url)).endswith("study.db?***") and "hunter" not in str(caught.value)
