"""The stand-in for CUDA graphs: what it refuses, what it freezes, every architecture on it, and mutants found."""

import pytest
import torch
from code_mutants import mutate
from simulated_device import DEVICE, Elsewhere
from tape import Tape
from tiny_models import KINDS, mostly_slow, nudged, tiny

from decoding import LM, Autoregressive, Backoff, Sampling, Speculative, generate
from decoding.kernels import cuda_graphs
from decoding.kernels.packed_products import pack
from policies import Rule

OPTIONS = {"max_new_tokens": 10, "eos_token_id": 5, "pad_token_id": 0, "seed": 1}


@pytest.fixture(autouse=True)
def tape(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "CudaGraph", Tape)
    monkeypatch.setattr("decoding.models.lm.recordable", lambda model: True)
    monkeypatch.setattr("decoding.kernels.fused_forward.openmp", lambda: None)  # torch operations, as on CUDA
    monkeypatch.setattr(Tape, "made", [])


def test_python_is_frozen_and_tensors_are_not():
    x, times = torch.tensor([1.0]), [2.0]
    graph = Tape(lambda: x * times[0])
    assert graph.outputs.isnan().all()  # as after a capture, in which nothing runs
    x.fill_(3)
    times[0] = 100.0
    graph.replay()
    assert graph.outputs.tolist() == [6.0] and graph.launches == 1


def test_what_is_written_has_its_old_value_after_recording():
    x = torch.zeros(3)
    graph = Tape(lambda: x[1:].add_(1))
    assert x.tolist() == [0, 3, 3]  # three runs that warm up are real
    graph.replay()
    assert x.tolist() == [0, 4, 4]


@pytest.mark.parametrize(
    "run",
    [
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 1)[x > 0],
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_waits_are_refused(run, mode):
    x = torch.ones(3)
    with mode(), pytest.raises(RuntimeError, match="capturing"):
        Tape(lambda: run(x))


def test_moves_are_refused_on_the_device_and_numbers_of_the_host_are_frozen():
    with Elsewhere(), torch.no_grad():
        x, cut = torch.ones(3).to(DEVICE), torch.tensor(2.0)
        for run in (lambda: x.to("cpu"), lambda: torch.tensor([1.0], device=DEVICE), lambda: x + torch.ones(3)):
            with pytest.raises(RuntimeError, match=r"capturing|same device"):
                Tape(run)
        graph = Tape(lambda: x + cut)
        cut.fill_(9)
        graph.replay()
        assert graph.outputs.tolist() == [3, 3, 3]
        with pytest.raises(RuntimeError, match="same device"):
            x.index_select(0, torch.tensor(1))


def pair(kind):
    fused = kind.startswith("fused ")
    lm = tiny(kind.removeprefix("fused "), layers=2, seed=1)
    if fused:
        pack(lm.model)
    return nudged(lm), lm


def recorded(lms):
    return [LM(nudged(lm, 0).model, graphs=True) for lm in lms]


CUT = Rule("entropy", 2.4)
DECODERS = {
    "autoregressive": lambda a, b: Autoregressive(b),
    "backoff": lambda a, b: Backoff([a, b], CUT),
    "speculative": lambda a, b: Speculative([a, b], 6),
    "stop": lambda a, b: Speculative([a, b], 5, stop=CUT),
}


def same_text(prompts, names=DECODERS, kind="llama", again=1, **options):
    lms = pair(kind)
    others = recorded(lms)
    for name in names:
        expected = generate(DECODERS[name](*lms), *prompts, **OPTIONS | options)
        for _ in range(again):
            found = generate(DECODERS[name](*others), *prompts, **OPTIONS | options)
            assert found.sequences.equal(expected.sequences), name


FUSED = ["fused llama", "fused phi3", "fused gemma2", "fused smollm3", "fused olmo2", "fused granite"]


@pytest.mark.parametrize("kind", mostly_slow([*KINDS, *FUSED], ("llama", "bloom", "fused gemma2")))
def test_every_architecture_is_recorded(kind, prompts, caplog):
    same_text(prompts, ["backoff", "stop"], kind)
    if kind == "llama-scaled":  # its frequencies depend on the longest text, which the host reads
        assert "forwards run eagerly" in caplog.text
    else:
        assert not caplog.records and Tape.made


LONG = torch.tensor([[3, 9, 4]]), None


def long_text():
    """Beyond the first 128 slots, in the same graphs."""
    lm = tiny(layers=1, seed=1, max_position_embeddings=512)
    found, expected = (
        generate(Autoregressive(one), LONG[0], max_new_tokens=160, eos_token_id=()) for one in (recorded([lm])[0], lm)
    )
    assert found.sequences.equal(expected.sequences)


def new_weights(prompts):
    (lm,) = recorded([pair("fused llama")[1]])
    generate(Autoregressive(lm), *prompts, **OPTIONS)
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    expected = generate(Autoregressive(LM(lm.model)), *prompts, **OPTIONS).sequences
    assert generate(Autoregressive(lm), *prompts, **OPTIONS).sequences.equal(expected)


def everything(prompts, caplog):
    same_text(prompts, again=2)
    same_text(prompts, ["speculative"], sampling=Sampling(1.0))
    long_text()
    new_weights(prompts)
    assert not caplog.records  # "no CUDA graphs, forwards run eagerly"


RUN, FILL, FORWARD = (
    ("decoding.kernels.cuda_graphs", "Recorder.run"),
    ("decoding.kernels.cuda_graphs", "Inputs.fill"),
    ("decoding.kv_cache.session", "_forward"),
)
COPIED = "self.ids[:, pad:], self.positions[:, pad:] = ids, positions"
QUERIES = "key = r, QUERIES[bisect_left(QUERIES, q)], reach,"
MUTANTS = {
    # A stand-in that runs the Python again lets this one through.
    "slots of the plan in place of the buffer": (
        *("decoding.kernels.cuda_graphs", "Recorder._record"),
        *("inputs.slots, inputs.rows", "plan.slots, inputs.rows"),
    ),
    "missing copy of the ids": (*FILL, COPIED, "self.positions[:, pad:] = positions"),
    "missing copy of the positions": (*FILL, COPIED, "self.ids[:, pad:] = ids"),
    "missing copy of the rows": (*FILL, "self.rows.copy_(rows)", "pass"),
    "padding is stored over the text": (*FILL, "if pad:", "if False:"),
    "outputs that the next replay overwrites": (*RUN, "logits.clone()", "logits"),
    "one graph for every reach": (*RUN, QUERIES, "key = r, QUERIES[bisect_left(QUERIES, q)], 128,"),
    "one graph for every number of tokens": (*RUN, QUERIES, "key = r, 8, reach,"),
    "one graph for every number of rows": (*RUN, "key = r, ", "key = self.batch, "),
    "host read in the forward": (*FORWARD, "out = model(", "int(ids[0, -1]); out = model("),
    "shape that depends on values": (*FORWARD, "out = model(", "ids[ids > 0]; out = model("),
    "weights of before": (
        *("decoding.kernels.cuda_graphs", "Recorders.lend"),
        *("if weights != self.weights:", "if self.weights is None:"),
    ),
}


@pytest.mark.parametrize("name", mostly_slow(MUTANTS, [*MUTANTS][:4]))
def test_every_mutant_is_found(name, prompts, monkeypatch, caplog):
    mutate(monkeypatch, *MUTANTS[name])
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        everything(prompts, caplog)


def test_without_a_mutation_nothing_is_found(prompts, caplog):
    everything(prompts, caplog)
