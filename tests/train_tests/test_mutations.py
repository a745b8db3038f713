"""Whatever happens to a file of a run, reading it gives the same numbers or one sentence that names the file.

What cannot be told from an earlier state of the run is allowed for, and nothing else:

* the last lines of a journal or of JSON lines are gone: the run was stopped before they were written;
* other lines of JSON lines are gone: each is a measurement of its own, and is made again;
* a line of JSON lines is there twice, or two have changed places: the same measurements;
* the list of the shards' checksums has lost lines: those shards are read as an earlier version wrote them;
* a checksum is deleted, or its name is hit, and nothing else: an earlier version wrote none.
"""

import functools
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import QUIET, mutated, put, restore

from decoding.cost import cache
from policies import PolicyError, load
from policies.storage import documents
from policies.storage.documents import CHECKSUM, FileError
from policies.storage.shards import write_shard
from train.common import preparation
from train.common.atomic import append_rows, fingerprint, plain, read_rows
from train.common.load_run import load_run
from train.common.result import read_result, write_result
from train.common.rows import HoldoutText, LiveRow, ThresholdRow
from train.search.journal import Journal
from train.search.study import join_study, open_study, run_study
from train.traces.handoff_traces import read_traces

JSON = ("run.json", "result.json", "policy.json", "cost.json", "traces/meta.json")
ROWS = {"tune.jsonl": LiveRow, "holdout.jsonl": LiveRow, "texts.jsonl": HoldoutText, "threshold.jsonl": ThresholdRow}
LINES = (*ROWS, "study.journal", "traces/checksums.jsonl")


@pytest.fixture(scope="module")
def run(tuned_run, tmp_path_factory):
    """A copy of a finished run, whose files are restored after each mutation; its models are loaded once."""
    folder = tmp_path_factory.mktemp("mutated") / "run"
    shutil.copytree(tuned_run, folder, ignore=shutil.ignore_patterns("wandb", "*.png", "*.html"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "load_model", functools.cache(preparation.load_model))
        yield folder


def other_run(folder: Path, name: str) -> bytes:
    """The file ``name`` as another run of the same settings, or a later start with others, would have written it."""
    path, other = folder / name, folder.parent / "other"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(folder, other)
    if name == "run.json":
        found = documents.read(path, "")
        documents.write(other / name, found | {"settings": found["settings"] | {"seed": 5}})
    elif name == "result.json":
        result = read_result(folder)
        write_result(replace(result, cost={"small": {1: 1.0, 2: 1.0}, "large": {1: 2.0, 2: 2.0}}), other)
    elif name == "policy.json":
        policy = load(path)
        costs = {"small": {"1": 1.0, "2": 1.0}, "large": {"1": 2.0, "2": 2.0}}
        policy.save(other / name, provenance=policy.provenance | {"cost": costs})
    elif name == "cost.json":
        cache.write(other / name, [], replace(cache.read(path), token_overhead=0.25, tables=({1: 1.0, 2: 1.0},) * 2))
    elif name == "traces/meta.json":
        documents.write(other / name, documents.read(path, "") | {"seed": 9})
    elif name == "study.journal":
        (other / name).unlink()
        run_study(open_study(other / name, 3, [], run="other"), lambda trial: trial.suggest_float("x", 0, 1), 3, [])
    elif name == "traces/checksums.jsonl":
        (other / name).unlink()
        write_shard(other / "traces", 0, read_traces(folder / "traces").of({"p1"}).columns)
    elif name in ROWS:
        (other / name).unlink()
        (other / "run.json").write_bytes(other_run_json(folder))
        append_rows(other / name, read_rows(path, dict)[:1])
    else:
        (other / name).unlink()
        columns = read_traces(folder / "traces", 1).columns
        write_shard(other / "traces", int(name[13:18]), columns | {"regret": columns["regret"] / 2})
    return (other / name).read_bytes()


def other_run_json(folder: Path) -> bytes:
    return (folder / "run.json").read_bytes().replace(b'"format"', b' "format"')


def read_again(folder: Path, name: str):
    """What is read of the file ``name`` and of those that belong to it, for comparison."""
    if name.startswith("traces/"):
        return {
            name: (column.dtype.str, column.tobytes())
            for name, column in read_traces(folder / "traces").columns.items()
        }
    if name in ROWS:
        return read_rows(folder / name, ROWS[name])
    if name == "study.journal":
        join_study(folder / name, run=fingerprint(folder))
        return list(Journal(folder / name, "stop").read_logs(0))
    run = load_run(folder)
    return plain([asdict(run.settings), run.result.to_json(), asdict(run.cost), run.policy._document(None, None)])


def the_same(name: str, before, after) -> bool:
    if name in ROWS:
        return all(any(holds(row, old) for old in before) for row in after)
    if name == "study.journal":
        return len(after) <= len(before) and all(map(holds, after, before))
    return after == before


def holds(row: dict, old: dict) -> bool:
    """All of the old one: where the name of the checksum was hit, it is a key that nobody knows."""
    return all(row.get(key) == value for key, value in old.items() if key != CHECKSUM)


def files_of(folder: Path) -> list[str]:
    shards = sorted(f"traces/{path.name}" for path in (folder / "traces").glob("*.parquet"))
    return [name for name in (*JSON, *LINES, *shards) if (folder / name).exists()]


def check_a_mutation(run: Path, draw) -> None:
    name = draw(st.sampled_from(files_of(run)))
    path, before = run / name, read_again(run, name)
    content = path.read_bytes()
    try:
        form = "json" if name in JSON else "lines" if name in LINES else None
        put(path, mutated(draw, content, form, lambda: other_run(run, name)))
        after = read_again(run, name)
        assert the_same(name, before, after), name
    except (ValueError, OSError) as error:
        assert type(error) in (FileError, PolicyError, ValueError), repr(error)
        assert str(run) in str(error) and "\n" not in str(error) and len(str(error)) < 500, error
    finally:
        restore(path, content)


@pytest.mark.filterwarnings("error")
@settings(max_examples=100, deadline=None, suppress_health_check=QUIET)
@given(data=st.data())
def test_a_mutation_is_one_sentence_or_changes_no_number(run, data):
    check_a_mutation(run, data.draw)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=QUIET, database=None)
@given(data=st.data())
def test_two_thousand_mutations(run, data):
    check_a_mutation(run, data.draw)


def test_the_files_of_another_run_are_all_noticed(run):
    """Each is whole and has its checksum; the description of traces does not change what is read of them."""
    for name in files_of(run):
        path, before = run / name, read_again(run, name)
        content = path.read_bytes()
        put(path, other_run(run, name))
        try:
            if name == "traces/meta.json":
                assert read_again(run, name) == before
            else:
                with pytest.raises(ValueError, match=str(run)):
                    read_again(run, name)
        finally:
            restore(path, content)
