"""Does it still hold: the log of a server, batch by batch against the artifact, and a new certificate."""

import json
import shutil

import numpy as np
import pytest
from drift_specimens import columns, steps
from tiny_runs import toy_pair, toy_prompts

from decoding import Backoff
from policies import Rule, load
from policies.features.step_recorder import StepRecorder
from policies.traffic_log import Served, TrafficLog, counted, read_log
from train.common.generations import write
from train.common.load_run import load_run
from train.data.prompts import load_prompts
from train.monitor import main
from train.monitoring.drift import traffic
from train.monitoring.reference import traffic_of_texts
from train.monitoring.watch import watch

LENGTH = 40


def served(seed: int, texts: int, **options) -> list[Served]:
    """Lines about synthetic texts, one each, and the reference of 60 others."""
    *seen, number = steps(seed, texts=texts, length=LENGTH, alike=0.5, **options)
    table = columns(*seen)
    cuts = {name: one["cuts"] for name, one in REFERENCE["columns"].items()}
    return [
        Served(float(i), 1, {name: counted(table[name][number == i], cuts[name]) for name in cuts})
        for i in range(texts)
    ]


def reference() -> dict:
    *seen, number = steps(0, texts=60, length=LENGTH, alike=0.5)
    return traffic(columns(*seen), number)


REFERENCE = reference()


def test_traffic_like_the_tuning_s_passes_and_other_traffic_is_caught_within_200_texts():
    """At the level of the command, 20 of 20 times; the other traffic begins after 100 texts of the first kind."""
    caught = []
    for seed in range(1, 21):
        assert watch(REFERENCE, served(seed, 300), 50, 0.01).moved is None
        moved = watch(REFERENCE, served(seed, 100) + served(100 + seed, 200, shift=1.5), 50, 0.01).moved
        caught.append(moved.last - 100)
    assert max(caught) <= 200 and min(caught) > 0


def test_a_log_that_grows_has_the_same_batches():
    """So that a command that runs every hour spends its level once."""
    lines = served(1, 130)
    whole, before = (watch(REFERENCE, some, 25, 0.1) for some in (lines, lines[:77]))
    assert [batch.last for batch in whole.batches] == [25, 50, 75, 100, 125] and whole.waiting == 5
    assert before.waiting == 2 and whole.batches[:3] == before.batches
    assert watch(REFERENCE, lines[:3], 25, 0.1).sentence.startswith("3 texts are too few")


def test_the_log_counts_what_the_policy_saw(tmp_path):
    small, large = toy_pair()
    prompts, policy = toy_prompts(12), Rule("entropy", 2.8)
    texts = write(Backoff([small, large], policy), prompts, 10)
    policy.provenance = {"traffic": traffic_of_texts(small, large, policy, prompts, texts, [text for text, _ in texts])}
    log, recorder = TrafficLog(policy, tmp_path / "served.jsonl"), StepRecorder(policy)
    for some in (prompts[:1], prompts[1:]):
        assert write(Backoff([small, large], log.policy), some, 10) == write(
            Backoff([small, large], recorder), some, 10
        )
        log.write(len(some))
    log.write()  # nothing was served
    seen, lines = recorder.take(), list(read_log(log.path, policy))
    assert [line.texts for line in lines] == [1, 11]
    for name, one in policy.provenance["traffic"]["columns"].items():
        total = lines[0].columns[name] + lines[1].columns[name]
        expected = counted(seen[name], one["cuts"])
        assert (total.steps, total.below) == (expected.steps, expected.below)
        assert total.sum == pytest.approx(expected.sum)
        assert total.steps == one["steps"]
        np.testing.assert_allclose(np.array(total.below) / total.steps, one["below"], atol=0.03)
    assert not [word for word in log.path.read_text().split('"') if word in ("prompt", "token", "tokens", "text")]


