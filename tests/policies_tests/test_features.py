"""Features against a float64 reference, and the token classes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from feature_steps import step_of
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import FEATURES, feature_columns, history_for, token_classes

DISTRIBUTION = ("entropy", "varentropy", "top1", "margin", "top10", "top10_mass")


def reference(logits):
    """The distribution's features of one row of logits, in float64 and by the textbook."""
    x = np.asarray(logits, dtype=np.float64)
    p = np.exp(x - x.max())
    p /= p.sum()
    surprise = -np.log(p[p > 0])
    kept = p[p > 0]
    entropy = (kept * surprise).sum()
    top = np.sort(p)[::-1][:10]
    varentropy = (kept * (surprise - entropy) ** 2).sum()
    return [entropy, varentropy, top[0], top[0] - top[1], top[0] / top.sum(), top.sum()]


logit = st.one_of(st.just(-np.inf), st.floats(-60, 60, width=32))


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 40).flatmap(lambda v: st.lists(st.lists(logit, min_size=v, max_size=v), min_size=1, max_size=3)))
def test_distribution_features_match_float64(rows):
    rows = [[0.0, *row[1:]] for row in rows]  # at least one token is allowed
    got = feature_columns(step_of(torch.tensor(rows)), DISTRIBUTION)
    np.testing.assert_allclose(got.numpy(), [reference(row) for row in rows], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("vocab", [640, 1500, 2048])
def test_the_largest_are_found_in_any_chunk(vocab):
    """Spread over many chunks, and all in one; a vocabulary need not be a multiple of a chunk."""
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(0))
    logits[1, -12:] += 9
    logits[2, 64:76] += 9
    got = feature_columns(step_of(logits), DISTRIBUTION)
    np.testing.assert_allclose(got.numpy(), [reference(row) for row in logits], rtol=2e-4, atol=2e-5)


def test_one_allowed_token_is_certain():
    logits = torch.full((1, 50), -torch.inf)
    logits[0, 7] = 4.0
    assert feature_columns(step_of(logits), DISTRIBUTION).tolist() == [[0.0, 0.0, 1.0, 1.0, 1.0, 1.0]]


def test_large_logits_lose_no_precision():
    logits = torch.randn(4, 100)
    near, far = (feature_columns(step_of(logits + shift), DISTRIBUTION) for shift in (0.0, 4096.0))
    torch.testing.assert_close(near, far, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_broken_logits_give_nan_in_their_row_only(broken):
    logits = torch.randn(3, 30)
    logits[1, 4] = broken
    got = feature_columns(step_of(logits), DISTRIBUTION)
    assert got[1].isnan().all() and got[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_is_computed_in_float32(dtype):
    logits = torch.randn(5, 64).to(dtype)
    got = feature_columns(step_of(logits), DISTRIBUTION)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, feature_columns(step_of(logits.float()), DISTRIBUTION))


def test_means_skip_what_is_unknown():
    nan = torch.nan
    history = torch.tensor([[[1.0, nan], [3.0, 1.0]], [[nan, nan], [nan, nan]]])
    step = step_of(torch.randn(2, 9), history=history)
    got = feature_columns(step, ("mean_entropy", "mean_agreed"), history=("entropy", "agreed"))
    assert got[0].tolist() == [2.0, 1.0] and got[1].isnan().all()


def test_history_columns_are_found_by_name():
    assert history_for(("mean_agreed", "entropy", "mean_entropy", "mean_agreed")) == ("agreed", "entropy")
    step = step_of(torch.randn(1, 9), history=torch.tensor([[[5.0, 7.0]]]))
    assert feature_columns(step, ("mean_entropy",), history=("agreed", "entropy")).tolist() == [[7.0]]


def test_only_what_is_asked_is_computed():
    step = SimpleNamespace(position=torch.arange(4), since_large=torch.arange(4))  # no logits at all
    assert feature_columns(step, ("since_large", "position")).shape == (4, 2)
    assert feature_columns(step, ()).shape == (4, 0)


def test_what_is_missing_is_said():
    step = step_of(torch.randn(2, 9))
    with pytest.raises(ValueError, match="unknown feature 'entorpy'; the known ones are entropy, "):
        feature_columns(step, ("entorpy",))
    with pytest.raises(ValueError, match="'mean_agreed' needs step.history with a column for 'agreed'"):
        feature_columns(step, ("mean_agreed",), history=("agreed",))
    with pytest.raises(ValueError, match=r"'last_is_digit' needs classes=token_classes\(tokenizer\)"):
        feature_columns(step, ("last_is_digit",))


class ByteLevel:
    """A byte-level BPE tokenizer in miniature: tokens are spelled in its alphabet, decode gives text."""

    texts = (" the", "ing", "7", " 42", ".", "\n\n", ").\n", "“", "\ufffd", "a1", " ")
    tokens = ("Ġthe", "ing", "7", "Ġ42", ".", "ĊĊ", ").Ċ", "âĢľ", "Ģ", "a1", "Ġ")
    expected = ("w", "", "d", "wd", "p", "n", "pn", "p", "", "", "w")

    def __len__(self):
        return len(self.tokens)

    def convert_ids_to_tokens(self, ids):
        return [self.tokens[i] for i in ids]

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids)


