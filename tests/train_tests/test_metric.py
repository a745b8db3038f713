"""Losses by guarded regret, and by a grader of the user's own: alone, and through the main job."""

import json
from types import SimpleNamespace

import pytest
from saved_models import word_tokenizer
from tiny_runs import FAST, save_toys, toy_pair, toy_prompts, typed
from toy_graders import variety

from decoding.models.settings import end_tokens
from policies import load
from train.common.cli import InputError
from train.data.prompts import Prompt
from train.fit_policy import main
from train.pipeline import told_apart
from train.quality.graders.grader import Grader
from train.quality.guarded_regret import guarded_regret, score
from train.quality.loops import token_forms
from train.quality.metric import QualityMetric


@pytest.fixture(scope="module")
def pair():
    return toy_pair()


def test_without_a_grader_it_is_guarded_regret(pair):
    prompt, (answer, reference) = toy_prompts(1)[0], ([5, 6, 7], [8, 9, 5])
    (one,) = score(pair[1], [prompt.ids], [answer])
    metric = QualityMetric(pair[1])
    guarded = guarded_regret(one, answer, reference, end_tokens(pair[1]), token_forms(pair[1].tokenizer))
    found = guarded, pytest.approx(one.regret.mean()), guarded, pytest.approx(-one.logprob.sum()), None
    assert metric(prompt, answer, reference) == found
    assert metric.loss_name == "guarded regret"


def test_a_grader_s_loss_is_what_it_takes_off_the_large_model_s_score(pair):
    prompt, metric = toy_prompts(1)[0], QualityMetric(pair[1], "toy_graders:variety")
    assert metric(prompt, [5, 5, 5, 5], [5, 6])[0] == 0.75
    assert metric(prompt, [5, 6, 2], [5, 5])[0] == -0.5  # the end is no word
    assert metric(prompt, [5, 5], [5, 5])[0] == 0
    assert metric.loss_name == "score lost (toy_graders:variety)"
    without = QualityMetric(pair[1])(prompt, [5, 6], [7, 8])
    assert metric(prompt, [5, 6], [7, 8]) == (0.0, without.regret, without.guarded, without.nll, 1.0)


def test_an_answer_is_graded_once(pair, monkeypatch):
    prompt, metric, asked = toy_prompts(1)[0], QualityMetric(pair[1], "toy_graders:variety"), []
    monkeypatch.setattr(metric, "grade", Grader("own", lambda *given: asked.append(given) or 0.5))
    for answer in ([5, 6], [5, 7], [5, 6]):
        metric(prompt, answer, [8, 9])
    assert [text for *_, text in asked] == ["w8 w9", "w5 w6", "w5 w7"]


def test_an_answer_is_read_once(pair, monkeypatch):
    prompt, metric, read = toy_prompts(1)[0], QualityMetric(pair[1]), []
    monkeypatch.setattr("train.quality.metric.score", lambda *given: read.append(given[2]) or score(*given))
    found = [metric(prompt, answer, reference) for answer, reference in (([5, 6], [5]), ([5, 6], [5]), ([5, 6], [7]))]
    assert found[0] == found[1] and read == [[[5, 6]], [[5, 6]]]


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return save_toys(tmp_path_factory.mktemp("toys"), 80)


def arguments(toys, output, **changes):
    options = toys | {"output": output} | FAST | {"max_new_tokens": 8, "grader": "toy_graders:variety"} | changes
    return typed(options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_the_main_job_measures_and_certifies_by_it(toys, tmp_path):
    assert main(arguments(toys, tmp_path, quality_budget=0.9, loss_cap=0.95, certify=30)) == 0
    folder, decode = tmp_path / "default", word_tokenizer().decode
    graded = lambda answer: variety("", None, decode(answer, skip_special_tokens=True))  # noqa: E731
    for name in ("tune", "holdout"):
        for row in lines(folder / f"{name}.jsonl"):
            own = graded(row["methods"]["large"]["answer"])
            for method in row["methods"].values():
                assert method["loss"] == pytest.approx(own - graded(method["answer"]))
    result = json.loads((folder / "result.json").read_text())
    assert result["loss_name"] == "score lost (toy_graders:variety)"
    assert "score lost (toy_graders:variety)" in (folder / "report.html").read_text()
    found = load(folder / "policy.json").provenance["certificate"]
    assert any("Loss is the score lost (toy_graders:variety) of greedy text" in text for text in found["assumptions"])
    losses = [row["loss"] for row in lines(folder / "certify.jsonl") if row["candidate"] == found["chosen"]]
    assert min(losses) < 0 < max(losses)


@pytest.mark.slow
def test_a_hybrid_is_searched_by_it(toys, tmp_path, monkeypatch):
    monkeypatch.setattr("train.methods.hybrid.LEAST_SPEEDUP", 0.0)  # whether toys are any faster depends on the machine
    assert main(arguments(toys, tmp_path, method="hybrid", quality_budget=0.95, trials=14, longest=3)) == 0
    result = json.loads((tmp_path / "default" / "result.json").read_text())
    assert result["loss_name"] == "score lost (toy_graders:variety)"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grader": "toy_graders:nothing"}, "cannot be loaded"),
        ({"grader": "toy_graders:none_for_long"}, "gives no score to the prompt"),
        ({"method": "speculative"}, "leave out --grader: --method speculative loses nothing"),
    ],
)
def test_what_cannot_be_graded_is_said_before_any_work(toys, tmp_path, changes, said, capfd):
    assert main(arguments(toys, tmp_path, **changes)) == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "default").exists()


def test_a_grader_that_does_not_tell_the_models_apart_is_no_evidence(pair):
    class Job:
        metric = QualityMetric(pair[1], "toy_graders:variety")

    small = SimpleNamespace(key="small", loss=0.02, loss_interval=[-0.1, 0.14])
    assert "does not tell the small model from the large one" in told_apart(Job, [small])
    assert told_apart(Job, [SimpleNamespace(**vars(small) | {"loss_interval": [0.01, 0.3]})]) == ""
    Job.metric = QualityMetric(pair[1])
    assert told_apart(Job, [small]) == ""


def test_a_prompt_that_no_grader_can_score_stops_the_run_before_it_begins(pair):
    long = Prompt("p0", "f", "g", "a b c d e f g", (5,), None)
    with pytest.raises(InputError, match="gives no score to the prompt p0; leave it out"):
        QualityMetric(pair[1], "toy_graders:none_for_long").check([long])
