"""The search: goals and their solutions, thresholds as quantiles, and studies that survive being stopped."""

import itertools
import platform
import subprocess

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from trace_specimens import COST, made_up

from policies import Logistic, Rule
from train.search.backoff import FEATURE_SETS, GRID, Search
from train.search.goal import Goal, pareto, solve
from train.search.orphans import WORKER
from train.search.policy_space import CONFIDENCE, HISTORY
from train.search.sampler import RepeatableSampler
from train.search.study import finalists, open_study, run_study
from train.search.thresholds import risks

point = st.tuples(st.floats(0.1, 10), st.floats(0, 1))
curves = st.lists(point, max_size=20).map(lambda points: np.array(points).reshape(-1, 2))
factors = st.floats(0.5, 2)
goals = st.one_of(
    st.floats(1.01, 5).map(lambda x: Goal(speedup=x)),
    st.floats(0.01, 0.9).map(lambda x: Goal(budget=x)),
)


def searcher(kind="rule", goal=Goal(speedup=1.5), label="regret", seed=0):
    return Search(kind, label, made_up(seed=1), made_up(seed=2), COST, goal, classes=None, seed=seed)


def in_memory(search):
    """What ``open_study`` makes, without its file."""
    study = optuna.create_study(sampler=RepeatableSampler(0))
    for params in search.baselines():
        study.enqueue_trial(params)
    return study


def done(study):
    return {t.number: (t.value, t.params) for t in study.get_trials(states=[TrialState.COMPLETE])}


@given(st.floats(0.1, 5), st.floats(0, 1))
def test_goals(speed, loss):
    fast, good = Goal(speedup=1.5), Goal(budget=0.1)
    assert (fast.violation(speed, loss) <= 0) == (speed >= 1.5)
    assert (good.violation(speed, loss) <= 0) == (loss <= 0.1)
    assert fast.value(speed, loss) == loss
    assert good.value(speed, loss) == -speed


@given(st.lists(point, min_size=1))
def test_nothing_beats_what_is_on_the_front(points):
    found = [(p["speedup"], p["loss"]) for p in pareto({"speedup": x, "loss": y} for x, y in points)]
    beats = lambda a, b: a != b and a[0] >= b[0] and a[1] <= b[1]  # noqa: E731
    assert set(found) == {p for p in points if not any(beats(q, p) for q in points)}
    assert found == sorted(found, reverse=True)


@given(curves, goals, factors, factors)
def test_solve_finds_the_best_point_that_meets_the_goal(curve, goal, faster, worse):
    i = solve(curve, goal, faster, worse)
    corrected = [(speed * faster, loss * worse) for speed, loss in curve]
    met = [p for p in corrected if (p[0] >= goal.speedup if goal.budget is None else p[1] <= goal.budget)]
    if i is None:
        assert not met
    elif goal.budget is None:
        assert corrected[i][0] >= goal.speedup
        assert corrected[i][1] == min(loss for _, loss in met)
    else:
        assert corrected[i][1] <= goal.budget
        assert corrected[i][0] == max(speed for speed, _ in met)


@given(curves, goals)
def test_a_harder_goal_is_no_better(curve, goal):
    harder = Goal(speedup=goal.speedup * 1.2) if goal.budget is None else Goal(budget=goal.budget / 1.2)
    i, j = solve(curve, goal), solve(curve, harder)
    if j is not None:
        assert i is not None
        assert goal.value(*curve[i]) <= goal.value(*curve[j])


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1), st.sampled_from(["entropy", "top1", "position", "mean_entropy"]), st.sampled_from([">=", "<="]))
def test_a_threshold_at_a_quantile_keeps_that_share(quantile, feature, direction):
    search = searcher()
    policy = Rule(feature, 0.0, direction)
    risk = risks(policy, search.calls)
    known = np.isfinite(risk)
    kept = (risk < search.threshold(policy, quantile))[known].mean()
    tie = max(np.mean(risk[known] == value) for value in np.unique(risk[known]))
    assert quantile - tie - 0.005 <= kept <= quantile + 0.005
    assert (risk[~known] == np.inf).all()