class Sentences(ByteLevel):
    """The same for SentencePiece, whose decode drops a leading space."""

    texts = ("the", "ing", "42", "\n", "</s>", "?", "")
    tokens = ("▁the", "ing", "▁42", "<0x0A>", "</s>", "?", None)
    expected = ("w", "", "wd", "n", "", "p", "")


@pytest.mark.parametrize("tokenizer", [ByteLevel(), Sentences()], ids=["byte-level", "sentencepiece"])
def test_token_classes(tokenizer):
    classes = token_classes(tokenizer)
    assert classes.dtype == torch.uint8 and classes.shape == (len(tokenizer),)
    names = ("last_is_word_start", "last_is_digit", "last_is_punctuation", "last_is_newline")
    step = step_of(torch.randn(len(tokenizer), 5), last_token=torch.arange(len(tokenizer)))
    columns = feature_columns(step, names, classes=classes)
    assert ["".join(c for c, flag in zip("wdpn", row, strict=True) if flag) for row in columns] == list(
        tokenizer.expected
    )


def test_features_of_both_models_match_float64():
    q, p = torch.randn(2, 50, 7) * 2
    token = torch.arange(50) % 7
    names = ("kl", "js", "tv", "target_entropy", "target_surprise", "target_regret", "log_ratio")
    got = feature_columns(step_of(q, target_logits=p, token=token), names).double()
    a, b = (x.double().softmax(-1) for x in (q, p))
    m = (a + b) / 2
    kl = lambda x, y: (x * (x / y).log()).sum(-1)  # noqa: E731
    mine, large = (x.gather(1, token[:, None])[:, 0] for x in (a, b))
    expected = [
        kl(a, b),
        (kl(a, m) + kl(b, m)) / 2,
        (a - b).clamp(min=0).sum(-1),
        -(b * b.log()).sum(-1),
        -large.log(),
        b.amax(1).log() - large.log(),
        (mine / large).log(),
    ]
    torch.testing.assert_close(got, torch.stack(expected, 1), rtol=1e-4, atol=1e-5)


def test_features_of_both_models_need_both():
    with pytest.raises(ValueError, match="drafted tokens that the larger model has read"):
        feature_columns(step_of(torch.randn(2, 5)), ("kl",))


def test_every_feature_has_a_column():
    history, classes = history_for(tuple(FEATURES)), torch.zeros(9, dtype=torch.uint8)
    judged = {"target_logits": torch.randn(2, 3, 9), "token": torch.zeros(2, 3, dtype=torch.long)}
    step = step_of(torch.randn(2, 3, 9), history=torch.rand(2, 3, 8, 2), **judged)
    got = feature_columns(step, tuple(FEATURES), history, classes)
    assert got.shape == (2, 3, len(FEATURES)) and got.dtype == torch.float32 and got.isfinite().all()
