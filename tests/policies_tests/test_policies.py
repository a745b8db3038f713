"""What every kind of policy must do; a kind without a specimen here fails."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from policies import KINDS, MLP, Logistic, Margins, Momentum, Periodic, Random, Rule, feature_columns, load

VOCAB, WIDTH = 40, 6
CLASSES = torch.arange(VOCAB, dtype=torch.uint8) % 16
COLUMNS = ("entropy", "margin", "agreed", "mean_entropy", "last_is_digit")


def _data(n=400):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, len(COLUMNS)))
    x[rng.random(n) < 0.2, 2] = np.nan  # agreed, before the larger model was asked
    y = 1 / (1 + np.exp(-2 * x[:, 0] + x[:, 1]))
    return x, y, rng.normal(size=(n, WIDTH))


def _logistic():
    x, y, _ = _data()
    return Logistic(COLUMNS, classes=CLASSES).fit(x, y)


def _mlp():
    x, y, hidden = _data()
    return MLP(COLUMNS, hidden=(8,), use_hidden=True, epochs=3, classes=CLASSES).fit(x, y, hidden=hidden)


def _margins():
    rng = np.random.default_rng(0)
    top1 = rng.uniform(0.3, 1, 400)
    x = np.stack([top1, top1 * rng.random(400), rng.integers(0, 5, 400)], 1)
    return Margins(3).fit(x, rng.random(400))


SPECIMENS = {
    "always": Rule.always,
    "never": Rule.never,
    "rule": lambda: Rule("top1", 0.1, "<="),
    "random": lambda: Random(0.3),
    "periodic": lambda: Periodic(3),
    "momentum": lambda: Momentum(2.0, 0.6, 0.5),
    "margins": _margins,
    "logistic": _logistic,
    "mlp": _mlp,
}
BLIND = ("always", "never", "random", "periodic")  # they read no logits, so broken ones change nothing


@pytest.fixture(params=sorted(KINDS))
def policy(request):
    return copy.deepcopy(SPECIMENS[request.param]())


def make_step(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    unit = torch.rand(shape, generator=g)
    return SimpleNamespace(
        logits=3 * torch.randn(*shape, VOCAB, generator=g),
        position=torch.randint(0, 50, shape, generator=g),
        since_large=torch.randint(0, 9, shape, generator=g),
        repeated=torch.randint(0, 9, shape, generator=g),
        agreed=torch.where(unit < 0.3, torch.nan, (unit < 0.6).float()),
        large_entropy=torch.where(unit < 0.3, torch.nan, unit),
        last_token=torch.randint(0, VOCAB, shape, generator=g),
        uniform=torch.rand(shape, generator=g),
        hidden=torch.randn(*shape, WIDTH, generator=g),
        target_logits=None,
        history=torch.rand(*shape, 8, 1, generator=g),
    )


def rows_of(step, index):
    return SimpleNamespace(**{k: None if v is None else v[index] for k, v in vars(step).items()})


def test_every_kind_has_a_specimen():
    assert set(SPECIMENS) == set(KINDS)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 4), (2, 0)])
def test_shapes_and_types(policy, shape):
    step = make_step(*shape)
    score, decision, seen = policy.score(step), policy(step), policy.observe(step)
    assert score.shape == decision.shape == shape
    assert score.dtype == torch.float32 and decision.dtype == torch.bool and not score.requires_grad
    assert seen.shape == (*shape, len(policy.history)) and seen.dtype == torch.float32
    assert policy.window == (8 if policy.history else 0)
    assert "\n" not in policy.describe() and not list(policy.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_logits_dtype(policy, dtype):
    step = make_step(5)
    step.logits, step.hidden = step.logits.to(dtype), step.hidden.to(dtype)
    assert policy(step).shape == (5,) and policy.score(step).dtype == torch.float32


def test_a_row_depends_on_no_other(policy):
    step = make_step(4, 3)
    policy = policy.with_threshold(_between(policy.score(step)))
    score, decision = policy.score(step), policy(step)
    for row in range(4):
        for column in range(3):
            alone = rows_of(step, (slice(row, row + 1), slice(column, column + 1)))
            torch.testing.assert_close(policy.score(alone).squeeze(), score[row, column], rtol=1e-5, atol=1e-6)
            assert policy(alone).item() == decision[row, column].item()


def _between(scores):
    """A threshold in the widest gap of the finite scores, so that no rounding decides."""
    values = scores[scores.isfinite()].unique()
    if len(values) < 2:
        return 0.0
    gap = values.diff().argmax()
    return ((values[gap] + values[gap + 1]) / 2).item()


def test_broken_logits_escalate(policy):
    step = make_step(6)
    policy = policy.with_threshold(1e9)
    before = policy(step)
    step.logits[2] = torch.nan
    after = policy(step)
    assert torch.equal(after[[0, 1, 3, 4, 5]], before[[0, 1, 3, 4, 5]])
    assert after[2].item() == (before[2].item() if policy.kind in BLIND else True)


def test_masked_logits_are_no_trouble(policy):
    step = make_step(6)
    step.logits[:, 5:] = -torch.inf
    assert not policy.score(step).isnan().any()


def test_threshold_extremes(policy):
    step = make_step(20)
    assert policy.with_threshold(-torch.inf)(step).all()
    highest = policy.with_threshold(torch.inf)(step)
    assert highest.all() if policy.kind == "always" else not highest.any()
    with pytest.raises(ValueError, match="NaN"):
        policy.with_threshold(torch.nan)


def test_another_threshold_is_another_policy(policy, tmp_path):
    """The original keeps its threshold and its buffers; the copy is the same policy but for the threshold."""
    step, models = (
        make_step(40),
        [{"name": "a", "tokenizer": "t", "config": "c", "weights": "w", "generation_config": "g"}],
    )
    policy.models, policy.provenance = models, {"note": "kept"}
    before, answers = policy.threshold.clone(), policy(step)
    between = _between(policy.score(step))
    copy = policy.with_threshold(torch.tensor(between))
    assert type(copy) is type(policy) and copy.names == policy.names and copy.history == policy.history
    assert copy.models == models and copy.provenance == {"note": "kept"} and copy.settings() == policy.settings()
    assert copy.threshold.shape == () and copy.threshold.dtype == torch.float32
    assert torch.equal(copy.score(step), policy.score(step))
    assert torch.equal(copy(step), ~(policy.score(step) < np.float32(between)))
    copy.save(tmp_path / "policy.json")
    loaded = load(tmp_path / "policy.json", models=models)
    assert torch.equal(loaded.threshold, copy.threshold) and torch.equal(loaded(step), copy(step))
    for buffer in copy.buffers():
        buffer.zero_()
    assert torch.equal(policy.threshold, before) and torch.equal(policy(step), answers)
    copy.to(torch.float64)
    assert all(buffer.dtype != torch.float64 for buffer in policy.buffers())


def test_equality_escalates(policy):
    step = make_step(9)
    score = policy.score(step)
    assert policy.with_threshold(score[0])(step)[0]


def test_deterministic_and_without_grad_modes(policy):
    step = make_step(9)
    with torch.inference_mode():
        inside = policy.score(step), policy(step)
    assert torch.equal(inside[0], policy.score(step)) and torch.equal(inside[1], policy(step))


def test_a_table_scores_as_the_step_does(policy):
    step = make_step(11)
    table = feature_columns(step, policy.names, policy.history, policy.classes)
    hidden = step.hidden if policy.needs_hidden else None
    assert torch.equal(policy.score_table(table, hidden), policy.score(step))
    assert torch.equal(policy.score_table(table.double().numpy(), hidden), policy.score(step))
    with pytest.raises(ValueError, match="columns"):
        policy.score_table(torch.zeros(3, len(policy.names) + 1))


def test_round_trip(policy, tmp_path):
    step = make_step(50)
    models = [{"name": "a", "tokenizer": "t", "config": "c", "weights": "w", "generation_config": "g"}]
    policy.save(tmp_path / "new" / "policy.json", models, {"note": "kept", "nested": {"loss": 0.1}})
    text = (tmp_path / "new" / "policy.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
    loaded = load(tmp_path / "new" / "policy.json", models=models)
    assert type(loaded) is type(policy) and loaded.describe() == policy.describe()
    assert torch.equal(loaded.threshold, policy.threshold) and loaded.names == policy.names
    assert torch.equal(loaded.score(step), policy.score(step)) and torch.equal(loaded(step), policy(step))
    assert loaded.models == models and loaded.provenance == {"note": "kept", "nested": {"loss": 0.1}}
    loaded.save(tmp_path / "again" / "policy.json")  # models and provenance travel along
    assert (tmp_path / "again" / "policy.json").read_text() == text


def test_rules_read_as_written():
    step = make_step(30)
    top1 = feature_columns(step, ("top1",))[:, 0]
    assert torch.equal(Rule("top1", 0.4, "<=")(step), top1 <= 0.4)
    assert torch.equal(Rule("top1", 0.4)(step), top1 >= 0.4)
    assert Rule("top1", 0.4, "<=").describe() == "escalate when top1 <= 0.4"
    with pytest.raises(ValueError, match="direction"):
        Rule("top1", 0.4, "<")
    with pytest.raises(ValueError, match="unknown feature"):
        Rule("top", 0.4)


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_random_escalates_exactly_its_rate(rate):
    step = make_step(1000)
    step.uniform = torch.arange(1000) / 1000  # 0 is in it: a rate of 0 must still be never
    policy = Random(rate)
    assert policy(step).sum().item() == 1000 * rate and abs(policy.rate - rate) < 1e-6


def test_periodic():
    step = make_step(10)
    step.position = torch.arange(10)
    assert Periodic(4)(step).nonzero().flatten().tolist() == [0, 4, 8]
    with pytest.raises(ValueError, match="whole number"):
        Periodic(0)


def test_momentum_remembers_and_keeps_the_word():
    rows = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 0.0], [1.0, torch.nan, 2.0], [torch.nan, 3.0, 2.0]])
    assert Momentum(memory=0.75, gap=0.5).score_table(rows)[:3].tolist() == [2.5, 3.0, 1.0]
    assert Momentum(memory=0.75, gap=0.5).score_table(rows)[3].isnan()
    plain = Momentum(1.9, memory=0.0)
    assert plain.score_table(rows)[:3].tolist() == [1.0, 1.0, 1.0]
    # Taken up at 2.6, given back below 2.1: what is in between stays with the larger model.
    keeps = Momentum(2.6, memory=1.0, gap=0.5)
    middle = torch.tensor([[2.0, 2.3, 0.0], [2.0, 2.3, 1.0], [2.0, 2.0, 0.0]])
    assert (keeps.score_table(middle) >= keeps.threshold).tolist() == [True, False, False]
    for wrong in ({"memory": 1.1}, {"gap": -1.0}, {"gap": float("nan")}):
        with pytest.raises(ValueError, match="memory and gap are"):
            Momentum(**wrong)


def test_margins_have_a_line_of_their_own_at_each_place():
    rng = np.random.default_rng(3)
    n = 6000
    margin, place = rng.uniform(0, 6, n), rng.integers(0, 5, n)
    second = rng.uniform(0.01, 0.1, n)
    best = second * np.exp(margin)
    slope, intercept = np.array([0.5, 1.0, 1.5]), np.array([1.0, 0.0, -1.0])
    at = np.minimum(place, 2)
    y = 1 / (1 + np.exp(slope[at] * margin - intercept[at]))
    fitted = Margins(3, C=100.0).fit(np.stack([best, best - second, place], 1), y)
    np.testing.assert_allclose(fitted.slope_, slope, atol=0.05)
    np.testing.assert_allclose(fitted.intercept_, intercept, atol=0.1)


def test_a_place_without_labels_to_tell_apart_uses_all_rows():
    x = np.array([[0.9, 0.8, 0], [0.5, 0.1, 0], [0.9, 0.7, 1], [0.5, 0.2, 1]])
    fitted = Margins(4).fit(x, [0.0, 1.0, 0.0, 0.0])
    assert fitted.slope_[0] != fitted.slope_[1]
    assert fitted.slope_[1] == fitted.slope_[2] == fitted.slope_[3]
    with pytest.raises(ValueError, match="places"):
        Margins(0)


@pytest.mark.parametrize("kind", [Logistic, MLP])
def test_fitting_recovers_soft_labels(kind):
    rng = np.random.default_rng(1)
    x = rng.normal(2.0, 3.0, size=(3000, 1))
    y = 1 / (1 + np.exp(-(x[:, 0] - 2.0)))
    fitted = kind(("entropy",)).fit(x, y)
    assert np.abs(fitted.score_table(x).numpy() - y).mean() < 0.03


def test_a_soft_label_is_a_share_of_hard_ones():
    x = _data(200)[0]
    share = 0.25 + 0.5 * (x[:, 0] > 0)
    soft = Logistic(COLUMNS).fit(x, share)
    hard_y = np.concatenate([np.ones(200), np.zeros(200)])
    hard = Logistic(COLUMNS).fit(np.concatenate([x, x]), hard_y, weight=np.concatenate([share, 1 - share]))
    torch.testing.assert_close(soft.coef_, hard.coef_, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [Logistic, MLP])
def test_unknown_is_the_training_mean_and_broken_is_nan(kind):
    x, y, _ = _data()
    fitted = kind(COLUMNS).fit(x, y)
    row = torch.zeros(1, len(COLUMNS))
    unknown, mean, broken = row.clone(), row.clone(), row.clone()
    unknown[0, 2], mean[0, 2], broken[0, 0] = torch.nan, fitted.mean_[2], torch.nan
    torch.testing.assert_close(fitted.score_table(unknown), fitted.score_table(mean))
    assert fitted.score_table(broken).isnan().all()


def test_fitting_an_mlp_is_reproducible_and_leaves_the_global_generator_alone():
    x, y, hidden = _data()
    state = torch.get_rng_state()
    groups = np.arange(len(y)) // 10
    first, second = (MLP(COLUMNS, use_hidden=True, epochs=5).fit(x, y, None, groups, hidden) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))
    assert first.validation_loss_ == second.validation_loss_


def test_refitting_writes_into_the_same_buffers():
    x, y, _ = _data()
    for fitted in (Logistic(COLUMNS).fit(x, y), MLP(COLUMNS, epochs=1).fit(x, y)):
        before = {name: buffer.data_ptr() for name, buffer in fitted.named_buffers()}
        fitted.fit(x, 1 - y)
        assert before == {name: buffer.data_ptr() for name, buffer in fitted.named_buffers()}


def test_validation_groups_are_not_split():
    from policies.kinds.mlp import _held_out

    groups = np.repeat(np.arange(10), 7)
    held = _held_out(groups, 0.2, torch.Generator().manual_seed(0))
    assert held.sum() == 14 and all(held[groups == g].all() or not held[groups == g].any() for g in range(10))
    with pytest.raises(ValueError, match="one group"):
        _held_out(np.zeros(5), 0.2, torch.Generator())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.full(400, 0.0)}, "all 0 or all 1"),
        ({"y": np.full(400, 1.5)}, "outside"),
        ({"y": np.full(400, np.nan)}, "outside"),
        ({"x": np.full((400, 5), np.nan)}, "'entropy' is not finite"),
        ({"x": np.zeros((400, 2))}, "shapes"),
        ({"weight": np.zeros(400)}, "weights"),
        ({"groups": np.zeros(3)}, "shapes"),
    ],
)
def test_a_bad_training_table_is_refused(change, message):
    x, y, _ = _data()
    with pytest.raises(ValueError, match=message):
        Logistic(COLUMNS).fit(**({"x": x, "y": y} | change))


def test_what_is_missing_is_said():
    step = make_step(2)
    for unfitted in (Logistic(), MLP(), Margins()):
        with pytest.raises(RuntimeError, match="call fit"):
            unfitted(step)
    with pytest.raises(ValueError, match="hidden states"):
        MLP(COLUMNS, use_hidden=True).fit(*_data()[:2])
    step.hidden = None
    with pytest.raises(ValueError, match="hidden states"):
        _mlp()(step)
    with pytest.raises(ValueError, match="token_classes"):
        Rule("last_is_digit", 0.5)(step)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_without_waiting_for_the_host(policy):
    step = SimpleNamespace(**{k: None if v is None else v.cuda() for k, v in vars(make_step(6)).items()})
    policy.cuda()
    policy(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        policy(step), policy.observe(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
