"""Decisions in one compiled call: the same numbers as the features of a step, for the policies that allow it."""

import numpy as np
import pytest
import torch
from tiny_models import nudged, tiny

from decoding import Backoff, Speculative, generate
from decoding.state.policy_state import PolicyState
from decoding.state.token_buffer import TokenBuffer
from policies import FEATURES, MLP, Logistic, Margins, Momentum, Periodic, Random, Rule, feature_columns
from policies.features.fast_path import CompiledPolicy, kernels

pytestmark = pytest.mark.skipif(kernels() is None, reason="numba is not here: decisions are taken by torch operations")

NAMES = tuple(name for name, feature in FEATURES.items() if not feature.needs_target and name != "uniform")
VOCAB = 1500
CLASSES = torch.randint(0, 16, (VOCAB,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BATCH, PROMPT, BUDGET = 4, 6, 20


def fitted(kind, names=NAMES, **settings):
    rng = np.random.default_rng(1)
    policy = kind(names, classes=CLASSES, **settings)
    return policy.fit(rng.normal(2, 2, (300, len(names))), rng.random(300))


def text_of(seed=0, few=3):
    """Texts that hold the same ``few`` tokens again and again."""
    ids = torch.randint(3, 3 + few, (BATCH, PROMPT), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(PROMPT) >= torch.tensor([0, 3, 5, 1])[:, None]).long()
    text = TokenBuffer(ids * mask, mask, BUDGET, 4, (), 0)
    text.ids[:] = torch.randint(3, 3 + few, text.ids.shape, generator=torch.Generator().manual_seed(seed + 1))
    return text


def of_steps(policy, text):
    """A policy state that builds steps, as on other devices."""
    state = PolicyState(policy, text)
    state.compiled = None
    return state


def logits_of(rows, seed, kind="plain"):
    logits = 4 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))
    if kind == "masked":
        logits[:, 5:700] = -torch.inf
    return logits.bfloat16() if kind == "bfloat16" else logits


