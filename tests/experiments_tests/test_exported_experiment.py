"""The speed of exported settings in other engines: the run, with engines that take no time, and what it refuses."""

import json

import pytest
from export_specimens import exported as written
from tiny_models import words
from tiny_runs import toy_prompts

from experiments import exported
from policies import Rule
from train.common.cli import InputError

SECONDS = {"alone": 3.0, "default": 2.0, "exported": 1.0}


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Arguments of a run whose engines answer at once and say how long it took; both count as installed."""
    asked = []

    def build(settings, small, large, tokenizer, context, folder):
        asked.append(settings)
        answer = lambda way: lambda ids, new: ([1] * new, SECONDS[way] * (1 + len(ids)))  # noqa: E731
        return [answer(way) for way in exported.WAYS]

    monkeypatch.setattr(exported, "load", lambda config: (toy_prompts(config.limit), words()))
    engines = {name: engine._replace(build=build, module="json") for name, engine in exported.ENGINES.items()}
    monkeypatch.setattr(exported, "ENGINES", engines)
    monkeypatch.setattr(exported, "version", lambda package: "1")
    for name in ("small", "large"):
        (tmp_path / f"{name}.gguf").touch()
    folders = [
        written(Rule("top10", 0.4, "<="), "llama.cpp", tmp_path / "a", role="stop", length=8),
        written(Rule("top1", 0.4, "<="), "openvino", tmp_path / "b", role="stop"),
    ]
    arguments = [*map(str, folders), "--limit=3", "--repeats=2", "--max-new-tokens=5"]
    return [*arguments, *(f"--{n}={tmp_path / n}.gguf" for n in ("small", "large"))], asked, tmp_path / "out"


def test_the_run_pairs_the_three_ways(toys, capsys):
    arguments, asked, output = toys
    assert exported.main([*arguments, f"--output={output}"]) == 0
    assert asked[0]["speculative"]["draft"]["n_max"] == 8 and "logprobs" in asked[1]
    result = json.loads((output / "result.json").read_text())
    assert set(result["engines"]) == {"llama.cpp", "openvino"}
    for ways in result["engines"].values():
        assert ways["exported"]["ratios"]["alone"]["median"] == 3.0
        assert ways["exported"]["ratios"]["alone"]["interval"] == pytest.approx([3.0, 3.0])
        assert ways["exported"]["ratios"]["default"]["median"] == 2.0
        assert ways["default"]["equal"] == [6, 6]
    rows = (output / "rows.jsonl").read_text()
    assert len(rows.splitlines()) == 6
    assert "6/6" in capsys.readouterr().out
    # What was measured is not measured again, and is not mixed with a run of other settings.
    assert exported.main([*arguments, f"--output={output}"]) == 0
    assert (output / "rows.jsonl").read_text() == rows
    assert exported.main([*arguments, f"--output={output}", "--max-new-tokens=6"]) == 2
    assert "another --max-new-tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--limit=0"], "--limit must be at least 1, not 0"),
        (["--large=large.bin"], "large.bin is no .gguf file"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(toys, capsys, changes, named):
    arguments, _, output = toys
    assert exported.main([*arguments, *changes, f"--output={output}"]) == 2
    assert named in capsys.readouterr().err
    assert not output.exists()


def test_folders_of_other_targets_and_absent_engines_are_refused(toys, tmp_path, monkeypatch):
    folder = written(Rule.never(), "mlx-lm", tmp_path / "c", role="stop")
    with pytest.raises(InputError, match="is an export to mlx-lm; give at most one of each"):
        exported.run(exported.ExportedSpeed(folders=(folder,)))
    absent = {name: engine._replace(module="no_such_engine") for name, engine in exported.ENGINES.items()}
    monkeypatch.setattr(exported, "ENGINES", absent)
    with pytest.raises(InputError, match="is for openvino, which is not installed; pip install openvino-genai"):
        exported.run(exported.ExportedSpeed(folders=(tmp_path / "b" / "openvino",)))
