"""Divergence of weights of few bits from float32, as transformers' own logits have it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import save_model

from decoding.kernels.integer_products import available
from experiments import weights

needs_kernel = pytest.mark.skipif(not available(), reason="needs an x86 processor with AVX2 and torch on OpenMP")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Path(save_model(tmp_path_factory.mktemp("models") / "large", seed=1, layers=2))


@needs_kernel
def test_the_divergence_of_rounded_weights(folder, capsys):
    settings = weights.Weights(folder, ("float32", "int8", "int4"), folder, limit=3, max_new_tokens=5)
    same, eight, four = weights.run(settings)
    assert len(same.kl) == len(eight.kl) > 3 and np.abs(same.kl).max() < 1e-6 and same.same.all()
    assert 1e-7 < eight.kl.mean() < four.kl.mean()
    said = capsys.readouterr().out
    assert f"{len(same.kl)} positions of 3 answers" in said and "would have written\nfloat32         100.0%" in said
    assert [line.split()[0] for line in said.splitlines()[3:6]] == ["float32", "int8", "int4"]


def test_it_is_that_of_the_logits(folder):
    texts = [([3, 4, 5], [6, 7]), ([8], [9, 10, 11])]
    lm = weights.load(folder, "float32")
    reference = np.log(np.full((5, lm.vocab), 1 / lm.vocab, np.float32))
    row = weights.compared("x", weights.read(folder, "float32", texts), reference)
    expected = []
    for prompt, answer in texts:
        logits = lm.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1, : lm.vocab]
        expected += (reference[0] - logits.detach().log_softmax(-1).numpy()).mean(-1).tolist()
    np.testing.assert_allclose(row.kl, expected, rtol=1e-4, atol=1e-5)


def test_bad_input_is_one_sentence(folder, tmp_path, capsys):
    for options, said in (
        (["--model", str(tmp_path / "no.gguf")], "no.gguf"),
        (["--model", str(folder), "--dtypes", "int3"], "--dtypes must be one of"),
        (["--model", str(folder), "--limit", "0"], "--limit must be at least 1"),
        (["--model", str(folder), "--dtypes", "file"], "is not a quantised GGUF file"),
    ):
        assert weights.main(options) == 2
        captured = capsys.readouterr()
        assert said in captured.err and captured.err.count("\n") == 1
