"""Faults of recorded steps, of the late host and of rows that begin anew: the text shows each of them."""

import numpy as np
import pytest
from code_mutants import mutate
from tape import Tape
from tiny_models import mostly_slow, nudged, tiny

from decoding import LM, Autoregressive, Backoff, Sampling, Speculative, generate, generate_many
from decoding.kernels import cuda_graphs
from policies import Logistic, Random, Rule

NAMES = ("entropy", "mean_entropy", "agreed", "since_large", "mean_agreed", "large_entropy", "repeated")
OPTIONS = {"max_new_tokens": 10, "eos_token_id": (5, 9), "seed": 1}
TEXTS = [[5, 30, 11], [7], [8, 3, 20, 6, 12, 9, 4], [30, 31], [4, 4, 4, 4], [6, 2], [3] * 9]
QUEUE = OPTIONS | {"eos_token_id": (5, 9, 12, 20, 30), "batch_size": 3}


@pytest.fixture(autouse=True)
def late(monkeypatch):
    """Graphs are tapes, and a host that reads a value is taken to wait."""
    monkeypatch.setattr(cuda_graphs, "CudaGraph", Tape)
    monkeypatch.setattr("decoding.models.lm.recordable", lambda model: True)
    monkeypatch.setattr("policies.features.fast_path.kernels", lambda: None)


def waits(monkeypatch, on):
    for module in ("state.generation_state", "state.host_reads", "drafting.draft_model"):
        monkeypatch.setattr(f"decoding.{module}.host_waits", lambda device: on)


def fitted(seed=0):
    table = np.random.default_rng(seed).normal(2.4, 1, (400, len(NAMES)))
    return Logistic(NAMES).fit(table, table[:, 0] + table[:, 1 + seed] > 4.8)


LEARNED = fitted()
EARLIER = LEARNED.with_threshold(0.3)
RUNS = {
    "rule": (lambda a, b: Backoff([a, b], Rule("entropy", 2.4)), Sampling()),
    "another threshold": (lambda a, b: Backoff([a, b], Rule("entropy", 1.6)), Sampling()),
    "learned": (lambda a, b: Backoff([a, b], LEARNED), Sampling()),
    "refitted": (lambda a, b: Backoff([a, b], fitted(1)), Sampling()),
    "drawn": (lambda a, b: Backoff([a, b], Random(0.3)), Sampling(1.0)),
    "ends": (lambda a, b: Backoff([a, b], Rule("entropy", 2.4), verify_eos=False), Sampling()),
    "alone": (lambda a, b: Autoregressive(a), Sampling()),
    "stop": (lambda a, b: Speculative([a, b], 4, stop=LEARNED, keep_stop_token=True), Sampling()),
    "stop earlier": (lambda a, b: Speculative([a, b], 4, stop=EARLIER, keep_stop_token=True), Sampling()),
    "ends are checked": (lambda a, b: Backoff([a, b], Rule("entropy", 9.0)), Sampling()),
    "and not": (lambda a, b: Backoff([a, b], Rule("entropy", 9.0), verify_eos=False), Sampling()),
    "draft": (lambda a, b: Speculative([a, b], 4), Sampling(1.0)),
}


def everything(monkeypatch, prompts, caplog):
    """Every run as a batch, alone with another seed, and as a queue, against a host that waits; one cache for all."""
    large = tiny(layers=1, seed=1)
    lms = [nudged(large), large]
    others = [LM(nudged(lm, 0).model, graphs=True) for lm in lms]
    for make, sampling in RUNS.values():
        found = []
        for on, pair in ((False, lms), (True, others)):
            waits(monkeypatch, on)
            batch = generate(make(*pair), *prompts, sampling=sampling, **OPTIONS)
            # As one row: the last one, which has no padding; with other ends and another seed.
            one = generate(make(*pair), prompts[0][:1], sampling=sampling, max_new_tokens=14, eos_token_id=7, seed=4)
            queue = {a.prompt: a for a in generate_many(make(*pair), TEXTS, sampling=sampling, **QUEUE)}
            told = [(r.sequences.tolist(), r.writers.tolist(), r.counts["escalated"]) for r in (batch, one)]
            found.append((told, queue))
        assert found[0] == found[1]
    assert not caplog.records  # "no CUDA graphs, forwards run eagerly"


