"""Sampling is exact: draws follow the enumerated distribution, and the test can tell a wrong rule from a right one."""

from itertools import product

import pytest
import torch
from tiny_models import eager, nudged, tiny, words
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from decoding import LM, Autoregressive, Backoff, Block, Exact, Sampling, SpecInfer, Speculative, generate
from policies import Random, Rule

pytestmark = pytest.mark.sampled

VOCAB, NEW, DRAWS, EOS = 6, 3, 4000, 4
PROMPT = torch.tensor([[3, 1, 5, 2]])
WIDTHS = {"llama": 0.25, "gpt2": 0.2, "gemma2": 0.25}  # of the first weights: drafts are right about half the time
TARGETS = {kind: tiny(kind, seed=3, vocab_size=VOCAB, initializer_range=width) for kind, width in WIDTHS.items()}
DRAFTS = {kind: nudged(lm, 0.5) for kind, lm in TARGETS.items()}
draft, target = DRAFTS["llama"], TARGETS["llama"]
SAMPLING = {
    "T=1": Sampling(temperature=1.0),
    "T=1.3 k=4": Sampling(temperature=1.3, top_k=4),
    "T=0.8 p=0.9": Sampling(temperature=0.8, top_p=0.9),
    "T=1.5 k=5 p=0.85 m=0.1": Sampling(temperature=1.5, top_k=5, top_p=0.85, min_p=0.1),
}
UNSURE = Rule("top1", 0.45, "<=")


class Keeper(Exact):
    """Wrong on purpose: draws from p, not from what is left of it, after a rejection."""

    def _residual(self, p, q, accepted, lengths):
        return p[torch.arange(len(accepted)), accepted]


class Believer(Exact):
    """Wrong on purpose: keeps every draft."""

    def __call__(self, block):
        block.accept_noise = torch.zeros_like(block.accept_noise)
        block.target_logits = block.target_logits.clone()
        block.target_logits[:, :-1] = block.draft_logits
        return super().__call__(block)


def warped(scores, sampling):
    """[n, vocab] probabilities by transformers' own processors, in its order."""
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k is not None else []
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p is not None else []
    warpers += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p is not None else []
    for warper in warpers:
        scores = warper(None, scores)
    return scores.double().softmax(-1)


@torch.no_grad()
def enumerated(lm, sampling):
    """[VOCAB ** NEW] probability of every answer, in the order of ``product``."""
    model = eager(lm)
    answers = torch.tensor(list(product(range(VOCAB), repeat=NEW)))
    texts = torch.cat([PROMPT.expand(len(answers), -1), answers], 1)
    logits = model(texts).logits[:, PROMPT.shape[1] - 1 : -1]
    steps = torch.stack([warped(logits[:, i], sampling) for i in range(NEW)], 1)
    return steps.gather(2, answers[..., None]).squeeze(2).prod(1)


def code(answers):
    """Index of each answer [n, NEW]; what lies behind an EOS does not count."""
    ended = (answers == EOS).cumsum(1).cumsum(1) > 1
    return (answers.masked_fill(ended, 0) * VOCAB ** torch.arange(NEW - 1, -1, -1)).sum(1)


def p_value(decoder, sampling, eos=(), seed=0):
    """Chi-square test of DRAWS texts against the enumerated truth; rare answers share a bin."""
    result = generate(
        decoder, PROMPT.expand(DRAWS, -1), max_new_tokens=NEW, eos_token_id=eos, sampling=sampling, seed=seed
    )
    truth = enumerated(decoder.models[-1], sampling)
    drawn = result.sequences[:, PROMPT.shape[1] :]
    everything = torch.tensor(list(product(range(VOCAB), repeat=NEW)))
    place = (lambda answers: code(answers)) if eos != () else lambda a: (a * torch.tensor([36, 6, 1])).sum(1)
    expected = torch.zeros(VOCAB**NEW, dtype=torch.float64).index_add(0, place(everything), truth) * DRAWS
    observed = torch.bincount(place(drawn), minlength=VOCAB**NEW).double()
    assert observed[expected == 0].sum() == 0, "drew a text that the target cannot write"
    rare = expected < 8
    expected, observed = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (expected, observed))
    expected, observed = expected[expected > 0], observed[expected > 0]
    assert len(expected) > 15
    statistic = ((observed - expected).square() / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), statistic / 2)), result


