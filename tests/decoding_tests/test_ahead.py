"""A host that hears of tokens one step late: the text of a host that waits, to the token, and no wait a token."""

import copy

import numpy as np
import pytest
import torch
from simulated_device import DEVICE, Elsewhere, move
from tape import Tape
from tiny_models import KINDS, mostly_slow, nudged, tiny
from torch.utils._python_dispatch import _disable_current_modes

from decoding import (
    LM,
    MTAD,
    MTJD,
    Autoregressive,
    Backoff,
    PromptLookup,
    Sampling,
    SpecInfer,
    Speculative,
    generate,
    generate_many,
)
from decoding.kernels import cuda_graphs
from policies import MLP, Logistic, Margins, Momentum, Random, Rule

pytestmark = pytest.mark.sampled

OPTIONS = {"max_new_tokens": 14, "eos_token_id": (5, 9), "pad_token_id": 0, "seed": 1}
NAMES = ("entropy", "top10", "agreed", "mean_entropy", "mean_agreed", "repeated", "since_large", "large_entropy")


def fitted(kind, seed=0):
    table = np.random.default_rng(seed).normal(2.4, 1, (400, len(NAMES)))
    return kind(NAMES).fit(table, table[:, 0] + table[:, seed] > 4.8)


POLICIES = {
    "rule": Rule("entropy", 2.4),
    "logistic": fitted(Logistic),
    "mlp": fitted(MLP),
    "momentum": Momentum(2.4),
    "random": Random(0.3),
    "always": Rule.always(),
    "never": Rule.never(),
}
DECODERS = {
    "autoregressive": lambda lms, policy: Autoregressive(lms[0]),
    "two": lambda lms, policy: Backoff(lms[:2], policy),
    "two, unchecked ends": lambda lms, policy: Backoff(lms[:2], policy, verify_eos=False),
    "three": lambda lms, policy: Backoff(lms, [policy, policy]),
    "speculative": lambda lms, policy: Speculative(lms[:2], 4),
    "stop": lambda lms, policy: Speculative(lms[:2], 4, stop=policy),
    "stop, kept": lambda lms, policy: Speculative(lms[:2], 4, stop=policy, keep_stop_token=True),
}


@pytest.fixture(autouse=True)
def late(monkeypatch):
    """Graphs are tapes, and a host that reads a value is taken to wait."""
    monkeypatch.setattr(cuda_graphs, "CudaGraph", Tape)
    monkeypatch.setattr("decoding.models.lm.recordable", lambda model: True)
    monkeypatch.setattr("policies.features.fast_path.kernels", lambda: None)
    monkeypatch.setattr(Tape, "made", [])


def everywhere(monkeypatch, on=True):
    for module in ("state.generation_state", "state.host_reads", "drafting.draft_model"):
        monkeypatch.setattr(f"decoding.{module}.host_waits", lambda device: on)


def trio(kind="llama"):
    large = tiny(kind, layers=2, seed=1)
    return [nudged(large), nudged(large, seed=6), large]


def recorded(lms, graphs=True):
    return [LM(nudged(lm, 0).model, graphs=graphs) for lm in lms]


def rows_of(prompts, rows):
    ids, mask = prompts
    return (ids, mask) if rows == 4 else (ids[:1], mask[:1])