def test_the_ends_of_the_quantiles_are_always_and_never():
    search, policy = searcher(), Rule("entropy", 0.0)
    curve = search.curve(policy)
    assert len(curve) == len(GRID) == len(search.random_curve())
    assert curve[0, 1] == 0
    assert curve[0, 0] < 1
    assert curve[-1, 0] == max(curve[:, 0])
    assert (np.diff(curve[:, 1]) >= 0).all()
    assert (np.diff(curve[:, 0]) >= -1e-9).all()
    assert search.random_curve()[[0, -1]] == pytest.approx(curve[[0, -1]])
    # It beats chance where it has a choice, since entropy tells regret here.
    assert (curve[20:-20, 1] < search.random_curve()[20:-20, 1]).all()


def test_the_threshold_decides_live_as_it_did_in_replay():
    search = searcher("logistic")
    policy = search.policy({"features": "all", "C": 0.1, "quantile": 0.4})
    policy = policy.with_threshold(search.threshold(policy, 0.4))
    risk = policy.score_table(search.tune.table(policy.names))
    live = ~(risk < policy.threshold)
    assert abs(int(live.sum()) - int((risks(policy, search.tune) >= search.threshold(policy, 0.4)).sum())) <= 1


def test_the_thresholds_of_a_policy_are_each_faster_and_predicted_as_they_decide():
    made = searcher()
    policy = made.policy(next(iter(made.baselines())))
    found = made.thresholds(policy)
    assert len(found) > 5
    assert [point["speedup"] for point in found] == sorted({point["speedup"] for point in found})
    for point in found:
        tune, calls = (risks(policy, some) >= point["threshold"] for some in (made.tune, made.calls))
        assert made._predict(tune, calls) == pytest.approx((point["speedup"], point["loss"]))


def test_the_front_holds_what_nothing_beats():
    search = searcher()
    front = search.front([*search.baselines(), {"feature": "varentropy", "direction": ">=", "quantile": 0.1}])
    speeds, losses = ([point[key] for point in front] for key in ("speedup", "loss"))
    assert speeds == sorted(speeds, reverse=True) and losses == sorted(set(losses), reverse=True)
    for point in front[::5]:
        params = point["params"]
        assert (point["speedup"], point["loss"]) == tuple(search.point(search.policy(params), params["quantile"]))
    for params in search.baselines():
        speed, loss = search.point(search.policy(params), round(params["quantile"] * 200) / 200)
        assert any(p["speedup"] >= speed and p["loss"] <= loss for p in front)


@pytest.mark.parametrize("kind", ["rule", "logistic", "mlp"])
def test_a_study_tries_its_baselines_first_and_records_every_constraint(kind, monkeypatch):
    search = searcher(kind)
    trials = len(search.baselines()) + 3
    if kind == "mlp":
        monkeypatch.setattr(search, "_fit", lambda params: Rule("entropy", 0.0))
    study = in_memory(search)
    seen = []
    run_study(study, search, trials, [lambda study, trial: seen.append(trial.number)])
    assert seen == list(range(trials))
    for trial, params in zip(study.trials, search.baselines(), strict=False):
        assert trial.params == params
    for trial in study.trials:
        speedup, loss = trial.user_attrs["speedup"], trial.user_attrs["loss"]
        assert trial.constraints["goal"] == pytest.approx(1.5 - speedup)
        assert trial.value == pytest.approx(loss)
        policy = search.policy(trial.params)
        assert (speedup, loss) == tuple(search.point(policy, trial.params["quantile"]))
        assert loss == search.replay(policy, trial.params["quantile"])[1]
    assert any(t.constraints["goal"] <= 0 for t in study.trials)


def test_a_resumed_study_keeps_its_trials_and_enqueues_nothing_twice(tmp_path):
    search, path = searcher(), tmp_path / "study.journal"
    baselines = search.baselines()
    run_study(open_study(path, 0, baselines), search, 5, [])
    first = done(open_study(path, 0, baselines))
    assert len(first) == 5
    assert len(open_study(path, 0, baselines).trials) == len(baselines)
    study = open_study(path, 0, baselines)
    run_study(study, search, 14, [])
    assert done(study).items() >= first.items()
    assert len(done(study)) == len(study.trials) == 14
    assert [t.params for t in study.trials[: len(baselines)]] == baselines
    study = open_study(path, 0, baselines)
    run_study(study, search, 14, [])
    assert len(study.trials) == 14
    run_study(study, search, 3, [])  # fewer than there are
    assert len(study.trials) == 14


