"""The main job at a temperature: its loss is signed, its texts are drawn, and what it leaves says so."""

import json
import math

import numpy as np
import pytest
import torch
from tiny_runs import FAST, save_toys, toy_pair, toy_prompts, typed

from decoding import Autoregressive, Backoff, Sampling, Speculative
from decoding.cli.sampling import SamplingOptions, tuned_sampling
from decoding.models.defaults import default_pair
from experiments.handoff import main as handoff
from policies import Random, Rule, load
from policies.export.bundle import write_bundle
from policies.export.source import ExportError, open_source
from policies.export.targets import TARGETS
from train.bandit import main as bandit
from train.common.generations import write
from train.data.prompts import load_prompts
from train.fit_policy import main
from train.quality.metric import QualityMetric
from train.quality.sampled_baseline import SampledBaseline
from train.reinforce import main as reinforce
from train.traces.collect_handoff import _regret

NEW, DRAWN = 12, Sampling(0.7)


@pytest.fixture(scope="module")
def pair():
    return toy_pair()


def losses(metric, decoder, prompts, sampling, texts):
    """[texts, prompts] losses of the texts that a decoder draws."""
    found = [write(decoder, prompts, metric.budget, sampling, 1000 * i) for i in range(texts)]
    return np.array([[metric(p, text, [])[0] for p, (text, _) in zip(prompts, some, strict=True)] for some in found])


def order(small, large, prompts, new, texts):
    metric = QualityMetric(large, budget=new, sampled=SampledBaseline(large, DRAWN, texts, new))
    decoders = {
        "large": Autoregressive(large),
        "exact": Speculative([small, large], length=3),
        "random": Backoff([small, large], Random(0.5)),
        "small": Backoff([small, large], Rule.never(), verify_eos=False),
    }
    return {name: losses(metric, decoder, prompts, DRAWN, texts) for name, decoder in decoders.items()}


def check_order(found):
    mean = {name: one.mean() for name, one in found.items()}
    for exact in ("large", "exact"):
        by_prompt = found[exact].mean(0)
        error = by_prompt.std() / math.sqrt(len(by_prompt))
        assert abs(mean[exact]) < 4 * error, (exact, mean, error)
    assert max(mean["large"], mean["exact"]) < mean["random"] < mean["small"], mean


def test_the_order_of_losses_at_a_temperature(pair):
    check_order(order(*pair, toy_prompts(24), NEW, 4))


@pytest.mark.real
@pytest.mark.slow
def test_the_order_of_losses_at_a_temperature_on_the_real_pair():
    try:
        small, large = default_pair()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    check_order(order(small, large, load_prompts(None, large.tokenizer, limit=8), 48, 3))


def test_scores_of_a_grader_are_held_to_the_mean_of_the_large_model_s(pair):
    baseline, prompt = SampledBaseline(pair[1], DRAWN, 3, NEW), toy_prompts(1)[0]
    graded = QualityMetric(pair[1], "toy_graders:variety", NEW, baseline)
    judged = [graded(prompt, text, []) for text in baseline.texts(prompt)]
    assert np.mean([one.loss for one in judged]) == pytest.approx(0, abs=1e-9)
    assert graded.loss_name == "score lost (toy_graders:variety) over the large model's"


def test_one_text_of_the_large_model_is_no_baseline(pair):
    with pytest.raises(ValueError, match="takes 2 texts of the large model, not 1"):
        SampledBaseline(pair[1], DRAWN, 1, NEW)


def test_the_regret_of_a_draw_is_its_mean_over_the_large_model_s():
    torch.manual_seed(0)
    q, p = torch.randn(5, 7), torch.randn(5, 7)
    greedy = _regret(q, p, Sampling())
    logp = p.log_softmax(-1)
    assert torch.allclose(greedy, logp.amax(-1) - logp.gather(1, q.argmax(-1, keepdim=True)).squeeze(1))
    cold = _regret(q, p, Sampling(1e-3))
    assert torch.allclose(cold, greedy.clamp(max=5.0), atol=1e-4)
    assert _regret(p, p, Sampling(0.7)).abs().max() == 0