def same(monkeypatch, lms, others, decoder, policy, prompts, sampling=Sampling(), **changes):
    everywhere(monkeypatch, False)
    expected = generate(DECODERS[decoder](lms, policy), *prompts, sampling=sampling, **OPTIONS | changes)
    everywhere(monkeypatch)
    found = generate(DECODERS[decoder](others, policy), *prompts, sampling=sampling, **OPTIONS | changes)
    assert found.sequences.equal(expected.sequences)
    assert found.lengths.equal(expected.lengths) and found.writers.equal(expected.writers)
    for name in ("escalated", "drafted", "accepted"):
        assert found.counts[name] == expected.counts[name]
    assert "wasted" not in expected.counts
    return found


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ("llama", "gemma2")))
def test_every_architecture(kind, rows, prompts, monkeypatch, caplog):
    lms = trio(kind)
    same(monkeypatch, lms, recorded(lms), "two", POLICIES["rule"], rows_of(prompts, rows))
    if kind == "llama-scaled":  # its frequencies depend on the longest text, which the host reads
        assert "forwards run eagerly" in caplog.text
    else:
        assert not caplog.records and Tape.made


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_policy(decoder, graphs, rows, prompts, monkeypatch, caplog):
    lms = trio()
    others = recorded(lms, graphs)
    for policy in [None] if decoder in ("autoregressive", "speculative") else POLICIES.values():
        for sampling in (Sampling(), Sampling(1.0)):
            same(monkeypatch, lms, others, decoder, policy, rows_of(prompts, rows), sampling)
    assert not caplog.records and bool(Tape.made) == graphs


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("decoder", mostly_slow(DECODERS, ["two", "three", "stop, kept"]))
def test_every_decoder(decoder, rows, prompts, monkeypatch, caplog):
    lms = trio()
    others = recorded(lms)
    same(monkeypatch, lms, others, decoder, POLICIES["logistic"], rows_of(prompts, rows))
    same(monkeypatch, lms, others, decoder, POLICIES["random"], rows_of(prompts, rows), Sampling(1.0))
    assert not caplog.records and Tape.made


@pytest.mark.parametrize("budget", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 9))])
@pytest.mark.parametrize("eos", [(), tuple(range(3, 20))])
def test_ends_and_budgets(eos, budget, prompts, monkeypatch):
    lms = trio()
    for decoder in ("two", "two, unchecked ends", "autoregressive"):
        changes = {"eos_token_id": eos, "max_new_tokens": budget}
        same(monkeypatch, lms, recorded(lms), decoder, POLICIES["rule"], prompts, **changes)


@pytest.mark.slow
def test_another_policy_of_the_same_shape_records_nothing(prompts, monkeypatch):
    lms, one = trio(), rows_of(prompts, 1)  # of several rows other ones would end first: other numbers of rows
    others = recorded(lms)

    def write(policy):
        writers = same(monkeypatch, lms, others, "two", policy, one, eos_token_id=()).writers
        (recorder,) = others[0].recorders.free
        return writers, len(recorder.steps.graphs)

    for kind in (Logistic, MLP):
        first, second = POLICIES[kind.kind], fitted(kind, 1)
        _, made = write(first)
        found = [write(policy) for policy in (first.with_threshold(0.2), second, second.with_threshold(0.9))]
        assert [count for _, count in found] == [made] * 3
        assert not found[0][0].equal(found[2][0])
    _, made = write(Rule("entropy", 2.0))
    assert write(Rule("entropy", 2.8))[1] == made
    assert write(Rule("entropy", 2.0, "<="))[1] == made + 1  # the sign is no buffer
    assert write(Margins().fit(*toy_margins()))[1] == made + 2


def toy_margins():
    rng = np.random.default_rng(0)
    best = rng.uniform(0.3, 1, 300)
    columns = np.stack([best, best * rng.uniform(0, 1, 300), rng.integers(0, 8, 300)], 1)
    return columns, (rng.random(300) > best).astype(float)


def test_a_policy_that_cannot_be_recorded_runs_eagerly(prompts, monkeypatch):
    lms = trio()
    same(monkeypatch, lms, recorded(lms), "two", lambda step: step.logits.amax(-1) < 3.0, prompts)


TEXTS = [[5, 30, 11], [7], [8, 3, 20, 6, 12, 9, 4], [30, 31], [4, 4, 4, 4], [6, 2], [3] * 9]
QUEUED = DECODERS | {
    "lookup": lambda lms, policy: Speculative([PromptLookup(2), lms[-1]], 3),
    "mtad": lambda lms, policy: MTAD(lms[1:], beams=3, length=3),
    "mmtad": lambda lms, policy: MTAD(lms[1:], beams=3, length=3, tree=True),
    "specinfer": lambda lms, policy: SpecInfer(lms[1:], (3, 2, 1)),
    "mtjd": lambda lms, policy: MTJD(lms[-1], 3, beams=8),
}


