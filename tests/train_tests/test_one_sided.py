"""Pairs that always or never agree: every method says what it means, and searches rules where nothing can be fitted."""

import optuna
import pytest
import torch
from tiny_models import nudged
from tiny_runs import FAST, save_toys, toy_pair, toy_prompts, typed

from decoding.cost.costs import ModelCosts
from policies import load
from train.common.job import Job
from train.common.settings import FitPolicy
from train.fit_policy import main
from train.methods import METHODS, tuning_method
from train.quality.metric import QualityMetric
from train.search.goal import Goal
from train.search.policy_space import fittable, one_sided

COST = ModelCosts(({1: 1.0, 4: 1.05, 16: 1.2}, {1: 10.0, 4: 10.5, 16: 13.0}))
MEANS = {
    "always": "the models agree on all {n} positions: use the small one alone, or exact drafts of 4",
    "never": "the models disagree on all {n} positions: use the large one alone",
}
prompts = toy_prompts(8, seed=10)
splits = {"fit": prompts[:4], "tune": prompts[4:6], "holdout": prompts[6:]}


@pytest.fixture(scope="module")
def pairs():
    _, large = toy_pair()
    opposite = nudged(large, 0.0)
    with torch.no_grad():
        opposite.model.lm_head.weight.neg_()  # the large model's likeliest token is its least likely one
    opposite.tokenizer = large.tokenizer
    return {"always": (large, large), "never": (opposite, large)}


def job(pair, folder, method, kind):
    settings = FitPolicy(method=method, policy=kind, max_new_tokens=8, longest=4, rounds=1)
    goal = None if method == "speculative" else Goal(speedup=1.3)
    return Job(settings, goal, folder, *pair, splits, COST, QualityMetric(pair[1]))


@pytest.mark.sampled
@pytest.mark.parametrize("extreme", MEANS)
@pytest.mark.parametrize("kind", ["rule", "logistic", "mlp"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on(pairs, tmp_path, capsys, method, kind, extreme):
    made = tuning_method(method)(job(pairs[extreme], tmp_path, method, kind))
    said = " ".join(capsys.readouterr().out.split())
    positions = len(made.traces["small_token"]) if method == "backoff" else None
    if positions is not None:
        assert MEANS[extreme].format(n=f"{positions:,}") in said
    else:
        assert all(part in said for part in MEANS[extreme].split("{n}"))
    tells = method == "backoff" and extreme == "never"  # a regret says how wrong, not only whether
    assert (f"no {kind} policy can be fitted" in said) == (kind != "rule" and not tells)
    study = optuna.create_study()
    for params in made.search.baselines()[-3:]:
        study.enqueue_trial(params)
    study.optimize(made.search, n_trials=3)
    stops = getattr(made.search, "stops", made.search)
    assert stops.kind == (kind if tells else "rule")


def test_pairs_in_between_are_fitted_without_a_word():
    labels, groups, agreed = torch.tensor([0.0, 1.0]).numpy(), torch.tensor([1, 2]).numpy(), torch.tensor([True, False])
    for kind in ("rule", "logistic", "mlp"):
        assert fittable(kind, labels, groups) == kind
        assert one_sided(kind, labels, groups, agreed.numpy(), 8) is None


def test_an_mlp_needs_a_second_group():
    labels, groups, agreed = torch.tensor([0.0, 1.0]).numpy(), torch.tensor([1, 1]).numpy(), torch.tensor([True, False])
    assert fittable("mlp", labels, groups) == "rule"
    assert fittable("logistic", labels, groups) == "logistic"
    assert "only one" in one_sided("mlp", labels, groups, agreed.numpy(), 8)


@pytest.mark.parametrize("method", ["speculative", "hybrid"])
def test_a_draft_needs_room_for_two_tokens(tmp_path, capsys, method):
    arguments = ["--method", method, "--max-new-tokens", "1", "--small", "nowhere", "--output", str(tmp_path)]
    assert main(arguments) == 2
    assert capsys.readouterr().err == "fit_policy: --max-new-tokens must be at least 2, not 1\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "kind", "tokens"), [(4, "rule", 1), pytest.param(3, "mlp", 12, marks=pytest.mark.slow)]
)
def test_the_smallest_jobs_come_to_their_end(limit, kind, tokens, tmp_path, capsys):
    """A prompt or two in each split, answers of one token: they were tracebacks after all traces had been collected."""
    small = {"limit": limit, "policy": kind, "max_new_tokens": tokens, "trials": 2, "output": tmp_path / "runs"}
    assert main(typed(save_toys(tmp_path, 8) | FAST | small)) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert load(tmp_path / "runs" / "default" / "policy.json").kind in (kind, "rule")
