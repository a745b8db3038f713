"""The script for a GPU runs to its end on a CPU, goes on where it stopped, and its paper adds up."""

import json

import pytest
import torch
from tiny_models import tiny

from decoding import Autoregressive
from decoding.generation import commits
from experiments import gpu_check
from experiments.engine_speed.random_models import SHAPES
from experiments.gpu import correctness, goals, roofline
from experiments.gpu_check import CHECKS, PAIRS, PARTS, SPEEDS, main


def options(folder, *parts):
    return ["--tiny", "--output", str(folder), "--max-new-tokens", "16", *(["--parts", *parts] if parts else [])]


def test_a_part_of_each_kind(tmp_path, capfd):
    parts = ("waits", "kernels", SPEEDS[0], SPEEDS[4])
    assert main(options(tmp_path, *parts)) == 0
    files = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert len(files) == 4 and all(found["tiny"] for found in files.values())
    rows = [row["row"] for row in files["tiny-llama-8b+1b-1.json"]["rows"]]
    assert rows == [
        *("small", "large", "decision:rule", "decision:logistic"),
        *("hand-off:80", "hand-off:90", "speculative:4", "mtad:4"),
    ]
    assert all(row["seconds_a_token"] for row in files["tiny-llama-8b+1b-transformers.json"]["rows"])
    shown = capfd.readouterr().out
    assert "NOT PASSED" not in shown
    assert f"4 of {len(PARTS)} parts, on cpu" in shown and "transformers-assisted:4" in shown


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(gpu_check, "of_part", lambda part, *args: asked.append(part) or {"passed": True, "rows": []})
    assert main(options(tmp_path, *CHECKS)) == 0
    assert main(options(tmp_path)) == 0
    assert asked == [*PARTS]
    assert main(["--tiny", "--report", "--output", str(tmp_path)]) == 0
    assert asked == [*PARTS]


@pytest.mark.slow
def test_every_part(tmp_path, capfd):
    assert main(options(tmp_path)) == 0
    assert "NOT PASSED" not in capfd.readouterr().out
    assert len(list(tmp_path.glob("*.json"))) == len(PARTS)


def test_bad_input_is_one_sentence(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for wrong, said in (
        (["--output", str(tmp_path)], "no CUDA device was found"),
        ([*options(tmp_path), "--parts", "text"], "--parts 'text' is none of texts, waits"),
        (["--tiny", "--output", str(tmp_path), "--max-new-tokens", "7"], "--max-new-tokens must be from 8"),
    ):
        assert main(wrong) == 2
        assert said in capfd.readouterr().err


def test_a_wait_in_the_loop_is_told(monkeypatch):
    """As torch tells it on CUDA; the prompt and the last commits may wait."""
    modes, ids = [], torch.full((1, 4), 3)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    decoder = Autoregressive(tiny())

    def refuse(state):
        if modes[-1:] == ["error"]:
            raise RuntimeError("called a synchronizing CUDA operation")

    watched = lambda decoder, state: (refuse(state) or commit for commit in commits(decoder, state))  # noqa: E731
    monkeypatch.setattr(correctness, "commits", watched)
    with pytest.raises(RuntimeError, match="synchronizing"):
        correctness.hot_loop(decoder, ids, 20, True)
    assert modes == ["default", "default", "error", "default"]


def test_goals_of_the_rows_of_a_batch_of_one():
    seconds = {"small": 0.2, "large": 1.0, "decision:rule": 0.21, "decision:logistic": 0.24, "hand-off:80": 0.5}
    seconds |= {"hand-off:90": 0.4, "speculative:4": 0.6, "mtad:4": 0.8}
    rows = [{"row": row, "seconds_a_token": s, "share_by_large": None} for row, s in seconds.items()]
    rows[4]["share_by_large"], rows[5]["share_by_large"] = 0.2, 0.1
    others = {"rows": [{"row": "transformers-assisted:4", "seconds_a_token": 2.1}]}
    part = {"rows": rows, "tiny": True, "prompt": 16, "new": 16}
    found = goals.reached(PAIRS[0], {f"{PAIRS[0]} 1": part, f"{PAIRS[0]} transformers": others})
    assert [line[3] for line in found] == ["1.05", "1.20", "0.80", "0.75", "3.5"]
    assert not list(goals.reached(PAIRS[1], {}))


def test_bytes_on_paper_are_those_of_the_models():
    """A head of its own besides a table of embeddings that a token does not read, or one for both."""
    for name, counts in {"llama-8b+1b": (1.236e9, 7.505e9), "qwen3-8b+0.6b": (0.596e9, 7.568e9)}.items():
        for shape, count in zip(SHAPES[name], counts, strict=True):
            assert roofline.weights(shape) == pytest.approx(count, rel=2e-3)


def test_what_the_paper_says():
    def tokens(row, rows=1, limit=True):
        return rows / roofline.seconds(row, SHAPES["llama-8b+1b"], rows, 448, roofline.H100, limit)

    assert tokens("large") == pytest.approx(3.35e12 / 15.07e9, rel=0.01)
    assert tokens("small") > tokens("hand-off:90") > tokens("hand-off:80") > tokens("large") > tokens("speculative:4")
    assert all(tokens(row, limit=False) < tokens(row) for row in ("small", "large", "hand-off:80"))
    assert tokens("hand-off:90", 64) < tokens("large", 64)