@pytest.mark.parametrize("few", [1, 3], ids=["one token", "few tokens"])
@pytest.mark.parametrize("kind", ["plain", "masked", "bfloat16", "cut"])
def test_the_table_is_that_of_the_features(kind, few):
    """Of rows that come and go, that the larger model checks, that forget what they drafted, and that are all loop."""
    policy, text = fitted(Logistic), text_of(few=few)
    fast, built = PolicyState(policy, text), of_steps(policy, text)
    rng = torch.Generator().manual_seed(3)
    for place in range(BUDGET):
        rows = torch.tensor([[0, 1, 2, 3], [1, 3], [2]][place % 3])
        lengths = text.prompts[rows] + place
        logits = logits_of(len(rows), place, kind)
        if kind == "cut":  # a head that is padded
            logits = torch.nn.functional.pad(logits, (0, 12), value=3.0)[:, :VOCAB]
        step = built.step(logits, rows, lengths)
        expected = policy._scaled(feature_columns(step, policy.names, policy.history, CLASSES))
        torch.testing.assert_close(fast.compiled.table(logits, rows, lengths), expected, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(fast.history, built.history, rtol=1e-5, atol=1e-5, equal_nan=True)
        for state in (fast, built):
            if place % 4 == 3:
                agreed = torch.rand(len(rows), generator=rng.manual_seed(place)) < 0.5
                state.checked_by_large(rows, lengths + 1, agreed, logits_of(len(rows), 99))
            if place % 5 == 4:
                state.forget(rows, lengths)


@pytest.mark.parametrize(
    "policy",
    [
        Rule("entropy", 2.0),
        Rule("top10", 0.6, "<="),
        Rule.never(),
        Rule.always(),
        Periodic(3),
        Momentum(1.9),
        fitted(Logistic),
        fitted(MLP),
        Margins(2).fit(np.random.default_rng(0).uniform(0.1, 0.9, (200, 3)), np.arange(200) % 2),
    ],
    ids=lambda policy: policy.kind,
)
def test_every_kind_decides_as_it_does_on_steps(policy):
    text = text_of()
    fast, built = PolicyState(policy, text), of_steps(policy, text)
    rows, risks = torch.arange(BATCH), []
    for place in range(BUDGET):
        logits, lengths = logits_of(BATCH, place), text.prompts + place
        risks.append(policy._score(fast.compiled.table(logits, rows, lengths), None))
        torch.testing.assert_close(risks[-1], policy.score(built.step(logits, rows, lengths)), rtol=2e-4, atol=2e-5)
    if policy.kind not in ("always", "never"):
        values = torch.cat(risks).unique()
        policy = policy.with_threshold(((values[:-1] + values[1:]) / 2).median())  # where rounding decides nothing
        fast, built = PolicyState(policy, text), of_steps(policy, text)
        said = torch.cat([fast.decide(logits_of(BATCH, p), rows, text.prompts + p) for p in range(BUDGET)])
        asked = torch.cat([built.decide(logits_of(BATCH, p), rows, text.prompts + p) for p in range(BUDGET)])
        assert said.tolist() == asked.tolist() and 0 < said.sum() < len(said)


@pytest.mark.parametrize("names", [("entropy",), ("last_is_digit",), NAMES])
def test_what_is_broken_escalates(names):
    """NaN of a model; and a token that the table of classes does not have, which must not be read."""
    policy, text = fitted(Logistic, names), text_of()
    policy.classes = policy.classes[:3] if "last_is_digit" in names else policy.classes
    logits = logits_of(BATCH, 0)
    logits[1, 7] = torch.nan
    said = PolicyState(policy.with_threshold(np.inf), text).decide(logits, torch.arange(BATCH), text.prompts + 2)
    assert said.tolist() == ([True] * BATCH if "last_is_digit" in names else [False, True, False, False])


def test_decoders_write_the_same(monkeypatch, prompts):
    ids, mask = prompts
    large = tiny(layers=2, seed=1)
    small = nudged(large)
    policy = Logistic(("entropy", "mean_entropy", "since_large", "agreed", "repeated"))
    table = np.random.default_rng(0).normal(2.4, 1, (400, 5))
    policy.fit(table, table[:, 0] > 2.4)
    calls = []
    original = CompiledPolicy.table
    monkeypatch.setattr(CompiledPolicy, "table", lambda *args: calls.append(1) or original(*args))
    for decoder in (Backoff([small, large], policy), Speculative([small, large], 4, stop=policy)):
        written = []
        for loader in (kernels, lambda: None):
            calls.clear()
            monkeypatch.setattr("policies.features.fast_path.kernels", loader)
            result = generate(decoder, ids, mask, max_new_tokens=24, eos_token_id=(), seed=0)
            written.append((result.sequences.tolist(), result.writers.tolist(), result.counts))
            assert bool(calls) == (loader is kernels)
        assert written[0] == written[1]
        assert 0 < (result.writers == 1).sum() < result.writers.numel()


class Other(Rule):
    """Answers otherwise than by score and threshold."""

    def forward(self, step):
        return step.position >= 0


class Wrapped:
    def __init__(self, policy):
        self.policy, self.asked = policy, 0

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def __call__(self, step):
        self.asked += 1
        return self.policy(step)


@pytest.mark.parametrize(
    "policy", [Random(0.5), Other("entropy", 1e9), Wrapped(Rule("entropy", 1e9)), lambda step: step.position >= 0]
)
def test_who_answers_in_another_way_is_asked(policy):
    """Noise is not compiled; a subclass may answer as it likes; a wrapper passes on what it lacks, but not this."""
    text = text_of()
    state = PolicyState(policy, text)
    assert state.compiled is None
    state.decide(logits_of(BATCH, 0), torch.arange(BATCH), text.prompts)
    assert getattr(policy, "asked", 1) == 1


def test_a_threshold_that_is_copied_in_place_is_seen_at_once():
    text, policy = text_of(), Rule("entropy", 0.0)
    state = PolicyState(policy, text)
    decide = lambda: state.decide(logits_of(BATCH, 0), torch.arange(BATCH), text.prompts).tolist()  # noqa: E731
    assert decide() == [True] * BATCH
    policy.threshold.copy_(policy.with_threshold(1e9).threshold)
    assert decide() == [False] * BATCH
