"""The teacher's labels are the log-probabilities of the model's own forward, whatever its architecture."""

import numpy as np
import pytest
import torch
from tiny_models import KINDS, tiny

from train.distillation import chunked_logits
from train.distillation.batches import Sequence, pad
from train.distillation.student import new_drafter
from train.distillation.teacher import TopK

TIGHT = {"gemma2": {"final_logit_softcapping": 1.5}, "cohere": {"logit_scale": 0.25}, "cohere2": {"logit_scale": 0.25}}
"""what is neutral in the toys and is not in published models"""


@pytest.mark.parametrize("kind", KINDS)
def test_stored_log_probabilities_are_the_models_own(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(chunked_logits, "CHUNK", 7)  # no multiple of any length here
    target = tiny(kind, **TIGHT.get(kind, {}))
    rng = np.random.default_rng(0)
    sequences = [Sequence(rng.integers(3, 37, n).tolist(), 2) for n in (5, 21, 9, 21)]
    store = TopK(tmp_path, sequences, 37)
    store.fill(target, 45)
    for i, sequence in enumerate(sequences):
        with torch.inference_mode():
            own = target.model(pad([sequence.ids])).logits[0].float().log_softmax(-1)
        ids, logprobs = store.labels(i)
        np.testing.assert_allclose(logprobs, own.numpy()[np.arange(len(ids))[:, None], ids], atol=1e-4)
        assert (np.diff(logprobs) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_drafter_can_begin_from_every_architecture(kind):
    target = tiny(kind).model
    drafter = new_drafter(target, 1, 32, 4, 64)
    assert drafter(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, target.config.vocab_size)


def test_a_drafter_of_a_target_that_counts_no_positions():
    target = tiny("bloom").model
    del target.config.max_position_embeddings  # the toys all have it, no published BLOOM has
    assert new_drafter(target, 1, 32, 4, 64).config.max_position_embeddings == 2048


def test_the_labels_have_their_room_on_disk_before_they_are_written(tmp_path):
    """A write to a map of a file that the disk has no room for ends the process by a signal."""
    store = TopK(tmp_path, [Sequence(list(range(3, 37)), 2)] * 300, 8)
    for path in (tmp_path.glob("*.ids"), tmp_path.glob("*.logprobs")):
        (file,) = path
        assert file.stat().st_blocks * 512 >= file.stat().st_size == 4 * 8 * 34 * 300
    store = TopK(tmp_path, store.sequences, 8)  # and again, as a run that goes on
    assert not store.ids.any()


@pytest.mark.parametrize("torn", ['{"sequences": [1', '{"sequences": [1, 2], "sha', "\0\0\0"])
def test_a_torn_last_line_names_no_finished_sequence(torn, tmp_path):
    sequences = [Sequence([3 + i, 5, 6], 2) for i in range(13)]
    whole, again = (TopK(tmp_path / name, sequences, 4) for name in ("whole", "again"))
    target = tiny()
    whole.fill(target, 3)
    again.fill(target, 3)
    first, *_ = again.done_file.read_text().splitlines(keepends=True)
    again.done_file.write_text(first + torn)
    again.ids[3:], again.logprobs[3:] = 0, 0
    again.fill(target, 3)
    for i in range(13):
        assert (again.labels(i)[1] == whole.labels(i)[1]).all()
    assert again.done_file.read_bytes() == whole.done_file.read_bytes()


def test_the_logits_of_the_whole_vocabulary_are_never_in_memory_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(chunked_logits, "CHUNK", 7)
    target, rows = tiny("gemma2"), []
    target.model.get_output_embeddings().register_forward_hook(lambda _, inputs, out: rows.append(out[..., 0].numel()))
    store = TopK(tmp_path, [Sequence([5] * 30, 2)] * 3, 4)
    store.fill(target, 90)
    assert max(rows) == 7
    assert sum(rows) == 90 + 1  # and the body reads every token once, in one forward
