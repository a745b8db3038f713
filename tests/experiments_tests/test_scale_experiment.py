"""The experiments about scale and moved traffic, at a size of seconds."""

import json
import shutil

import numpy as np
import pytest

from experiments import moved_traffic, scale, worker_cost
from experiments.shared import synthetic_prompts
from train.data.prompts import load_prompts
from train.traces.handoff_traces import read_traces


def test_synthetic_traces_are_read_as_traces_are(tmp_path):
    synthetic_prompts.write_prompts(tmp_path / "p.jsonl", 120)
    prompts = load_prompts(tmp_path / "p.jsonl", synthetic_prompts.stand_in)
    assert len({p.id for p in prompts}) == 120 and len({p.family for p in prompts}) == 10
    synthetic_prompts.write_traces(tmp_path / "traces", 120, 8)
    traces = read_traces(tmp_path / "traces")
    assert len(list((tmp_path / "traces").glob("*.parquet"))) == 2 * 9
    assert len(traces.starts) - 1 == 3 * 72
    assert set(traces["trajectory"]) == {"large", "mixed", "policy"}
    assert 45 < np.diff(traces.starts).mean() < 64
    assert np.corrcoef(traces["entropy"], traces["regret"])[0, 1] > 0.5


@pytest.mark.slow
def test_each_step_is_measured_in_a_process_of_its_own(tmp_path, capfd):
    assert scale.main(["--prompts", "300", "--shard", "32", "--output", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "scale.json").read_text())["rows"]
    assert row["split"]["fit"] + row["split"]["tune"] + row["split"]["holdout"] == 300
    assert 0 < row["traces"]["fitted"] < row["traces"]["replayed"] == row["traces"]["rows"]
    for step in scale.STEPS:
        assert 0 <= row[step]["seconds"] < 60 and 30 < row[step]["peak_mib"] < 3000
    assert [path.name for path in tmp_path.iterdir()] == ["scale.json"]
    assert scale.main(["--prompts", "10", "--output", str(tmp_path)]) == 2


def test_the_seconds_of_a_log():
    lines = ["collecting traces 2/5, 0:00:10 left", "collecting traces 5/5, 0:01:02 in all", "a, b, 1:00:00 in all"]
    assert worker_cost.seconds_of([*lines, lines[1]]) == {"collecting traces": 124.0, "a, b": 3600.0}


def test_costs_are_those_of_the_log(tuned_run, tmp_path, capsys):
    run = shutil.copytree(tuned_run, tmp_path / "run")
    lines = ["collecting traces 2/2, 0:00:06 in all", "tracing a policy, round 1 2/2, 0:00:12 in all"]
    (run / "log.txt").write_text("\n".join(lines))
    rows = worker_cost.run(worker_cost.WorkerCost(run))
    assert [row["step"] for row in rows] == ["collecting traces", "tracing a policy, round 1"]
    (prompts,) = {row["prompts"] for row in rows}
    assert [row["seconds"] for row in rows] == [6000 / prompts, 12_000 / prompts]
    total = sum(path.stat().st_size for path in (run / "traces").glob("*.parquet"))
    assert sum(row["bytes"] for row in rows) == pytest.approx(1000 * total / prompts)
    (run / "log.txt").write_text(lines[1])
    assert worker_cost.main([str(run)]) == 2
    assert "log.txt does not say how long 'collecting traces' took" in capsys.readouterr().err


def test_alarms_on_drawn_logs(tuned_run, tmp_path):
    def write(name: str, texts: list[str]) -> str:
        rows = [{"id": f"{name}{i}", "prompt": text} for i, text in enumerate(texts)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    words = np.random.default_rng(3).integers(5, 37, (30, 4))
    own = write("own.jsonl", [" ".join(f"w{k}" for k in row) for row in words])
    other = write("other.jsonl", [f"w5 w{5 + i} " + "w6 w7 " * (10 + i) for i in range(30)])
    how = {"draws": 3, "texts": 60, "every": 20, "output": tmp_path / "out"}
    found = moved_traffic.run(moved_traffic.MovedTraffic(tuned_run, own, other, **how))
    assert len(found["own"]["caught"]) == len(found["other"]["caught"]) == 3
    assert all(at in (None, 20, 40, 60) for name in ("own", "other") for at in found[name]["caught"])
    assert (tmp_path / "out" / "moved_traffic.png").read_bytes()[:4] == b"\x89PNG"
    path = tmp_path / "out" / "moved_traffic.json"
    assert json.loads(path.read_text())["own"] == found["own"]
    again = moved_traffic.run(moved_traffic.MovedTraffic(tuned_run, again=path, **how))
    assert again["other"]["caught"] == found["other"]["caught"]
    assert moved_traffic.main([str(tuned_run), "--output", str(tmp_path)]) == 2
    path.write_text("{}")
    assert moved_traffic.main([str(tuned_run), "--again", str(path), "--output", str(tmp_path)]) == 2
