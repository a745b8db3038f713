"""The policy gradient: the gradient is the true one, rewards rise where there is something to learn, runs go on."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from policies import MLP, Logistic
from train.reinforcement.policy_gradient import (
    Decisions,
    Explorer,
    Settings,
    entropy,
    learn,
    logit,
    set_weights,
    surrogate,
    weights,
)

NAMES = ("entropy", "top1")
TEMPERATURE = 0.2


def logistic(coef=(0.3, -0.2), intercept=0.1):
    policy = Logistic(NAMES)
    values = {"mean": torch.zeros(2), "scale": torch.ones(2), "coef": torch.tensor(coef)}
    policy.set_weights(values | {"intercept": torch.tensor(intercept)})
    return policy


def mlp():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 2))
    return MLP(NAMES, hidden=(3,), epochs=2, validation=0).fit(x, (x[:, 0] > 0).astype(float))


FIRST = torch.tensor([[0.4, -1.0]])
SECOND = torch.tensor([[1.5, 0.3], [-0.7, 0.8]])
"""What is seen at the second step after keeping the first token, and after handing it on."""
REWARDS = {(0, 0): -0.9, (0, 1): 0.2, (1, 0): -0.1, (1, 1): -0.4}


def outcomes():
    for first, second in itertools.product((0, 1), repeat=2):
        table = torch.cat([FIRST, SECOND[first : first + 1]])
        escalated = torch.tensor([first, second], dtype=torch.bool)
        yield Decisions(table, escalated, torch.zeros(2, dtype=torch.long)), REWARDS[first, second]


def expected(policy, vector) -> float:
    """The expected reward of two steps, by enumeration in float64."""
    set_weights(policy, vector)
    total = 0.0
    for decisions, reward in outcomes():
        odds = logit(policy, decisions.table, TEMPERATURE).double()
        total += reward * torch.where(decisions.escalated, odds.sigmoid(), (-odds).sigmoid()).prod().item()
    return total


@pytest.mark.parametrize("make", [logistic, mlp])
def test_the_gradient_is_that_of_the_expected_reward(make):
    policy = make()
    vector = weights(policy).requires_grad_()
    set_weights(policy, vector)
    total = torch.zeros(())
    for decisions, reward in outcomes():
        with torch.no_grad():
            odds = logit(policy, decisions.table, TEMPERATURE)
            chance = torch.where(decisions.escalated, odds.sigmoid(), (-odds).sigmoid()).prod()
        total = total + chance * surrogate(policy, decisions, torch.tensor([reward]), TEMPERATURE)
    total.backward()
    step = 1e-2
    for i in range(len(vector)):
        moved = torch.zeros_like(vector)
        moved[i] = step
        up, down = (expected(policy, (vector + sign * moved).detach()) for sign in (1, -1))
        assert float(vector.grad[i]) == pytest.approx((up - down) / (2 * step), abs=2e-3)
    assert float(vector.grad.abs().max()) > 0.01


def test_a_baseline_leaves_the_expected_gradient_alone():
    policy = logistic()
    vector = weights(policy).requires_grad_()
    set_weights(policy, vector)
    total = torch.zeros(())
    for decisions, _ in outcomes():
        with torch.no_grad():
            odds = logit(policy, decisions.table, TEMPERATURE)
            chance = torch.where(decisions.escalated, odds.sigmoid(), (-odds).sigmoid()).prod()
        total = total + chance * surrogate(policy, decisions, torch.ones(1), TEMPERATURE)
    total.backward()
    assert vector.grad.abs().max() < 1e-5


def test_decisions_belong_to_the_rollouts_that_were_open():
    explorer = Explorer(logistic(), TEMPERATURE)
    open_at = [[0, 1, 2], [0, 2], [2]]
    for rows in open_at:
        explorer(a_step(torch.tensor([[float(r), 0.0] for r in rows]), torch.zeros(len(rows))))
    found = explorer.decisions(torch.tensor([2, 1, 3]))
    assert found.rollout.tolist() == [0, 1, 2, 0, 2, 2]
    assert found.table[:, 0].tolist() == [0, 1, 2, 0, 2, 2]


def a_step(table, uniform):
    return SimpleNamespace(columns=dict(zip(NAMES, table.T, strict=True)), position=uniform, uniform=uniform)


def test_hand_offs_are_drawn_with_the_chance_that_is_differentiated():
    policy, n = logistic(), 20_000
    explorer = Explorer(policy, TEMPERATURE)
    table = torch.tensor([[0.8, 0.1]]).expand(n, 2)
    escalated = explorer(a_step(table, torch.rand(n, generator=torch.Generator().manual_seed(0))))
    chance = float(torch.sigmoid((policy.score_table(table[:1]) - policy.threshold) / TEMPERATURE))
    assert escalated.float().mean() == pytest.approx(chance, abs=0.01)
    assert 0 < entropy(policy, explorer.decisions(torch.ones(n, dtype=torch.long)), TEMPERATURE) <= np.log(2)


class Toy:
    """Texts of ten tokens whose entropy is drawn; keeping one above 0.5 costs 1, and handing on costs time."""

    def __init__(self, limit=0.35):
        self.limit = limit

    def __call__(self, explorer, step):
        draw = torch.Generator().manual_seed(step)
        loss, escalated = torch.zeros(4, 8), torch.zeros(4, 8)
        for _ in range(10):
            table = torch.randn(32, 2, generator=draw)
            own = explorer(a_step(table, torch.rand(32, generator=draw))).view(4, 8)
            wrong = (table[:, 0] > 0.5).view(4, 8)
            loss += (wrong & ~own) / 10
            escalated += own / 10
        return loss, escalated - self.limit, explorer.decisions(torch.full((32,), 10))


def how(steps=120, **changes):
    return Settings(**{"steps": steps, "rate": 0.05, "temperature": 0.1, "multiplier": 0.3, "dual_rate": 0.1} | changes)


def value(policy, seed=10_000):
    """(loss, share escalated) of the drawn policy on texts that no step has seen."""
    loss, over, _ = Toy()(Explorer(policy, 0.1), seed)
    return float(loss.mean()), float(over.mean()) + 0.35


@pytest.mark.parametrize("make", [lambda: logistic((-0.5, 0.5), 0.0), mlp])
def test_it_learns_where_to_hand_on_and_keeps_to_the_target(make, tmp_path):
    before, _ = value(make())
    policy, rows = learn(make(), Toy(), how(), tmp_path / "steps.jsonl")
    first, last = (np.mean([row["objective"] for row in part]) for part in (rows[:6], rows[-6:]))
    assert last < first / 2
    loss, escalated = value(policy)
    assert loss < before / 2
    assert escalated == pytest.approx(0.35, abs=0.08)  # 31 % of the tokens are above 0.5
    high, low = policy.score_table(torch.tensor([[1.5, 0.0], [-0.5, 0.0]])).tolist()
    assert high > float(policy.threshold) > low


def test_a_constraint_that_is_met_costs_nothing_in_the_end(tmp_path):
    _, rows = learn(logistic(), Toy(limit=2.0), how(steps=12, dual_rate=0.5), tmp_path / "steps.jsonl")
    assert rows[0]["multiplier"] == 0.3 > rows[1]["multiplier"]
    assert rows[-1]["multiplier"] == 0.0
    assert all(row["violation"] < 0 for row in rows)


def test_a_training_that_diverges_says_so(tmp_path):
    """A multiplier that grows without limit makes every reward infinite."""
    with pytest.raises(FloatingPointError, match="the training has diverged; take a smaller --lr or --dual-rate"):
        learn(logistic(), Toy(limit=-1.0), how(steps=3, dual_rate=1e300), tmp_path / "steps.jsonl")
    assert len((tmp_path / "steps.jsonl").read_text().splitlines()) == 1, "what was sound is kept"


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    start = logistic()
    whole, rows = learn(start, Toy(), how(steps=6), tmp_path / "whole.jsonl")
    learn(start, Toy(), how(steps=4), tmp_path / "cut.jsonl")
    with (tmp_path / "cut.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')  # as a kill leaves it
    cut, _ = learn(start, Toy(), how(steps=6), tmp_path / "cut.jsonl")
    assert weights(cut).tolist() == weights(whole).tolist()
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    again, reread = learn(start, None, how(steps=6), tmp_path / "whole.jsonl")
    assert reread == json.loads(json.dumps(rows))
    assert weights(start).tolist() == weights(logistic()).tolist()
    assert weights(again).tolist() == weights(whole).tolist()
    assert not weights(again).requires_grad
