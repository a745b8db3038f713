"""Speed of a pair in processes of their own: every row on toys, a stop in between, a row that dies, bad input."""

import json
from contextlib import contextmanager

import pytest
from tiny_runs import save_model, write_prompts

from experiments import speed
from experiments.pair_speed.supervisor import Supervisor
from experiments.pair_speed.table import COLUMNS, figures
from train.common.cli import InputError

ROWS = ("transformers", "transformers-assisted:2", "llama.cpp", "large", "exact:2")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "small": save_model(folder / "small", seed=2, layers=1),
        "large": save_model(folder / "large", seed=1, layers=2),
        "prompts": write_prompts(folder / "prompts.jsonl", 6),
    }


def config(output, saved, **changes):
    base = {"rows": ROWS, "limit": 3, "transformers_limit": 2, "search_prompts": 1, "max_new_tokens": 6}
    return speed.Speed(**base | {"threads": 1, "output": output} | saved | changes)


@pytest.fixture(scope="module")
def result(saved, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "speed"
    with pytest.MonkeyPatch.context() as patch:
        plain, asked = Supervisor._replies, []

        def dying(self, title, job, count):
            if len(asked) == 1:
                raise KeyboardInterrupt
            asked.append(title)
            yield from plain(self, title, job, count)

        patch.setattr(Supervisor, "_replies", dying)
        with pytest.raises(KeyboardInterrupt):
            speed.run(config(output, saved))
    before = (output / "rows.jsonl").read_bytes()
    return speed.run(config(output, saved)), output, before


@pytest.mark.slow
def test_every_row_has_figures_or_a_reason(result):
    found, output, _ = result
    assert json.loads((output / "result.json").read_text()) == json.loads(json.dumps(found))
    rows = {name.partition(" ")[0]: row for name, row in found["rows"].items()}
    assert list(rows) == [row for row in ROWS if row != "llama.cpp"]
    assert "llama.cpp" in found["left_out"] and found["baseline"] == "large"
    assert [rows[row]["prompts"] for row in rows] == [2, 2, 3, 3]
    assert all(row["tokens_per_second"] > 0 and row["peak_bytes"] > 2**20 for row in rows.values())
    assert rows["large"]["target_calls"] == 1 and rows["exact:2"]["same"] == 1
    assert rows["exact:2"]["kept"] == pytest.approx(1 / rows["exact:2"]["target_calls"] - 1)


@pytest.mark.slow
def test_a_stopped_run_goes_on(result):
    _, output, before = result
    after = (output / "rows.jsonl").read_bytes()
    assert before and after.startswith(before)
    keys = [json.dumps([json.loads(line)[k] for k in ("phase", "row", "prompt")]) for line in after.splitlines()]
    assert len(keys) == len(set(keys)) == 2 + 2 + 3 + 3 + 3


@pytest.mark.slow
def test_a_row_that_dies_is_named(result, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.pair_speed.run.bfloat16_is_fast", lambda device: False)
    plain = Supervisor._replies

    def broken(self, title, job, count):
        yield from plain(self, title, job | ({"engine": "none"} if job["engine"] == "transformers" else {}), count)

    counts = []

    @contextmanager
    def counted(title, total):
        yield counts.append

    monkeypatch.setattr(Supervisor, "_replies", broken)
    monkeypatch.setattr("experiments.pair_speed.supervisor.progress", counted)
    found = speed.run(config(tmp_path / "run", saved, rows=("transformers", "large")))
    assert list(found["rows"]) == ["large"] and "KeyError" in found["left_out"]["transformers"]
    assert counts[:3] == [1, 2, 3], "prompts of the large model that are done"


@pytest.mark.parametrize(
    "changes",
    [{"rows": ("none",)}, {"rows": ("exact:0",)}, {"rows": ("tuned:nowhere",)}, {"baseline": "exact"}, {"limit": 0}],
)
def test_bad_input_is_one_sentence(saved, tmp_path, changes):
    with pytest.raises(InputError):
        speed.run(config(tmp_path / "run", saved, **changes))
    assert not (tmp_path / "run").exists()


def test_a_row_that_does_not_tell_its_calls_has_none_in_the_table():
    line = {"prompt": "a", "seconds": 2.0, "tokens": 4, "number": 0, "target_calls": None}
    line |= {"peak_bytes": 2**30, "load_seconds": 1.0}
    row = figures([line], None, {"a": "x"}, None, 4, drafts=True)
    assert row["tokens_per_second"] == 2 and row["target_calls"] is None and row["kept"] is None
    assert COLUMNS["target calls a token"](row) == ""