def queued(decoder, texts, sampling=Sampling(), many=generate_many, **options):
    """The answers in their order: continuous batching in two or three rows."""
    options = {
        "max_new_tokens": 11,
        "eos_token_id": (5, 9, 12, 20, 30),
        "seed": 3,
        "sampling": sampling,
        "batch_size": 3,
    } | options
    found = sorted(many(decoder, texts, **options), key=lambda answer: answer.prompt)
    assert [answer.prompt for answer in found] == list(range(len(texts)))
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("decoder", mostly_slow(QUEUED, ["autoregressive", "two", "three", "stop, kept", "mtjd"]))
def test_rows_that_begin_anew(decoder, graphs, size, monkeypatch, caplog):
    """A row that ends is replaced while the device works on: the text of each prompt is its text alone."""
    lms, lengths = trio(), set()
    others, make = recorded(lms, graphs), QUEUED[decoder]
    for policy in (POLICIES["logistic"], POLICIES["random"]):
        for sampling in (Sampling(), Sampling(1.0)):
            everywhere(monkeypatch, False)
            alone = [queued(make(lms, policy), [text], sampling, seed=3 + i)[0] for i, text in enumerate(TEXTS)]
            everywhere(monkeypatch)
            found = queued(make(others, policy), TEXTS, sampling, batch_size=size)
            assert [(a.tokens, a.writers) for a in found] == [(a.tokens, a.writers) for a in alone]
            lengths |= {len(answer.tokens) for answer in found}
    assert len(lengths) > 2 and not caplog.records


def test_a_queue_makes_the_host_wait_once_a_text(monkeypatch):
    """Not once a token: while rows are replaced, too."""
    waited = []
    everywhere(monkeypatch)
    monkeypatch.setattr("decoding.state.token_buffer.read_now", lambda values: waited.append(1) or values.tolist())
    lms = recorded(trio())
    found = queued(Backoff(lms[:2], POLICIES["rule"]), TEXTS, eos_token_id=())
    assert sum(len(answer.tokens) for answer in found) == 11 * len(TEXTS)
    assert len(waited) == 1  # the first token of each row


def test_what_was_wasted_is_counted(prompts, monkeypatch):
    lms = trio()
    found = same(monkeypatch, lms, recorded(lms), "two", POLICIES["rule"], rows_of(prompts, 1), eos_token_id=())
    small, large = found.counts["calls"]
    assert 0 < large == found.counts["escalated"][0]
    # A step for each token and for each that is computed twice, and one or, after an escalation, two at the end.
    assert 1 <= small - 14 - found.counts["wasted"] <= 2
    assert large - 1 <= found.counts["wasted"] <= large


def test_who_looks_at_every_token_hears_of_it_in_time(prompts, monkeypatch):
    everywhere(monkeypatch)
    lms, pieces = recorded(trio()), []
    found = generate(Backoff(lms[:2], POLICIES["rule"]), *prompts, stream=pieces.append, **OPTIONS)
    assert "wasted" not in found.counts and pieces


@pytest.fixture
def away(monkeypatch):
    """Three models on the simulated device."""
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad())
    monkeypatch.setattr("decoding.models.lm.family", lambda model: True)
    lms = trio()
    with Elsewhere():
        yield lms, [LM(move(copy.deepcopy(lm.model)), graphs=True) for lm in lms]


@pytest.mark.slow
@pytest.mark.parametrize("decoder", QUEUED)
def test_rows_that_begin_anew_on_the_simulated_device(decoder, away, caplog):
    lms, there = away
    for policy in (POLICIES["logistic"], POLICIES["random"]):
        # Not as it is decorated: these tensors cannot be those of inference mode.
        with torch.no_grad():
            make = QUEUED[decoder](there, move(copy.deepcopy(policy)))
            found = queued(make, TEXTS, many=generate_many.__wrapped__)
        with _disable_current_modes():
            assert found == queued(QUEUED[decoder](lms, policy), TEXTS)
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["autoregressive", "two", "two, unchecked ends", "three", "speculative"])
def test_on_the_simulated_device(decoder, away, prompts, caplog):
    lms, there = away
    for policy in (POLICIES["logistic"], POLICIES["random"]):
        moved = move(copy.deepcopy(policy))
        found = generate(DECODERS[decoder](there, moved), *(part.to(DEVICE) for part in prompts), **OPTIONS)
        with _disable_current_modes():
            expected = generate(DECODERS[decoder](lms, policy), *prompts, **OPTIONS)
        assert found.sequences.tolist() == expected.sequences.tolist()
        assert found.writers.tolist() == expected.writers.tolist()
    assert not caplog.records and Tape.made
