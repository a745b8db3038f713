"""The journal of a study: a torn end goes, anything else that is damaged is named, and full disks lose nothing."""

import errno
import json
import resource
import signal
from contextlib import contextmanager

import pytest

from policies.storage.documents import FileError
from train.search.journal import Journal
from train.search.study import complete, join_study, open_study, run_study

BASELINES = [{"x": 0.3}, {"x": 0.6}]


def objective(trial) -> float:
    return trial.suggest_float("x", 0, 1)


@pytest.fixture
def where(tmp_path):
    path = tmp_path / "study.journal"
    run_study(open_study(path, 0, BASELINES, run="mine"), objective, 4, [])
    return path


def values(study) -> list[float]:
    return [trial.value for trial in complete(study)]


def refused(where, *parts):
    before = where.read_bytes() if where.is_file() else None
    for open_it in (lambda: open_study(where, 0, BASELINES, run="mine"), lambda: join_study(where, run="mine")):
        with pytest.raises(FileError) as caught:
            open_it()
        message = str(caught.value)
        assert message.startswith(str(where)) and "\n" not in message, message
        assert all(part in message for part in parts), message
    assert before is None or where.read_bytes() == before


@pytest.mark.parametrize(
    "torn", [b'{"op_code": 6', b"\0\0\0\0", b"garbage", b"garbage\n", b'{"op\0\0}\n', b"\xff\n"], ids=str
)
def test_a_torn_end_goes_with_one_line_and_the_search_goes_on(where, torn, caplog):
    """Optuna's own backend read this, wrote the next line behind it, and never read the study again."""
    found = values(join_study(where))
    where.write_bytes(where.read_bytes() + torn)
    assert values(join_study(where)) == found
    assert not caplog.records
    study = open_study(where, 0, BASELINES, run="mine")
    run_study(study, objective, 6, [])
    (record,) = caplog.records
    assert str(where) in record.getMessage() and "dropped" in record.getMessage()
    again = join_study(where, run="mine")
    assert values(again)[:4] == found and len(values(again)) == 6
    assert torn.strip() not in where.read_bytes()


def test_the_line_that_is_garbage_is_named(where):
    lines = where.read_bytes().split(b"\n")
    lines[4] = lines[4][:-9]
    where.write_bytes(b"\n".join(lines))
    refused(where, "line 5: it is not valid JSON", "delete it to search anew")


def test_a_changed_digit_is_noticed(where):
    before = where.read_text()
    where.write_text(before.replace("0.6", "0.7", 1))
    assert where.read_text() != before
    refused(where, "it was changed after it was written")


@pytest.mark.parametrize("line", [0, 3, -3])
def test_a_line_that_is_missing_or_doubled_is_noticed(where, line):
    """A trial that is lost, or there twice, would shift the numbers of all that follow."""
    *lines, end = where.read_bytes().split(b"\n")
    without, line = lines.copy(), line % len(lines)
    del without[line]
    where.write_bytes(b"\n".join([*without, end]))
    refused(where, f"line {line + 1}: a line before it is missing")
    where.write_bytes(b"\n".join([*lines[: line + 1], *lines[line:], end]))
    refused(where, f"line {line + 2}:", "it is there twice")
    lines[line], lines[line + 1] = lines[line + 1], lines[line]
    where.write_bytes(b"\n".join([*lines, end]))
    refused(where, f"line {line + 1}: a line before it is missing")


def test_the_search_of_another_run_is_refused(where):
    with pytest.raises(FileError, match=f"{where}: it holds the search of another run; delete it"):
        open_study(where, 0, BASELINES, run="theirs")
    with pytest.raises(FileError, match="another run"):
        join_study(where, run="theirs")


def test_a_journal_of_an_earlier_version_goes_on(where):
    found = values(join_study(where))
    rows = [json.loads(line) for line in where.read_text().splitlines()]
    plain = [{key: value for key, value in row.items() if key not in ("after", "checksum")} for row in rows]
    where.write_text("".join(json.dumps(row) + "\n" for row in plain))
    run_study(open_study(where, 0, BASELINES, run="mine"), objective, 6, [])
    assert values(join_study(where, run="mine"))[:4] == found


@pytest.mark.parametrize("content", ['{"id": "p0"}\n', '{"op_code": 77}\n', '{"op_code": 4, "study_id": []}\n'])
def test_another_file_is_no_journal(tmp_path, content):
    (tmp_path / "study.journal").write_text(content)
    refused(tmp_path / "study.journal", "it is not the journal of a search")


def test_a_folder_is_no_journal(tmp_path):
    (tmp_path / "study.journal").mkdir()
    refused(tmp_path / "study.journal", "it is not a regular file")


@contextmanager
def room(size: int):
    """No file may grow beyond ``size`` bytes: a write ends in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("more", [40, 700, 1000, 1300, 1600])
def test_a_full_disk_is_said_as_it_is_and_loses_nothing(where, more):
    """Optuna said "AssertionError: Should not reach.", and the study could never be read again."""
    found = values(join_study(where))
    study = open_study(where, 0, BASELINES, run="mine")
    size = where.stat().st_size
    with room(size + more), pytest.raises(OSError, match="File too large") as caught:
        run_study(study, objective, 8, [])
    assert caught.value.errno == errno.EFBIG
    study = open_study(where, 0, BASELINES, run="mine")
    run_study(study, objective, 8, [])
    study = join_study(where, run="mine")
    assert values(study)[:4] == found and len(values(study)) == 8


def test_a_stop_while_a_trial_ends_is_a_stop(where, monkeypatch):
    """Optuna said "UnboundLocalError"."""
    study = open_study(where, 0, BASELINES, run="mine")

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(study._storage, "set_trial_state_values", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, objective, 8, [])
    assert len(values(open_study(where, 0, BASELINES, run="mine"))) == 4


def test_errors_of_the_objective_stay_what_they_are(where):
    study = open_study(where, 0, BASELINES)
    for error in (AssertionError("mine"), UnboundLocalError("mine"), ValueError("mine")):

        def failing(trial, error=error):
            raise error

        with pytest.raises(type(error), match="mine"):
            run_study(study, failing, 8, [])


def test_two_that_write_at_once_where_locks_do_not_hold_lose_nothing(tmp_path):
    ours, theirs = (Journal(tmp_path / "study.journal", "stop") for _ in range(2))
    ours.append_logs([{"n": 0}])
    list(theirs.read_logs(0))
    ours.append_logs([{"n": 1}])
    theirs._append([{"n": 2}])  # between reading and writing of the other
    ours.append_logs([{"n": 3}])
    assert [row["n"] for row in Journal(tmp_path / "study.journal", "stop").read_logs(0)] == [0, 1, 2, 3]


def test_ctrl_c_waits_for_the_line_that_is_being_written(tmp_path, monkeypatch):
    where = tmp_path / "study.journal"
    study = open_study(where, 0, [])
    journal = study._storage._backend
    append = journal._append
    monkeypatch.setattr(journal, "_append", lambda logs: append(logs) or signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        study.set_user_attr("written", True)
    assert not journal.lock.is_locked
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert join_study(where).user_attrs == {"written": True}
