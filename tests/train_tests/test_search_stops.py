"""The search for stops: its judgement is a replay, its baselines are published settings, its labels rejections."""

import optuna
import pytest
import torch
from tiny_models import nudged
from tiny_runs import toy_pair, toy_prompts

from decoding import Speculative, generate
from decoding.cost.costs import ModelCosts
from policies import Logistic, Survival, token_classes
from train.search.draft_stop import STOP_FEATURES, StopSearch, rejections, within
from train.search.recipes import RECIPES
from train.search.study import open_study, run_study
from train.traces.collect_drafts import collect_drafts
from train.traces.draft_traces import read_drafts

NEW, LONGEST = 14, 6
COST = ModelCosts(({1: 1.0, 4: 1.2, 16: 3.0}, {1: 10.0, 4: 11.0, 16: 14.0}))
prompts = toy_prompts(8, seed=10)


@pytest.fixture(scope="module")
def pair():
    small, large = toy_pair()
    small = nudged(large, 0.06)
    small.tokenizer = large.tokenizer
    return small, large


@pytest.fixture(scope="module")
def traces(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafts") / "traces"
    collect_drafts(*pair, prompts, LONGEST, folder, NEW)
    return read_drafts(folder)


def searcher(pair, traces, kind="logistic"):
    fit = traces.of({p.id for p in prompts[:5]})
    return StopSearch(kind, fit, traces, COST, token_classes(pair[1].tokenizer))


@pytest.mark.parametrize("kind", ["rule", "logistic", "mlp"])
def test_baselines_are_valid_and_differ(pair, traces, kind):
    search = searcher(pair, traces, kind)
    baselines = search.baselines()
    for params in baselines:
        assert search.suggest(optuna.trial.FixedTrial(params)) == params
    assert all(baselines.count(params) == 1 for params in baselines)
    assert {params["stop"] for params in baselines} == {"constant", "rule", "survival", kind}


@pytest.mark.parametrize("name", ["svip", "adaedl", "specdec++"])
def test_a_published_stop_is_replayed_at_its_own_threshold(pair, traces, name):
    search = searcher(pair, traces)
    options = RECIPES[name].options()
    (params,) = [
        p
        for p in search.baselines()
        if p["stop"] == ("survival" if name == "specdec++" else "rule")
        and p.get("feature", "entropy") == "entropy"
        and p["keep"] == options.get("keep_stop_token", False)
    ]
    length = min(options["length"], LONGEST)
    run = search.replay(options["stop"], length, options.get("keep_stop_token", False))
    assert search.speedup(params) == pytest.approx(search.alone / run.seconds(COST).sum())


def test_a_study_minimises_seconds_per_token(pair, traces, tmp_path):
    search = searcher(pair, traces)
    study = open_study(tmp_path / "study.journal", 0, search.baselines())
    trials = len(search.baselines()) + 12
    run_study(study, search, trials, [])
    assert len(study.trials) == trials
    for trial in study.trials:
        run = search.replay(search.stop(trial.params), trial.params["length"], trial.params.get("keep", False))
        assert trial.value == pytest.approx(run.seconds(COST).sum() / traces.tokens.sum())
        assert trial.user_attrs["speedup"] == pytest.approx(search.alone / run.seconds(COST).sum())
        assert trial.constraints == {}
    assert study.best_value <= min(t.value for t in study.trials if t.params["stop"] == "constant")


def test_the_stop_that_is_handed_out_is_the_one_that_was_judged(pair, traces):
    """Live, with the same calls: the threshold is that of the trial, whatever was replayed in between."""
    search = searcher(pair, traces)
    params = {"stop": "logistic", "length": 5, "features": "all", "C": 0.1, "keep": True, "quantile": 0.5}
    search.speedup(params | {"quantile": 0.9})
    stop = search.stop(params)
    assert isinstance(stop, Logistic) and stop.names == STOP_FEATURES["all"]
    replayed = search.replay(stop, 5, True)
    for i, prompt in enumerate(prompts):
        drafter = Speculative(pair, 5, stop, keep_stop_token=True)
        live = generate(drafter, torch.tensor([prompt.ids]), max_new_tokens=NEW)
        assert live.counts["calls"] == [replayed.draft_calls[i], replayed.target_calls[i]]


@pytest.mark.parametrize(
    "kind",
    [{"stop": "rule", "feature": "entropy", "direction": ">="}, {"stop": "logistic", "features": "all", "C": 0.1}],
)
def test_stops_that_differ_only_in_their_quantile_keep_their_thresholds(pair, traces, kind):
    """Finalists once shared one cached policy, so that the first was measured at the threshold of the last."""
    search = searcher(pair, traces)
    params = [kind | {"length": 4, "keep": keep, "quantile": q} for keep, q in ((True, 0.3), (False, 0.7), (True, 0.3))]
    stops = [search.stop(one) for one in params]
    assert len({id(stop.threshold) for stop in stops}) == 3
    assert [float(stop.threshold) for stop in stops] == pytest.approx([search.threshold(one) for one in params])
    assert stops[0].threshold < stops[1].threshold
    before = [stop.threshold.clone() for stop in stops]
    search.speedup(params[0] | {"quantile": 0.9})
    assert [stop.threshold for stop in stops] == before


def test_a_quantile_is_the_share_of_steps_that_draft_on(pair, traces):
    search = searcher(pair, traces)
    params = {"stop": "rule", "length": LONGEST, "feature": "top1", "direction": "<=", "keep": False}
    for quantile in (0.0, 0.3, 0.8, 1.0):
        stop = search.stop(params | {"quantile": quantile})
        risk = search.risk(params)[1][search.steps]
        assert float((risk < stop.threshold).float().mean()) == pytest.approx(quantile, abs=0.02)
    assert search.speedup(params | {"quantile": 1.0}) == search.speedup({"stop": "constant", "length": LONGEST})


def test_rejections_are_those_of_a_live_draft(pair, traces):
    """A draft of one token from every position of every text: it is rejected where the label says so."""
    x, y, _, groups = rejections(traces, ("top1", "since_large"), None)
    first = x[:, 1] == 0
    assert first.sum() == within(traces)[:, 0].sum()
    assert set(groups) == {p.group for p in prompts}
    small, _ = pair
    labels = iter(y[first])
    for prompt in prompts:
        answer = generate(Speculative(pair, 1), torch.tensor([prompt.ids]), max_new_tokens=NEW)
        ids = answer.sequences[0, : len(prompt.ids) + int(answer.lengths[0])]
        logits = small.model(ids[None]).logits[0, len(prompt.ids) - 1 : -1]
        wrong = logits.argmax(-1) != ids[len(prompt.ids) :]
        for position in range(min(len(wrong), NEW - 1)):
            assert next(labels) == wrong[position]
    assert next(labels, None) is None


def test_each_draft_is_learned_from_up_to_its_first_rejection(pair, traces):
    x, y, _, _ = rejections(traces, ("since_large",), None)
    place = x[:, 0]
    ends = [i for i in range(len(place)) if i + 1 == len(place) or place[i + 1] == 0]
    assert {i for i in range(len(y)) if y[i]} <= set(ends)
    assert 0 < y.mean() < 1


def test_a_survival_keeps_its_least_length(pair, traces):
    stop = searcher(pair, traces).stop({"stop": "survival", "length": 4, "keep": True, "quantile": 1.0})
    assert isinstance(stop, Survival)
    assert stop.least == 2 and 0 <= stop.threshold < 1