@pytest.mark.sampled
@pytest.mark.parametrize("at", [2, 13])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("drawn", ["nothing", "a parameter", "everything", "its constraint"])
def test_a_search_whose_trial_was_killed_ends_as_if_nothing_had_happened(at, signed, drawn, tmp_path, recwarn):
    search, whole, path = searcher(), tmp_path / "whole.journal", tmp_path / "study.journal"
    baselines = search.baselines()
    study = open_study(whole, 0, baselines)
    run_study(study, search, 18, [])
    expected = study.trials
    study = open_study(path, 0, baselines)
    run_study(study, search, at, [])
    killed = study.ask()
    gone = subprocess.Popen(["true"])
    gone.wait()
    if signed:
        killed.set_user_attr(WORKER, f"{platform.node()}:{gone.pid}")
    if drawn == "a parameter":
        killed.suggest_categorical("feature", [*CONFIDENCE, *HISTORY])
    elif drawn == "everything":
        search.suggest(killed)
    elif drawn == "its constraint":
        search(killed)
    study = open_study(path, 0, baselines)
    run_study(study, search, 18, [])
    assert [(t.number, t.state, t.params, t.value, t.constraints) for t in study.trials] == [
        (t.number, TrialState.COMPLETE, t.params, t.value, t.constraints) for t in expected
    ]
    assert not [w for w in recwarn if "already" in str(w.message)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), FloatingPointError])
def test_a_trial_that_was_stopped_is_silent_and_not_lost(error, tmp_path, capfd):
    """Optuna printed a traceback and called it failed, so that a baseline was never tried."""
    search, path = searcher(), tmp_path / "study.journal"

    def stopped(trial):
        if trial.number == 1:
            raise error
        return search(trial)

    study = open_study(path, 0, search.baselines())
    with pytest.raises(error if isinstance(error, type) else type(error)):
        run_study(study, stopped, 4, [])
    assert "Traceback" not in capfd.readouterr().err
    study = open_study(path, 0, search.baselines())
    run_study(study, search, 4, [])
    assert [(t.number, t.params) for t in study.get_trials(states=[TrialState.COMPLETE])] == [
        *enumerate(search.baselines()[:4])
    ]


@pytest.mark.parametrize("goal", [Goal(speedup=1.5), Goal(budget=0.1), Goal(speedup=900)])
def test_finalists_differ_and_the_feasible_come_first(goal):
    search = searcher(goal=goal)
    study = in_memory(search)
    run_study(study, search, 20, [])
    best = finalists(study, 3)
    kinds = [(t.params["feature"], t.params["direction"]) for t in best]
    assert len(best) == len(set(kinds)) == 3
    ranks = [(max(0, t.constraints["goal"]), t.value) for t in best]
    assert ranks == sorted(ranks)
    assert ranks[0] == min((max(0, t.constraints["goal"]), t.value) for t in study.trials)


def test_learned_policies_are_fitted_once_per_setting():
    search = searcher("logistic", label="disagree")
    one = search.policy({"features": "confidence", "C": 0.1, "quantile": 0.3})
    assert one is search.policy({"features": "confidence", "C": 0.1, "quantile": 0.7})
    assert one is not search.policy({"features": "confidence", "C": 0.2, "quantile": 0.3})
    assert isinstance(one, Logistic)
    assert one.names == FEATURE_SETS["confidence"]


def test_baselines_are_valid_suggestions():
    for kind in ("rule", "logistic", "mlp"):
        search = searcher(kind)
        for params in search.baselines():
            assert search.suggest(optuna.trial.FixedTrial(params)) == params
        pairs = itertools.combinations(search.baselines(), 2)
        assert all(a != b for a, b in pairs)
