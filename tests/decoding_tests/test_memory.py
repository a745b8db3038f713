"""The cache is as large as it must be, what cannot fit is refused with its size, and nothing is left behind."""

import gc
import tracemalloc

import pytest
import torch
from tiny_models import KINDS, nudged, tiny

from decoding import MTAD, Autoregressive, Backoff, Speculative, generate
from decoding.errors import MemoryTooSmall
from decoding.models import memory
from policies import Rule

IDS = torch.tensor([[0, 0, 3, 4, 5], [0, 0, 0, 6, 7]])
MASK = (IDS > 0).long()
large = tiny(layers=2, seed=1)
small = nudged(large)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_known_beforehand(kind):
    lm = tiny(kind)
    session = lm.session(2, 6)
    session.catch_up(IDS[:, 2:], torch.tensor([3, 2]), torch.arange(2))
    stored = [t.nbytes for layer in session.cache.layers for t in (layer.keys, layer.values)]
    assert sum(stored) == memory.cache_bytes(lm, 2, 6)


@pytest.mark.parametrize(
    ("decoder", "scratch"),
    [
        (Autoregressive(large), 0),
        (Backoff([small, large], Rule.never()), 0),
        (Speculative([small, large], length=5), 6),
        (MTAD([small, large], beams=3, length=5), 16),
    ],
    ids=["autoregressive", "backoff", "speculative", "mtad"],
)
def test_capacity_is_longest_prompt_budget_and_scratch(decoder, scratch, monkeypatch):
    opened = []
    session = type(large).session
    monkeypatch.setattr(type(large), "session", lambda lm, *size: opened.append(size) or session(lm, *size))
    generate(decoder, IDS, MASK, max_new_tokens=7, eos_token_id=())
    assert opened == [(2, 3 + 7 + scratch, scratch)] * len(decoder.models)


def test_what_does_not_fit_is_refused_with_its_size(monkeypatch):
    long = tiny(max_position_embeddings=2**40)
    calls = []
    long.model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(MemoryTooSmall, match=r"2 rows of 1\d{9} tokens need \d+\.\d\d GiB, but cpu has \d+\.\d\d GiB"):
        memory.check_fits([long], 2, 10**9 + 3)
    size = memory.cache_bytes(long, 2, 10)
    for room, models, fits in ((size, [long], True), (size - 1, [long], False), (2 * size - 1, [long, long], False)):
        monkeypatch.setattr(memory, "available", lambda device, room=room: room)
        decoder = Autoregressive(long) if len(models) == 1 else Backoff(models, Rule.never())
        if fits:
            generate(decoder, IDS, MASK, max_new_tokens=7)
        else:
            calls.clear()
            with pytest.raises(ValueError, match="the caches of 2 rows of 10 tokens need 0.00 GiB"):
                generate(decoder, IDS, MASK, max_new_tokens=7)
            assert not calls


def test_what_is_available():
    assert 0 < memory.available(torch.device("cpu")) <= memory._physical() < 2**50
    assert memory.available(torch.device("meta")) == float("inf")


def test_a_prompt_of_4000_tokens():
    lm = tiny(layers=1, max_position_embeddings=8192)
    ids = torch.randint(3, 37, (2, 4000), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :3000] = 0
    result = generate(Speculative([nudged(lm), lm]), ids, mask, max_new_tokens=6, eos_token_id=())
    with torch.no_grad():
        for text in (result.sequences[:1], result.sequences[1:, 3000:]):
            said = lm.model(text, logits_to_keep=7).logits[0, :-1].argmax(-1)
            assert said.tolist() == text[0, -6:].tolist()


@pytest.mark.slow
def test_a_thousand_generations_leave_nothing_behind():
    unsure = Rule("entropy", 2.4)
    decoders = [
        Speculative([small, large], stop=unsure),
        Backoff([small, large], unsure),
        MTAD([small, large], beams=2, length=2, tree=True),
    ]

    def run(times):
        for _ in range(times):
            for decoder in decoders:
                generate(decoder, IDS, MASK, max_new_tokens=4, eos_token_id=())
        gc.collect()
        return tracemalloc.get_traced_memory()[0], tensors()

    def tensors():
        return sum(o.nbytes for o in gc.get_objects() if type(o) is torch.Tensor)

    tracemalloc.start()
    try:
        before, after = run(50), run(500)
    finally:
        tracemalloc.stop()
    assert after[0] - before[0] < 50_000
    assert after[1] <= before[1]