STEPS, AHEAD, STATE = (f"decoding.{room}" for room in ("kernels.recorded_steps", "state.ahead", "state.policy_state"))
MUTANTS = {
    "stale buffer: the text of before": (
        *(STEPS, "RecordedSteps.keep"),
        *("self.places[key].copy_(value)", 'self.places[key] if name == "ids" else self.places[key].copy_(value)'),
    ),
    "threshold baked in": (STEPS, "RecordedSteps.keep_policy", "place.copy_(value)", "pass"),
    "tokens of warming up stay": (STEPS, "RecordedSteps._record", "self.used[name].copy_(value)", "pass"),
    "one recording for all shapes of policy": (STEPS, "RecordedSteps.run", "key = key, tuple", "key = key[1], tuple"),
    "one recording for any rows": (AHEAD, "AheadSteps.launch", "self.verify_eos, len(order), reach", "reach"),
    "rows of the step before": (AHEAD, "AheadSteps.launch", "if order != self.order:", "if not self.order:"),
    "ends are checked by one recording": (AHEAD, "AheadSteps.launch", '"ahead", self.verify_eos,', '"ahead",'),
    "an escalated token is committed": (AHEAD, "AheadSteps._commit", "going & ~up)", "going)"),
    "an escalated step is answered twice": (AHEAD, "write_ahead", "and row not in answered", ""),
    "a row goes on after its EOS": (
        *("decoding.state.token_buffer", "TokenBuffer.advance"),
        *("going & self.ends(tokens)", "going & (lengths < 0)"),
    ),
    "host read in a step": (AHEAD, "AheadSteps._step", "tokens =", "int(logits[0, 0]); tokens ="),
    "shape that depends on values": (AHEAD, "AheadSteps._step", "tokens =", "rows[rows > 0]; tokens ="),
    "history of a stop not rolled back": (
        *("decoding.drafting.draft_model", "draft_ahead"),
        *("policy_state.forget(rows, begin + drafted)", "pass"),
    ),
    "history that a recording does not see": (
        *(STATE, "PolicyState.keep"),
        *('"back", "answers", "history"):', '"back", "answers"):'),
    ),
    "what a row knows is in a new tensor": (STATE, "PolicyState._know", "if self.kept:", "if False:"),
    "a place in the draft baked in": (
        *("decoding.drafting.draft_model", "draft_ahead"),
        *("torch.zeros((), dtype=torch.long, device=rows.device)", "0"),
    ),
    "a draft that is overwritten": (
        *("decoding.drafting.draft_model", "draft_ahead"),
        *("logits.append(row_logits.clone())", "logits.append(row_logits)"),
    ),
    "a step of before is taken for the new text's": (AHEAD, "AheadSteps.heard", "launched.begun.items()", "()"),
    "a prompt that nobody read": (AHEAD, "AheadSteps.begin", "if n > 1:", "if False:"),
    "seeds of the text before": (
        *("decoding.state.token_buffer", "TokenBuffer.restart"),
        *("(self.budget if budget is None else budget), seed", "self.budget, self.seeds[row]"),
    ),
    "the large model's cache of the text before": (
        *("decoding.decoders.backoff", "Backoff._ahead"),
        *("buffer.on_restart.append(lambda row: operator.setitem(read, row, 0))", "pass"),
    ),
}
QUICK = ("threshold baked in", "a prompt that nobody read", "an escalated token is committed")


@pytest.mark.parametrize("name", mostly_slow(MUTANTS, QUICK))
def test_every_mutant_is_found(name, prompts, monkeypatch, caplog):
    mutate(monkeypatch, *MUTANTS[name])
    with pytest.raises((AssertionError, RuntimeError, LookupError, AttributeError, TypeError, ValueError)):
        everything(monkeypatch, prompts, caplog)


def test_without_a_mutation_nothing_is_found(prompts, monkeypatch, caplog):
    everything(monkeypatch, prompts, caplog)