@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("how", ["autoregressive", "fixed", "stop", "stop-block"])
@pytest.mark.parametrize("kind", TARGETS)
def test_draws_follow_the_target(kind, how, sampling):
    target, draft = TARGETS[kind], DRAFTS[kind]
    decoder = {
        "autoregressive": Autoregressive(target),
        "fixed": Speculative([draft, target], length=2),
        "stop": Speculative([draft, target], length=4, stop=UNSURE),
        "stop-block": Speculative([draft, target], length=4, stop=UNSURE, accept=Block()),
    }[how]
    p, result = p_value(decoder, sampling)
    assert p > 0.001
    if isinstance(decoder, Speculative):
        assert 0.1 < result.counts["accepted"] / result.counts["drafted"] < 0.95
        if decoder.stop is not None:
            rows, options = PROMPT.expand(500, -1), {"max_new_tokens": NEW, "eos_token_id": (), "sampling": sampling}
            fixed = generate(Speculative([draft, target]), rows, seed=0, **options)
            assert result.counts["drafted"] / DRAWS < fixed.counts["drafted"] / len(rows)


@pytest.mark.parametrize(
    "options",
    [
        {"length": 1},
        {"length": 3, "stop": Random(0.4)},
        {"length": 3, "stop": UNSURE, "keep_stop_token": True, "accept": Block()},
    ],
    ids=["one", "random-stop", "unsure-stop"],
)
def test_draws_follow_the_target_to_its_eos(options):
    p, result = p_value(Speculative([draft, target], **options), SAMPLING["T=1"], eos=EOS, seed=7)
    assert p > 0.001
    assert len(result.lengths.unique()) == NEW


def other_vocabulary(role):
    """The pair, of which one model lacks two of the six tokens: in its tokenizer, or with them in its head."""
    few = {"draft, tokenizer": words(4), "draft, head": words(4), "target, padded": words(VOCAB)}[role]
    small = nudged(draft, 0.0).model
    if role == "draft, head":
        small.resize_token_embeddings(4)
    if role == "target, padded":
        small.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
        few.add_tokens([f"new{i}" for i in range(3)])
    return [LM(small, few), LM(target.model, words(VOCAB))]


@pytest.mark.parametrize("role", ["draft, tokenizer", "draft, head", "target, padded"])
@pytest.mark.parametrize("how", ["fixed", "block", "tree", "backoff"])
def test_draws_follow_the_target_whatever_tokens_the_draft_has(role, how):
    pair = other_vocabulary(role)
    decoder = {
        "fixed": Speculative(pair, length=2),
        "block": Speculative(pair, length=3, accept=Block()),
        "tree": SpecInfer(pair, (2, 2)),
        "backoff": Backoff(pair, Rule.always()),
    }[how]
    p, result = p_value(decoder, SAMPLING["T=1"])
    assert p > 0.001
    assert how == "backoff" or result.counts["accepted"] > DRAWS / 4
    assert how == "backoff" or result.sequences[:, 4:][result.writers == 0].max() < pair[0].vocab


@pytest.mark.parametrize("rule", [Keeper(), Believer()], ids=["residual-is-p", "accept-always"])
@pytest.mark.parametrize("options", [{"length": 2}, {"length": 4, "stop": UNSURE}], ids=["fixed", "stop"])
def test_a_wrong_rule_is_found_out(rule, options):
    p, _ = p_value(Speculative([draft, target], accept=rule, **options), SAMPLING["T=1"])
    assert p < 1e-9


def test_the_target_as_its_own_draft_is_accepted_whole():
    _, result = p_value(Speculative([target, target]), SAMPLING["T=1"])
    assert result.counts["accepted"] == result.counts["drafted"] > 0


@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
def test_backoff_always_draws_what_the_large_model_draws(sampling, prompts):
    large, small = tiny(layers=2, seed=1), tiny(layers=1, seed=2)
    ids, mask = prompts
    options = {"max_new_tokens": 15, "eos_token_id": 7, "pad_token_id": 0, "sampling": sampling, "seed": 3}
    alone = generate(Autoregressive(large), ids, mask, **options)
    handed = generate(Backoff([small, large], Rule.always()), ids, mask, **options)
    assert torch.equal(alone.sequences, handed.sequences)
    assert len(alone.sequences[:, ids.shape[1] :].unique()) > 5