def test_a_temperature_replaces_the_tuned_one_and_filters_are_added_to_it():
    tuned = tuned_sampling({"sampling": {"temperature": 0.7, "top_p": 0.9}})
    assert SamplingOptions().sampling(tuned=tuned) == Sampling(0.7, top_p=0.9)
    assert SamplingOptions(top_k=4).sampling(tuned=tuned) == Sampling(0.7, top_p=0.9, top_k=4)
    assert SamplingOptions(0.0).sampling(tuned=tuned) == Sampling()
    assert tuned_sampling({}) == SamplingOptions().sampling() == Sampling()
    with pytest.raises(ValueError, match="names no sampling but"):
        tuned_sampling({"sampling": {"heat": 3}})


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        ({}, "It was tuned for greedy texts, one at a time: with"),
        (
            {"sampling": {"temperature": 0.7, "top_k": None, "top_p": 0.9}, "batch_size": 8},
            "It was tuned for texts drawn with temperature 0.7, top_p 0.9, 8 at a time: with",
        ),
    ],
)
def test_an_export_says_for_which_texts_the_policy_was_tuned(tmp_path, provenance, said):
    Rule("entropy", 1.0).save(tmp_path / "policy.json", provenance=provenance)
    write_bundle(open_source(tmp_path / "policy.json", None, None), TARGETS["transformers"], tmp_path / "out")
    assert said in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("provenance", [{"sampling": "hot"}, {"sampling": {"top_p": []}}, {"batch_size": "many"}])
def test_an_export_of_an_edited_provenance_is_one_sentence(tmp_path, provenance):
    Rule("entropy", 1.0).save(tmp_path / "policy.json", provenance=provenance)
    source = open_source(tmp_path / "policy.json", None, None)
    with pytest.raises(ExportError, match="has a sampling or a batch size that is none; tune it again"):
        write_bundle(source, TARGETS["transformers"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return save_toys(tmp_path_factory.mktemp("toys"), 80)


def arguments(toys, output, **changes):
    return typed(toys | {"output": output} | FAST | {"max_new_tokens": 8} | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 3}, "leave out --seeds, or add --temperature"),
        ({"temperature": 0.7, "seeds": 1}, "--seeds must be at least 2 at a temperature, not 1"),
        ({"temperature": -1}, "temperature must be 0"),
        ({"temperature": 0.7, "top_p": 2}, "top_p must be in (0, 1]"),
    ],
)
def test_what_means_nothing_is_said_before_any_work(toys, tmp_path, changes, said, capfd):
    assert main(arguments(toys, tmp_path, **changes)) == 2
    err = capfd.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "default").exists()


@pytest.mark.slow
def test_the_main_job_tunes_and_certifies_at_a_temperature(toys, tmp_path, capfd):
    how = {"temperature": 0.8, "top_k": 20, "quality_budget": 0.9, "loss_cap": 0.95, "certify": 30}
    assert main(arguments(toys, tmp_path, **how)) == 0
    folder = tmp_path / "default"
    result = json.loads((folder / "result.json").read_text())
    assert (result["sampling"]["temperature"], result["sampling"]["top_k"]) == (0.8, 20)
    assert load(folder / "policy.json").provenance["sampling"] == result["sampling"]
    assert any("of sampled (temperature 0.8, top_k 20; mean of 2 texts) text" in a
               for a in result["certificate"]["assumptions"])  # fmt: skip
    assert "temperature 0.8, top_k 20" in (folder / "report.html").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    of_large = [row for row in rows if row["method"] == "large"]
    assert {row["text"] for row in of_large} == {0, 1}
    assert min(row["loss"] for row in of_large) < 0
    first = {row["id"]: row["answer"] for row in of_large if row["text"] == 0}
    assert any(row["answer"] != first[row["id"]] for row in of_large if row["text"] == 1)
    capfd.readouterr()
    assert main(arguments(toys, tmp_path, **how | {"temperature": 0.9})) == 2
    assert "holds a run with another --temperature" in capfd.readouterr().err
    assert reinforce([str(folder), "--episodes=8", "--prompts=2", "--group=2", "--max-new-tokens=6"]) == 0
    assert load(folder / "reinforced.json").provenance["sampling"] == result["sampling"]
    assert handoff([str(folder), "--limit=6"]) == 0
    capfd.readouterr()
    assert bandit([str(folder)]) == 2
    assert "was tuned at a temperature, and this is of greedy texts" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["speculative", "hybrid"])
def test_drafts_are_tuned_at_a_temperature(toys, tmp_path, method, capfd):
    goal = {"quality_budget": 0.95} if method == "hybrid" else {}
    how = {"method": method, "temperature": 0.8, "seeds": 2, "longest": 4} | goal
    assert main(arguments(toys, tmp_path, **how)) == 0
    folder = tmp_path / "default"
    result = json.loads((folder / "result.json").read_text())
    assert load(folder / "policy.json").provenance["sampling"]["temperature"] == 0.8
    losses = {row["key"]: row["loss"] for row in result["methods"]}
    assert abs(losses["speculative"]) < losses["small"]
    assert json.loads((folder / "traces" / "meta.json").read_text())["sampling"]["temperature"] == 0.8
    # The same traces serve a run at this temperature, and no other.
    capfd.readouterr()
    again = how | {"traces": folder / "traces", "name": "again"}
    assert main(arguments(toys, tmp_path, **again | {"temperature": 0.9})) == 2
    assert "its traces are of another run (sampling differ)" in capfd.readouterr().err
    assert main(arguments(toys, tmp_path, **again)) == 0