@pytest.fixture(scope="module")
def run_and_log(tuned_run, tmp_path_factory):
    """A run, and what a server of its policy wrote about the prompts of the run, and about prompts of one word."""
    folder = tmp_path_factory.mktemp("served")
    found = load_run(tuned_run)
    loops = folder / "loop.jsonl"
    loops.write_text("".join(json.dumps({"id": f"p{i}", "prompt": "w5 " * 30}) + "\n" for i in range(40)))
    logs = {}
    for name, source in (("own", tuned_run.parent / "prompts.jsonl"), ("loop", loops)):
        log = logs[name] = TrafficLog(load(tuned_run / "policy.json"), folder / f"{name}.jsonl")
        decoder = Backoff([found.small, found.large], log.policy)
        for prompt in load_prompts(source, found.large.tokenizer, 40):
            write(decoder, [prompt], found.new)
            log.write()
    return tuned_run, logs["own"].path, logs["loop"].path


def test_the_command_reads_a_log(run_and_log, tmp_path, capfd):
    run, own, loop = run_and_log
    assert main([str(run), "--log", str(own), "--every", "20"]) == 0
    said = capfd.readouterr().out
    assert said.count("\n") == 1 and "texts up to 40 of 40: escalated 0." in said and "no sign" in said
    assert own.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert main([str(run), "--log", str(loop), "--every", "20"]) == 1
    assert "Traffic has moved" in capfd.readouterr().out
    growing = tmp_path / "growing.jsonl"
    growing.write_bytes(own.read_bytes()[:-30])  # a line is being written
    assert main([str(run), "--log", str(growing), "--every", "20"]) == 0
    assert "up to 20 of 20" in capfd.readouterr().out


def test_lines_about_another_policy_are_left_out(run_and_log, tmp_path, capfd):
    run, own, _ = run_and_log
    other = shutil.copytree(run, tmp_path / "run")
    policy = load(other / "policy.json")
    policy.with_threshold(float(policy.threshold) / 2).save(other / "policy.json", policy.models, policy.provenance)
    assert main([str(other), "--log", str(own)]) == 2
    assert "holds no line about" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: line.replace('"texts": 1', '"texts": 0'), "line 2: its counts contradict each other"),
        (lambda line: line.replace('"steps"', '"stops"'), "line 2: it is no line about served texts"),
        (lambda line: line[:50] + "\n", "line 2: it is not valid JSON"),
    ],
    ids=["none", "renamed", "cut"],
)
def test_a_line_that_is_none_is_named(run_and_log, tmp_path, change, said, capfd):
    run, own, _ = run_and_log
    lines = own.read_text().splitlines(keepends=True)
    (tmp_path / "served.jsonl").write_text("".join([lines[0], change(lines[1]), *lines[2:]]))
    assert main([str(run), "--log", str(tmp_path / "served.jsonl")]) == 2
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give --log, what a server wrote, or --prompts"),
        (("--log", "a", "--prompts", "b"), "give --log, what a server wrote, or --prompts"),
        (("--log", "a", "--certify", "0.1"), "--certify needs --prompts"),
        (("--log", "none.jsonl"), "none.jsonl: it cannot be read"),
        (("--log", "a", "--every", "0"), "--every must be at least 1"),
    ],
)
def test_wrong_input_is_one_sentence(tuned_run, options, said, capfd):
    assert main([str(tuned_run), *options]) == 2
    err = capfd.readouterr().err
    assert said in err and err.count("\n") == 1


def test_fresh_prompts_certify_again(tuned_run, tmp_path, capfd):
    run, prompts = shutil.copytree(tuned_run, tmp_path / "run"), tmp_path / "new.jsonl"
    words = np.random.default_rng(3).integers(5, 37, (30, 6))
    rows = [{"id": f"new{i}", "prompt": " ".join(f"w{k}" for k in row)} for i, row in enumerate(words)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = main([str(run), "--prompts", str(prompts), "--certify", "0.2", "--level", "0.000001"])
    said = capfd.readouterr().out
    (folder,) = run.glob("recertified-*")
    found = json.loads((folder / "certificate.json").read_text())
    assert found["n"] == 30 and found["claim"] in said
    assert code == int(found["chosen"] is None or "has moved" in said)
    before = (folder / "certify.jsonl").read_bytes()
    assert main([str(run), "--prompts", str(prompts), "--certify", "0.2", "--level", "0.000001"]) == code
    assert (folder / "certify.jsonl").read_bytes() == before  # measured once
    used = str(tuned_run.parent / "prompts.jsonl")
    assert main([str(run), "--prompts", used, "--limit", "10", "--certify", "0.2"]) == 2
    assert "prompts are new to the run" in capfd.readouterr().err
