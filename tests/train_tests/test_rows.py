"""Rows of a run: checked field by field, of one run, and no value is changed by reading it."""

from dataclasses import asdict

import pytest

from policies.storage.documents import FileError
from train.common.atomic import append_rows, read_rows
from train.common.rows import CandidateRow, LiveRow, ReferenceRow, StepRow, ThresholdRow
from train.reinforcement.policy_gradient import learn

ANSWER = {"tokens": 2, "seconds": 1, "answer": [3, 4], "writers": [0, 1], "large_share": 0.5}
ANSWER |= {"loss": 0, "regret": 0.25, "guarded": 0.5}
LIVE = {"id": "p0", "family": "f", "setting": "", "methods": {"large": ANSWER | {"counts": {"calls": [1]}}}}
THRESHOLD = asdict(ThresholdRow(3, 0.5, 1.5, [0.25, 0.0]))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


def test_rows_are_read_back_as_they_were_with_what_is_kept_beside(path):
    append_rows(path, [LIVE])
    (row,) = read_rows(path, LiveRow)
    assert row == LIVE
    assert type(row["methods"]["large"]["seconds"]) is int


@pytest.mark.parametrize("field", THRESHOLD)
@pytest.mark.parametrize("value", [None, "1", True, [None], {}, 1.5j], ids=str)
def test_each_field_is_checked_and_named(path, field, value):
    bad = {key: item for key, item in THRESHOLD.items() if key != field}
    bad |= {} if value == 1.5j else {field: value}  # left out
    append_rows(path, [THRESHOLD, bad])
    with pytest.raises(
        FileError, match=f"^{path}, line 2: {field}.*; delete that line, and what it holds is made anew$"
    ):
        read_rows(path, ThresholdRow)


def test_what_is_nested_is_checked_too(path):
    append_rows(path, [LIVE | {"methods": {"large": ANSWER | {"answer": [3, "4"]}}}])
    with pytest.raises(FileError, match=r"line 1: methods.large.answer.1: "):
        read_rows(path, LiveRow)


def test_either_kind_may_be_meant(path):
    rows = [asdict(ReferenceRow("p0", "large", [3])), asdict(CandidateRow("p0", 0, 0.5, 1.0, 2.0, 1.0))]
    append_rows(path, rows)
    assert read_rows(path, ReferenceRow | CandidateRow) == rows
    append_rows(path, [{"id": "p0", "candidate": "large", "loss": 0.5}])
    with pytest.raises(FileError, match="line 3: "):
        read_rows(path, ReferenceRow | CandidateRow)


def test_rows_of_another_run_are_refused(path):
    """Its prompts and trials may have the same names, and its numbers would be taken for this run's."""
    append_rows(path, [THRESHOLD])  # before there was a run.json: of an earlier version
    (path.parent / "run.json").write_text("{}")
    append_rows(path, [THRESHOLD])
    assert read_rows(path, ThresholdRow) == [THRESHOLD, THRESHOLD]
    (path.parent / "run.json").write_text("{ }")
    with pytest.raises(FileError, match=f"^{path}, line 2: it is of another run; delete that line"):
        read_rows(path, ThresholdRow)


def test_a_missing_step_of_training_is_noticed(path):
    """The next one would go on from the state of another."""
    steps = [asdict(StepRow(i, 0.5, 0.5, 0.1, 1.0, 0.2, 0.3, 1.0, {"weights": [0.5], "step": 1.0})) for i in (0, 2)]
    append_rows(path, steps)
    with pytest.raises(FileError, match="steps are missing, or there twice; delete it to train anew"):
        learn(None, None, None, path)
