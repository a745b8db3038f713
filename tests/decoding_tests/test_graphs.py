"""Recorded forwards, with a stand-in for the GPU's graphs: the text of eager ones, whatever is padded or reused."""

import gc
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tape import Tape
from tiny_models import mostly_slow, nudged, tiny
from tiny_runs import save_model

from decoding import LM, MTAD, Autoregressive, Backoff, Sampling, Speculative, generate
from decoding.cli.options import parse
from decoding.cli.terminal import show_statistics
from decoding.generation import commits, start
from decoding.kernels import cuda_graphs
from decoding.kernels.packed_products import pack
from decoding.models.defaults import load_model
from policies import Rule

OPTIONS = {"max_new_tokens": 15, "eos_token_id": 5, "pad_token_id": 0, "seed": 1}
KINDS = ["llama", "gpt2", "mistral-window", "gemma2", "bloom"]
FUSED = ["fused llama", "fused qwen2-window", "fused gemma3"]
CUT = Rule("entropy", 2.4)


@pytest.fixture(autouse=True)
def tape(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "CudaGraph", Tape)
    monkeypatch.setattr("decoding.models.lm.recordable", lambda model: True)
    monkeypatch.setattr("decoding.kernels.fused_forward.openmp", lambda: None)  # torch operations, as on CUDA
    monkeypatch.setattr(Tape, "made", [])


def made(kind):
    """The sessions of a ``fused`` one use the fused forward, as all do on CUDA."""
    fused = kind.startswith("fused ")
    lm = tiny(kind.removeprefix("fused "), layers=2, seed=1)
    if fused:
        pack(lm.model)
    assert (lm.fused_forward() is not None) == fused
    return lm


def recorded(lm):
    return LM(nudged(lm, 0).model, graphs=True)


DECODERS = {
    "autoregressive": lambda small, large: Autoregressive(large),
    "backoff": lambda small, large: Backoff([small, large], CUT),
    "speculative": lambda small, large: Speculative([small, large], 6),
    "stop": lambda small, large: Speculative([small, large], 5, stop=CUT),
    "mmtad": lambda small, large: MTAD([small, large], beams=2, tree=True),
}


@pytest.mark.parametrize("kind", mostly_slow([*KINDS, *FUSED], ("fused gemma2",)))
def test_the_text_is_that_of_eager_forwards(kind, prompts):
    """Several times in the same caches, by the same graphs."""
    large = made(kind)
    small = nudged(large)
    pair = recorded(small), recorded(large)
    # BLOOM counts distances in slots and reads no trees.
    for name in DECODERS.keys() - ({"mmtad"} if kind == "bloom" else set()):
        for sampling in (Sampling(), Sampling(1.0))[: 2 if kind == "llama" else 1]:
            expected, found = (
                generate(DECODERS[name](*models), *prompts, sampling=sampling, **OPTIONS)
                for models in ((small, large), pair)
            )
            assert torch.equal(found.sequences, expected.sequences), name
            assert found.counts == expected.counts, name
    assert Tape.made


def test_a_second_generation_records_nothing(prompts):
    lm = recorded(tiny())
    pair = [recorded(nudged(tiny())), lm]
    for decoder in (Autoregressive(lm), Speculative(pair, 3)):
        generate(decoder, *prompts, **OPTIONS)
        made = len(Tape.made)
        generate(decoder, *prompts, **OPTIONS)
        assert len(Tape.made) == made > 0
    assert [len(one.recorders.free) for one in pair] == [1, 1]


def test_few_shapes_are_recorded(caplog):
    """One for the prompt, one token at a time after it, and another where the cache is read further."""
    caplog.set_level("INFO", "decoding.kernels.recorded_steps")
    lm = recorded(tiny(max_position_embeddings=512))
    generate(Autoregressive(lm), torch.tensor([[3] * 7]), max_new_tokens=200, eos_token_id=())
    (recorder,) = lm.recorders.free
    assert recorder.capacity == 256
    assert [*recorder.graphs] == [(1, 8, 128, 1, False), (1, 1, 128, 1, False), (1, 1, 256, 1, False)]
    generate(Autoregressive(lm), torch.tensor([[3] * 40]), max_new_tokens=2, eos_token_id=())
    assert len(recorder.graphs) == 3  # a long prompt runs eagerly
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3 and said[2].startswith("recorded a forward of 1 rows, 1 tokens, 256 slots in ")


@torch.inference_mode()
def test_two_sessions_at_once_have_a_cache_each(prompts):
    lm = recorded(tiny())
    expected = generate(Autoregressive(lm), *prompts, **OPTIONS).sequences
    runs = [start(Autoregressive(lm), *prompts, 15, 5, Sampling(), 1) for _ in range(2)]
    assert runs[0].sessions[0].cache is not runs[1].sessions[0].cache
    for _ in zip(*(commits(Autoregressive(lm), run) for run in runs), strict=True):
        pass
    width = prompts[0].shape[1]
    for run in runs:
        for row in range(4):
            answer = run.buffer.answer(row)
            assert answer == expected[row, width : width + len(answer)].tolist()
    del run, runs
    gc.collect()
    assert len(lm.recorders.free) == 2


