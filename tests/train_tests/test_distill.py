"""The command that distils a drafter: it goes on after a stop, writes what was asked for, and refuses what is wrong."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_distillation import command, make_prompts, make_target

from decoding import LM
from train.distill import cli
from train.distillation import pipeline
from train.distillation.allocator import SETTINGS
from train.distillation.pipeline import write_round
from train.distillation.trainer import Trainer


@pytest.fixture
def folder(tmp_path):
    make_target(tmp_path)
    make_prompts(tmp_path)
    return tmp_path


def progress(output: Path) -> dict:
    with safe_open(output / "checkpoint.safetensors", "pt") as file:
        return json.loads(file.metadata()["progress"])


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def refused(arguments, capsys) -> str:
    """The one sentence of a command that ends with code 2."""
    capsys.readouterr()
    assert cli([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("distill: ") and error.count("\n") == 1
    return error


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_make_the_answers_and_labels_that_one_process_makes(folder):
    left = []
    for name, more in (("alone", ()), ("workers", ("--workers", "processes:2"))):
        assert cli(command(folder, name, 0.001, "--threads", "1", "--answer-batch", "32", *more)) == 0
        output = folder / name
        assert not list(output.rglob("queue")) and (output / "workers").exists() == bool(more)
        paths = [output / "generations.jsonl", *sorted((output / "store").iterdir())]
        left.append({path.name: path.read_bytes() for path in paths})
    assert left[0] == left[1] and len(left[0]) == 4


def test_the_command_goes_on_after_a_stop_and_writes_a_drafter(folder):
    output = folder / "run"
    assert cli(command(folder, "run", 0.02)) == 0
    answers, first = rows(output / "generations.jsonl"), progress(output)
    assert len(answers) == 120  # greedy and sampled
    (output / f"settings.json.{platform.node()}.{10**30}.tmp").touch()  # as a kill leaves it
    assert cli(command(folder, "run", 0.06, "--batch-tokens", "300", "--export", "folder")) == 0
    second = progress(output)
    assert second["epoch"] > first["epoch"]
    assert second["elapsed"] > first["elapsed"] > 0
    assert rows(output / "generations.jsonl") == answers
    drafter = LM.load(output / "drafter")
    notes = json.loads((output / "drafter" / "distill.json").read_text())
    assert drafter.vocab == 37
    assert 0 <= float(notes["holdout_agreement"]) <= 1
    assert 0 <= float(notes["accepted_at_length_4"]) <= 4
    assert json.loads(notes["machine"])["cpu"]
    assert json.loads(notes["settings"])["width"] == 32
    assert str(folder) not in json.dumps(notes)
    assert not list(output.rglob("*.tmp"))


def test_progress_is_a_line_per_report(folder):
    assert cli(command(folder, "run", 0.02)) == 0
    lines = rows(folder / "run" / "progress.jsonl")
    assert 1 < len(lines) <= 102
    assert [line["epoch"] for line in lines] == sorted(line["epoch"] for line in lines)
    assert lines[-1]["minutes"] >= 0.02
    assert {"loss", "tokens_per_second", "holdout_agreement", "accepted_at_length_4"} <= set(lines[0])


@pytest.mark.slow
def test_on_policy_rounds_are_the_drafters_own_and_survive_a_kill(folder, monkeypatch):
    arguments = command(folder, "run", 0.03, "--on-policy-rounds", "2", "--on-policy-tokens", "5")
    output = folder / "run"

    def killed(*round):
        write_round(*round)
        if round[4] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_round", killed)
    assert cli(arguments) == 130
    first, second = rows(output / "on_policy-1.jsonl"), rows(output / "on_policy-2.jsonl")
    prompts = {tuple(row["prompt_ids"]) for row in rows(output / "generations.jsonl")}
    answers = [row["prompt_ids"] + row["new_ids"] for row in rows(output / "generations.jsonl")]
    assert len(first) == len(second) == pytest.approx(0.25 * 120, abs=3)
    assert first != second
    for row in first:
        start = row["prompt_ids"]
        assert any(answer[: len(start)] == start for answer in answers)
        assert any(tuple(start[: len(p)]) == p for p in prompts)
        assert 1 <= len(row["new_ids"]) <= 5
    stopped = progress(output)
    assert stopped["rounds"] == 1
    assert stopped["elapsed"] == pytest.approx(0.02 * 60, abs=0.2)
    monkeypatch.setattr(pipeline, "write_round", write_round)
    assert cli(arguments) == 0
    assert progress(output)["rounds"] == 2
    assert rows(output / "on_policy-1.jsonl") == first
    assert rows(output / "on_policy-2.jsonl") == second
    monkeypatch.setattr(pipeline, "write_round", None)  # rounds that are done are not done again
    raised = command(folder, "run", 0.05, "--on-policy-rounds", "2", "--on-policy-tokens", "5")
    assert cli(raised) == 0
    assert progress(output)["elapsed"] >= 0.05 * 60


def test_a_folder_of_another_run_is_refused(folder, capsys):
    assert cli(command(folder, "run", 0.005)) == 0
    before = progress(folder / "run")
    assert "another --top-k, --lr;" in refused(command(folder, "run", 1, "--lr", "0.02", "--top-k", "4"), capsys)
    assert "holds a run already" in refused(command(folder, "run", 1, "--no-resume"), capsys)
    assert progress(folder / "run") == before
    (folder / "file").touch()
    assert "not a folder" in refused(command(folder, "file", 1), capsys)


@pytest.mark.slow
def test_it_goes_on_from_a_drafter(folder, capsys):
    assert cli(command(folder, "first", 0.05)) == 0
    last = rows(folder / "first" / "progress.jsonl")[-1]["holdout_agreement"]
    for name, source in (("second", "first/checkpoint.safetensors"), ("third", "first/drafter")):
        arguments = command(folder, name, 0.001, "--init", str(folder / source), "--lr", "1e-9")
        assert cli(arguments) == 0
        assert rows(folder / name / "progress.jsonl")[-1]["holdout_agreement"] == pytest.approx(last, abs=0.05)
        assert progress(folder / name)["elapsed"] < 1  # a schedule of its own
    source = folder / "first" / "drafter"
    assert cli(command(folder, "larger", 0.001, "--init", str(source), "--layers", "3", "--lr", "1e-9")) == 0
    assert rows(folder / "larger" / "progress.jsonl")[-1]["holdout_agreement"] == pytest.approx(last, abs=0.05)
    assert "only grow" in refused(command(folder, "x", 1, "--init", source, "--width", "16"), capsys)
    assert "no --init model" in refused(command(folder, "x", 1, "--init", folder / "none"), capsys)
    assert "there is no checkpoint" in refused(command(folder, "x", 1, "--init", "none.safetensors"), capsys)
    weights = folder / "first" / "drafter" / "model.safetensors"
    assert "is not a checkpoint" in refused(command(folder, "x", 1, "--init", weights), capsys)
    assert not (folder / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "nothing to train on"),
        (["--text", "none.txt"], "there is no file"),
        (["--text", __file__, "--width", "30", "--heads", "4"], "multiple of --heads"),
        (["--text", __file__, "--minutes", "0"], "--minutes must be positive"),
        (["--text", __file__, "--hard", "1.5"], "at most 1"),
        (["--text", __file__, "--answer-tokens", "0"], "--answer-tokens must be at least 1"),
        (["--text", __file__, "--device", "nowhere"], "no device 'nowhere'"),
        (["--text", __file__, "--on-policy-rounds", "1"], "need answers"),
        (["--text", __file__, "--export", "gguf"], "a target in GGUF"),
        (["--prompts", "none.txt"], "does not exist"),
        (["--self-prompts", "5"], "no chat template"),
        (["--target", "/nowhere", "--text", __file__], "no target model"),
    ],
)
def test_bad_input_is_one_sentence(arguments, word, folder, capsys):
    out = folder / "out"
    target = [] if "--target" in arguments else ["--target", folder / "target"]
    assert word in refused([*target, "--output", out, *arguments], capsys)
    assert not out.exists()


def test_a_damaged_line_of_answers_is_named(folder, capsys):
    (folder / "answers.jsonl").write_text('{"prompt_ids": [3], "new_ids": [4, 5]}\n{"prompt_ids": 3}\n')
    arguments = ["--target", folder / "target", "--generations", folder / "answers.jsonl", "--output", folder / "out"]
    assert "answers.jsonl, line 2" in refused(arguments, capsys)
    assert not (folder / "out").exists()  # so that the same command with another file is not refused
    (folder / "answers.jsonl").write_text('{"prompt_ids": [3], "new_ids": []}\n')
    assert "nothing is left to train on" in refused(arguments, capsys)


def test_on_policy_rounds_need_room(folder, capsys):
    arguments = command(folder, "run", 1, "--on-policy-rounds", "1", "--on-policy-tokens", "60")
    assert "no prompt leaves room" in refused(arguments, capsys)
    assert not (folder / "run").exists()


def test_the_corrected_command_is_not_another_run(folder, monkeypatch, capsys):
    """Whether the answers are enough is known once they are written."""

    def too_few(sequences):
        raise ValueError("nothing is left to train on")

    monkeypatch.setattr(pipeline, "check_enough", too_few)
    assert "nothing is left" in refused(command(folder, "run", 0.001), capsys)
    assert [path.name for path in (folder / "run").iterdir()] == [".lock"]
    monkeypatch.undo()
    assert cli(command(folder, "run", 0.001, "--temperatures", "0.5")) == 0
    before = (folder / "run" / "generations.jsonl").read_bytes()
    monkeypatch.setattr(pipeline, "check_enough", too_few)
    refused(command(folder, "run", 0.001, "--temperatures", "0.5"), capsys)
    assert (folder / "run" / "generations.jsonl").read_bytes() == before and before


def test_answers_of_another_tokenizer_are_named(folder, capsys):
    (folder / "answers.jsonl").write_text('{"prompt_ids": [3], "new_ids": [4]}\n{"prompt_ids": [3], "new_ids": [37]}\n')
    arguments = ["--target", folder / "target", "--generations", folder / "answers.jsonl", "--output", folder / "out"]
    assert "answers.jsonl, line 2: token 37 is none of the 37 that the target knows" in refused(arguments, capsys)
    (folder / "answers.jsonl").write_text('{"prompt_ids": [-1], "new_ids": [4]}\n')
    assert "line 1: token -1 is none" in refused(arguments, capsys)
    assert not (folder / "out").exists()


def test_killed_answers_are_those_that_would_have_been(folder, monkeypatch):
    """A prompt once drew by its place among those that were left; two prompts may be the same."""
    with (folder / "prompts.txt").open("a") as file:
        file.write("\n" + (folder / "prompts.txt").read_text().splitlines()[7])
    whole = command(folder, "whole", 0.001, "--temperatures", "1", "--answer-batch", "16")
    assert cli(whole) == 0
    answers = rows(folder / "whole" / "generations.jsonl")
    assert len(answers) == 61
    assert cli(command(folder, "cut", 0.001, "--temperatures", "1", "--answer-batch", "16")) == 0
    path = folder / "cut" / "generations.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:23]))
    assert cli(command(folder, "cut", 0.001, "--temperatures", "1", "--answer-batch", "7")) == 0
    assert rows(path) == answers


def test_an_interrupted_epoch_goes_on_with_its_next_batch(folder, monkeypatch):
    steps = []

    def step(self, indices, real=Trainer._step):
        steps.append(sorted(indices))
        if len(steps) == 3:
            raise KeyboardInterrupt
        real(self, indices)

    monkeypatch.setattr(Trainer, "_step", step)
    assert cli(command(folder, "run", 0.02)) == 130
    assert progress(folder / "run")["batch"] == 2
    assert cli(command(folder, "run", 0.02)) == 0
    assert steps[3] == steps[2]


def test_compiling_takes_no_training_time(folder, monkeypatch):
    """Compiled on CPU it takes minutes, and once took all of them from a short run."""
    calls, elapsed = [], []
    monkeypatch.setattr(torch, "compile", lambda body, dynamic: lambda *a, **k: calls.append(1) or body(*a, **k))
    monkeypatch.setattr(Trainer, "_step", lambda self, indices: elapsed.append((len(calls), self.progress.elapsed)))
    assert cli(command(folder, "run", 1e-6, "--compile")) == 0
    assert elapsed[0] == (1, 0)  # it has run once, and the clock has not


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_the_script_sets_the_allocator_for_itself():
    """Without them half the time is lost on CPU; with them in place it does not start itself again."""
    code = (
        "import os; from train.distillation.allocator import keep_freed_memory; keep_freed_memory(); "
        "print(os.environ['MALLOC_MMAP_MAX_'], 'MALLOC_TOP_PAD_' in os.environ)"
    )
    bare = {k: v for k, v in os.environ.items() if k not in SETTINGS} | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for environment, expected in ((bare, "0 True"), (bare | {"MALLOC_MMAP_MAX_": "7"}, "7 False")):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda(folder):
    assert cli(command(folder, "run", 0.05, "--device", "cuda", "--on-policy-rounds", "1")) == 0
    assert progress(folder / "run")["rounds"] == 1
