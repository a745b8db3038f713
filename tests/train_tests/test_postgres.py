"""A search that four processes share in a real PostgreSQL, of which two are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import postgres
import pytest
from optuna.trial import TrialState
from sqlalchemy import NullPool, create_engine, text

from train.search.orphans import WORKER
from train.search.study import POOL, finished, join_study, open_storage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(postgres.why_not() is not None, reason=str(postgres.why_not())),
]
ROOT = Path(__file__).parents[2]
TRIALS, WORKERS = 200, 4
WORKER_CODE = """
import json, sys, time
from train.search import orphans, study as studies
url, leads, trials, ended = json.loads(sys.argv[1])
orphans.HEARTBEAT = 2
study = studies.open_study(url, 0, [{"x": 0.3}, {"x": 0.6}]) if leads else studies.join_study(url)

def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    time.sleep(0.15)
    trial.set_constraint("goal", x - 0.5)
    return x

def tell(study, trial):
    with open(ended, "a") as file:  # one short write, which others do not split
        file.write(f"{trial.number}\\n")

studies.run_study(study, objective, trials, [tell])
studies.wait_for_trials(study)
"""


@pytest.fixture(scope="module")
def url():
    with postgres.server() as url:
        yield url


def worker(url: str, leads: bool, ended: Path) -> subprocess.Popen:
    how = json.dumps([url, leads, TRIALS, str(ended)])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WORKER_CODE, how]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def study_at(url: str):
    try:
        return join_study(url)
    except ValueError:  # not there yet
        return None


def connections(url: str) -> int:
    """Those of all others to the database."""
    with create_engine(url, poolclass=NullPool).connect() as own:
        asked = (
            "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        return own.execute(text(asked)).scalar()


@pytest.mark.timeout(280)
def test_four_workers_two_killed_and_every_trial_finished_once(url, tmp_path):
    ended, until = tmp_path / "ended", time.monotonic() + 250
    workers = [worker(url, True, ended)]
    while (study := study_at(url)) is None or not finished(study):
        assert time.monotonic() < until and workers[0].poll() is None, workers[0].stderr.read().decode()
        time.sleep(0.1)
    workers += [worker(url, False, ended) for _ in range(WORKERS - 1)]
    study._storage._backend.engine.dispose()  # this process asks seldom: its connections are not counted
    most, victims, draw = 0, workers[2:], random.Random(0)
    own = lambda process: sum(t.user_attrs.get(WORKER, "").endswith(f":{process.pid}") for t in finished(study))  # noqa: E731
    for victim in victims:
        while not own(victim):  # it has begun
            assert time.monotonic() < until and victim.poll() is None, victim.stderr.read().decode()
            study._storage._backend.engine.dispose()
            most = max(most, connections(url))
        time.sleep(draw.uniform(0, 0.1))
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    for process in workers[:2]:
        assert process.communicate(timeout=max(1, until - time.monotonic()))[1].decode() == ""
        assert process.returncode == 0
    assert 0 < most <= WORKERS * POOL["pool_size"]
    states = Counter(trial.state for trial in study.trials)
    told = [int(line) for line in ended.read_text().split()]
    done = [trial.number for trial in finished(study)]
    assert len(done) >= TRIALS and len(done) < TRIALS + WORKERS  # each worker may be at one when the last is done
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    assert len(told) == len(set(told)) and set(told) <= set(done)
    assert len(set(done) - set(told)) <= len(victims)  # of a worker that was killed before it could tell
    assert states[TrialState.FAIL] <= len(victims) and states[TrialState.RUNNING] == 0
    for trial in finished(study):
        assert trial.constraints == {"goal": trial.params["x"] - 0.5} and trial.value == trial.params["x"]
    assert {0.3, 0.6} <= {trial.params["x"] for trial in finished(study)}


def test_a_worker_holds_no_more_than_two_connections(url):
    engine = open_storage(url).engine
    assert (engine.pool.size(), engine.pool._max_overflow) == (2, 0)