def test_a_failure_is_said_once_and_forwards_run_eagerly(prompts, monkeypatch, caplog):
    tried = []

    def fails(run):
        tried.append(run())
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    lm = tiny()
    monkeypatch.setattr(cuda_graphs, "CudaGraph", fails)
    other = recorded(lm)
    for _ in range(2):
        found = generate(Autoregressive(other), *prompts, **OPTIONS)
        assert torch.equal(found.sequences, generate(Autoregressive(lm), *prompts, **OPTIONS).sequences)
    (record,) = caplog.records
    assert "forwards run eagerly: operation not permitted when stream is capturing" in record.getMessage()
    assert len(tried) == 1


def test_new_weights_are_recorded_anew(prompts):
    lm, other = recorded(tiny()), tiny(seed=7)
    generate(Autoregressive(lm), *prompts, **OPTIONS)
    with torch.no_grad():
        for mine, theirs in zip(lm.model.parameters(), other.model.parameters(), strict=True):
            mine.data = theirs.clone()
    found = generate(Autoregressive(lm), *prompts, **OPTIONS)
    assert torch.equal(found.sequences, generate(Autoregressive(other), *prompts, **OPTIONS).sequences)
    assert len(lm.recorders.free) == 1


def test_weights_that_change_in_their_place_are_recorded_anew(prompts):
    """The fused forward has copies of some of them."""
    lm = recorded(made("fused llama"))
    before = generate(Autoregressive(lm), *prompts, **OPTIONS).sequences
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    found = generate(Autoregressive(lm), *prompts, **OPTIONS).sequences
    plain = LM(lm.model)
    assert torch.equal(found, generate(Autoregressive(plain), *prompts, **OPTIONS).sequences)
    assert not torch.equal(found, before)
    assert len(lm.recorders.free) == 1


def test_what_was_lent_before_the_weights_changed_is_not_kept(prompts):
    lm = recorded(tiny())
    session = lm.session(1, 8)
    with torch.no_grad():
        lm.model.lm_head.weight.mul_(2)
    other = lm.session(1, 8)
    assert other.recorder is not session.recorder
    mine = other.recorder
    del session, other
    gc.collect()
    assert lm.recorders.free == [mine]


def test_all_recordings_share_one_pool(monkeypatch):
    """Of two models, as ``CudaGraph`` asks CUDA for them."""
    monkeypatch.undo()
    pools, handles = [], iter([(0, 1), (0, 2)])
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool: pools.append(pool) or nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: SimpleNamespace(wait_stream=lambda other: None))
    cuda_graphs.shared_pool.cache_clear()
    ran = []
    for _ in range(2):
        cuda_graphs.CudaGraph(lambda: ran.append(1))
    cuda_graphs.shared_pool.cache_clear()
    assert pools == [(0, 1)] * 2 and len(ran) == 8


def test_what_recordings_take_is_told(prompts, capsys):
    lm = recorded(tiny())
    cost = lm.recorders.cost
    assert cost.count == 0
    generate(Autoregressive(lm), *prompts, **OPTIONS)
    assert cost.count == len(Tape.made) > 0 and cost.seconds > 0
    state = start(Autoregressive(lm), *prompts, 15, 5, Sampling(), 1)
    show_statistics(state, ["large"], 1.0)
    assert f"{cost.count} graphs recorded in {cost.seconds:.1f} s" in capsys.readouterr().err


def test_models_are_loaded_with_graphs_unless_they_are_refused(tmp_path):
    folder = save_model(tmp_path / "model", 1, 1)
    assert LM.load(folder).recorders is not None
    assert LM.load(folder, graphs=False).recorders is None
    assert load_model("small", str(folder), graphs=False).recorders is None
    assert parse(["text"]).graphs and not parse(["text", "--no-graphs"]).graphs


def test_a_cpu_has_none(monkeypatch):
    monkeypatch.undo()
    assert LM(tiny().model, graphs=True).recorders is None
    assert LM(tiny().model).recorders is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_on_cuda(kind, prompts, monkeypatch, caplog):
    monkeypatch.undo()
    large = tiny(kind, layers=2, seed=1)
    large = LM(large.model.cuda())
    assert (large.fused_forward() is not None) == (kind not in ("gpt2", "bloom"))
    small = nudged(large)
    ids, mask = (t.cuda() for t in prompts)
    for name in ("autoregressive", "speculative", "stop"):
        expected = generate(DECODERS[name](small, large), ids, mask, **OPTIONS)
        found = generate(DECODERS[name](recorded(small), recorded(large)), ids, mask, **OPTIONS)
        assert torch.equal(found.sequences, expected.sequences)
    assert not caplog.records
