"""The settings that models ship with: whatever decodes, a text is what transformers' generate makes of them."""

import pytest
import torch
import transformers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from packaging.version import Version
from processed_logits import Forced, generates, law, number, processed, reference, surprise, with_settings
from tiny_models import mostly_slow, nudged, tiny

from decoding import (
    MTAD,
    MTJD,
    Autoregressive,
    Backoff,
    Block,
    PromptLookup,
    Sampling,
    SpecInfer,
    Speculative,
    generate,
)
from decoding.errors import UnwritableText
from decoding.kv_cache.token_tree import TokenTree
from decoding.models.settings import APPLIED, text_processors
from policies import Random, Rule

pytestmark = pytest.mark.sampled

VOCAB = 37
MENDED = Version(transformers.__version__) >= Version("5.23")
"""whether a length penalty of an end that is banned is no NaN in transformers"""
target = tiny(seed=1)
DRAFTS = {"close": nudged(target), "far": nudged(target, 0.3), "stranger": tiny(layers=1, seed=2)}
DECODERS = {
    "alone": lambda draft: Autoregressive(target),
    "always handed off": lambda draft: Backoff([draft, target], Rule.always()),
    "draft": lambda draft: Speculative([draft, target], 4),
    "draft, block": lambda draft: Speculative([draft, target], 5, accept=Block()),
    "draft that stops": lambda draft: Speculative([draft, target], 6, stop=Rule("entropy", 2.4)),
    "draft that stops by chance": lambda draft: Speculative([draft, target], 4, Random(0.3), keep_stop_token=True),
    "lookup": lambda draft: Speculative([PromptLookup(2), target], 4),
    "tree": lambda draft: SpecInfer([draft, target], (3, 2, 1)),
    "beams": lambda draft: MTAD([draft, target], 3, 3, filtered=True),
    "tree of beams": lambda draft: MTAD([draft, target], 3, 3, tree=True, filtered=True),
    "blocks of one": lambda draft: MTJD(target, 1),
}
token = st.integers(1, VOCAB - 1)
words = st.lists(st.lists(token, min_size=1, max_size=3), min_size=1, max_size=6, unique_by=tuple)
SETTINGS = {
    "repetition_penalty": st.sampled_from([0.6, 1.05, 1.1, 1.7]),
    "no_repeat_ngram_size": st.integers(1, 4),
    "min_new_tokens": st.integers(0, 9),
    "min_length": st.integers(1, 14),
    "bad_words_ids": words,
    "suppress_tokens": st.lists(st.integers(0, 60), min_size=1, max_size=8),
    "begin_suppress_tokens": st.lists(token, min_size=1, max_size=20),
    "sequence_bias": words.map(lambda some: [[ids, (-1.0) ** i * (3.0 + i)] for i, ids in enumerate(some)]),
    "forced_eos_token_id": st.one_of(token, st.lists(token, min_size=1, max_size=2)),
    "forced_bos_token_id": token,
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 5), st.sampled_from([0.9, 1.2, 1.5])),
}
QWEN = {"repetition_penalty": 1.05, "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
"""the generation_config of Qwen2.5-Instruct, which also has two ends"""
any_settings = st.one_of(
    st.sampled_from(sorted(SETTINGS)).flatmap(lambda name: st.fixed_dictionaries({name: SETTINGS[name]})),
    st.fixed_dictionaries({}, optional=SETTINGS),
)
ragged = st.lists(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=4)
ends = st.sets(st.integers(2, VOCAB - 1), max_size=4).map(sorted)
careful = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def batch(prompts, padding=0):
    width = max(map(len, prompts)) + padding
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


def answers(decoder, prompts, padding=0, **options):
    ids, mask = batch(prompts, padding)
    try:
        result = generate(decoder, ids, mask, **options)
    except ValueError as error:  # such as a forced EOS that is suppressed, where transformers goes on with token 0
        assume("leaves a text no token" not in str(error))
        raise
    rows = zip(result.sequences[:, ids.shape[1] :].tolist(), result.lengths.tolist(), strict=True)
    return [row[:n] for row, n in rows], result


def possible(chosen, eos):
    """Leave out what transformers itself refuses: bad words that are all ends, no end to penalise, what is forced and
    suppressed."""
    decays = "exponential_decay_length_penalty" in chosen
    assume(not decays or (eos and (MENDED or len(chosen) == 1)))
    forced = [chosen.get("forced_bos_token_id"), chosen.get("forced_eos_token_id")]
    forced = {token for some in forced for token in (some if isinstance(some, list) else [some])}
    assume(not forced & set(chosen.get("suppress_tokens", ())))
    assume(not all(word in [[end] for end in eos] for word in chosen.get("bad_words_ids", [[0]])))


def test_every_setting_is_here():
    assert set(SETTINGS) == set(APPLIED)


@given(ragged, any_settings, ends, st.sampled_from(sorted(DECODERS)), st.sampled_from(sorted(DRAFTS)), st.data())
@settings(careful, max_examples=40)
def test_greedy_text_is_that_of_transformers(prompts, chosen, eos, decoder, draft, data):
    possible(chosen, eos)
    budget = data.draw(st.integers(1, 11), "budget")
    with_settings(target, chosen, eos)
    found, _ = answers(DECODERS[decoder](DRAFTS[draft]), prompts, data.draw(st.integers(0, 2)), max_new_tokens=budget)
    assert found == [generates(target, prompt, budget) for prompt in prompts]


@pytest.mark.parametrize("decoder", mostly_slow(DECODERS, [*DECODERS][:5]))
def test_the_settings_of_qwen(decoder, prompts):
    with_settings(target, QWEN, [4, 6])
    rows = [row[keep.bool()].tolist() for row, keep in zip(*prompts, strict=True)]
    found, _ = answers(DECODERS[decoder](DRAFTS["close"]), rows, max_new_tokens=24)
    assert found == [generates(target, prompt, 24) for prompt in rows]
    ignored = {"ignore_generation_config": ["repetition_penalty"]}
    plain, _ = answers(DECODERS[decoder](DRAFTS["close"]), rows, max_new_tokens=24, **ignored)
    assert plain != found
    with_settings(target, {}, [4, 6])
    assert answers(DECODERS[decoder](DRAFTS["close"]), rows, max_new_tokens=24)[0] == plain


@given(ragged, any_settings, ends, st.integers(1, 9), st.integers(0, 99))
@settings(careful, max_examples=15)
def test_a_hand_off_writes_by_the_rules_of_the_last_model(prompts, chosen, eos, budget, seed):
    """Each token is the best of the model that wrote it; the settings of a smaller model do not count."""
    possible(chosen, eos)
    with_settings(target, chosen, eos)
    small = with_settings(DRAFTS["far"], {"repetition_penalty": 1.9, "suppress_tokens": list(range(20))}, [5])
    for policy, verify in ((Random(0.5), True), (Rule.never(), False)):
        decoder = Backoff([small, target], policy, verify_eos=verify)
        found, result = answers(decoder, prompts, max_new_tokens=budget, seed=seed)
        for row, (prompt, answer) in enumerate(zip(prompts, found, strict=True)):
            config = target.model.generation_config
            best = [processed(lm, prompt, [answer], budget, config)[0].argmax(-1) for lm in (small, target)]
            who = result.writers[row, : len(answer)].long()
            assert torch.stack(best).gather(0, who[None])[0].tolist() == answer
            assert verify or not who.any()


@given(ragged, any_settings, ends, st.data())
@settings(careful, max_examples=15)
def test_every_place_of_a_draft_sees_the_tokens_before_it(prompts, chosen, eos, data):
    """Chains of any start and trees of any shape, in one call, against a text for each path."""
    possible(chosen, eos)
    chosen.pop("min_length", None)  # it counts the prompt
    with_settings(target, chosen, eos)
    budget, n = 7, data.draw(st.integers(1, 6), "nodes")
    safe = st.sampled_from([i for i in range(VOCAB) if i not in eos])
    done = data.draw(st.lists(st.lists(safe, max_size=2), min_size=len(prompts), max_size=len(prompts)))
    parents = [data.draw(st.integers(-1, i - 1)) for i in range(n)]
    chain = data.draw(st.booleans(), "chain")
    parents = list(range(-1, n - 1)) if chain else parents
    paths = [[]]
    for i, parent in enumerate(parents):
        paths.append([*paths[parent + 1], i])
    assume(max(map(len, paths)) <= budget - 2)
    tokens = [data.draw(st.lists(safe, min_size=n, max_size=n)) for _ in prompts]
    texts = [p + d for p, d in zip(prompts, done, strict=True)]
    width = max(map(len, texts)) + n
    ids = torch.tensor([t + nodes + [7] * (width - len(t) - n) for t, nodes in zip(texts, tokens, strict=True)])
    lengths, begins = (torch.tensor([len(t) for t in some]) for some in (texts, prompts))
    seen = torch.tensor([[a in path for a in range(n)] for path in paths[1:]])
    depth = torch.tensor([len(path) for path in paths[1:]]).expand(len(prompts), -1)
    tree = None if chain else TokenTree(lengths, depth, seen.expand(len(prompts), -1, -1))
    raw = torch.randn(len(prompts), n + 1, VOCAB)
    rules = text_processors(target, tuple(eos), budget)
    wanted = torch.stack(
        [
            torch.stack(
                [
                    plain(raw[r, place], prompts[r], [*done[r], *(tokens[r][i] for i in path)], budget, chosen)
                    for place, path in enumerate(paths)
                ]
            )
            for r in range(len(prompts))
        ]
    )
    found = raw if rules is None else rules.places(raw, ids, lengths, begins, tree, n)
    empty = (wanted == -torch.inf).all(-1)
    torch.testing.assert_close(found[~empty], wanted[~empty], rtol=0, atol=0)
    if tree is not None and rules is not None:  # the last places alone
        last = rules.places(raw[:, 1:], ids, lengths, begins, tree, n)
        torch.testing.assert_close(last[~empty[:, 1:]], wanted[:, 1:][~empty[:, 1:]], rtol=0, atol=0)


class Head(torch.nn.Module):
    """The same logits [vocab] everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, states):
        return self.logits.expand(*states.shape[:2], -1)


def plain(logits, prompt, answer, budget, chosen):
    """transformers' processors of one text, from logits [vocab] of our own in place of the model's."""
    model = reference(target)
    forced = Forced(torch.tensor([[*answer, *[0] * (budget - len(answer))]]))
    head, model.lm_head = model.lm_head, Head(logits)
    try:
        model.generate(torch.tensor([prompt]), max_new_tokens=budget, do_sample=False, logits_processor=[forced])
    finally:
        model.lm_head = head
    return forced.seen[len(answer)][0]


DRAWN = {
    "alone": (lambda small, large: Autoregressive(large)),
    "always handed off": (lambda small, large: Backoff([small, large], Rule.always())),
    "draft": (lambda small, large: Speculative([small, large], 3)),
    "draft, block": (lambda small, large: Speculative([small, large], 3, accept=Block())),
    "draft that stops": (lambda small, large: Speculative([small, large], 3, stop=Rule("entropy", 1.2))),
    "lookup": (lambda small, large: Speculative([PromptLookup(2), large], 3)),
    "tree": (lambda small, large: SpecInfer([small, large], (2, 2))),
    "blocks": (lambda small, large: MTJD(large, 2)),
}
MIXES = {
    "qwen": QWEN,
    "words": {"bad_words_ids": [[3, 4], [1]], "sequence_bias": [[[5], 0.7], [[4, 5], -1.5], [[4, 3], 1.5]]},
    "lengths": {"min_new_tokens": 2, "begin_suppress_tokens": [3], "forced_eos_token_id": 2},
    "everything": {
        **QWEN,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[3, 4]],
        "sequence_bias": [[[5], 0.7], [[4, 5], -1.5]],
        "suppress_tokens": [1],
        "begin_suppress_tokens": [4],
        "min_new_tokens": 2,
    },
}
large = tiny(layers=1, seed=7, vocab_size=6, initializer_range=0.2)
small = nudged(large, 0.5)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("decoder", DRAWN)
def test_drawn_text_is_distributed_as_that_of_transformers(decoder, mix):
    """With noise of the mixture's own, against every text enumerated; without the settings it is another law."""
    prompt, new, n = [3, 4, 5, 3], 4, 4000
    with_settings(large, MIXES[mix], [0, 2])
    drawing = Sampling(0.7, top_k=4, top_p=0.8) if mix in ("qwen", "everything") else Sampling(1.3, top_k=5)
    drawing = Sampling(1.0) if decoder == "blocks" else drawing
    truth = law(large, prompt, new, drawing)
    options = {"max_new_tokens": new, "sampling": drawing, "seed": 5, "pad_token_id": 0}
    ids = torch.tensor([prompt]).expand(n, -1)
    found = number(generate(DRAWN[decoder](small, large), ids, **options).sequences[:, len(prompt) :], 6, new)
    p, impossible = surprise(found, truth)
    assert p > 0.001 and not impossible
    ignored = [name for name in MIXES[mix] if name in APPLIED]
    other = generate(DRAWN[decoder](small, large), ids, **options, ignore_generation_config=ignored)
    p, impossible = surprise(number(other.sequences[:, len(prompt) :], 6, new), truth)
    assert p < 1e-6 or impossible or mix == "qwen"  # a penalty of 1.05 is a small one


@pytest.mark.parametrize("decoder", [name for name in DRAWN if name != "blocks"])
def test_penalties_of_servers(decoder):
    """OpenAI's formula: a logit less presence, and frequency times the times that the answer has the token."""
    prompt, new, n = [3, 4, 5, 3], 4, 4000
    with_settings(large, {"repetition_penalty": 1.2}, [])
    for base in (Sampling(0.8), Sampling(0.8, frequency_penalty=0.9, presence_penalty=-0.6)):

        def penalised(ids, logits, base=base):
            counts = torch.nn.functional.one_hot(ids, 6).sum(1)
            return logits - base.frequency_penalty * counts - base.presence_penalty * (counts > 0)

        truth = law(large, prompt, new, base, penalised)
        drawing = Sampling(0.8, frequency_penalty=0.9, presence_penalty=-0.6)
        ids, options = torch.tensor([prompt]).expand(n, -1), {"sampling": drawing, "seed": 5}
        result = generate(DRAWN[decoder](small, large), ids, max_new_tokens=new, **options)
        p, _ = surprise(number(result.sequences[:, len(prompt) :], 6, new), truth)
        assert p > 0.001 if base.penalises else p < 1e-6


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)], ids=["greedy", "drawn"])
def test_a_text_that_nothing_may_follow_is_refused(sampling):
    """Six tokens, each once; transformers would go on with token 0, or fail in torch."""
    with_settings(large, {"no_repeat_ngram_size": 1}, [])
    for decoder in (Autoregressive(large), Speculative([small, large], 3), SpecInfer([small, large], (2, 2))):
        assert generate(decoder, torch.tensor([[3]]), max_new_tokens=5, sampling=sampling).lengths.tolist() == [5]
        with pytest.raises(UnwritableText, match=r"no_repeat_ngram_size=1\) leaves a text no token to go on with"):
            generate(decoder, torch.tensor([[3]]), max_new_tokens=9, sampling=sampling)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=20, top_p=0.8)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "draft that stops by chance"])
def test_a_batch_is_single_runs(decoder, sampling, prompts):
    with_settings(target, QWEN | {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3, "min_length": 12}, [4, 6])
    rows = [row[keep.bool()].tolist() for row, keep in zip(*prompts, strict=True)]
    options = {"max_new_tokens": 14, "sampling": sampling}
    together, _ = answers(DECODERS[decoder](DRAFTS["close"]), rows, seed=3, **options)
    for i, row in enumerate(rows):
        assert answers(DECODERS[decoder](DRAFTS["close"]), [row], seed=3 + i, **options)[0] == [together[i]]


def test_without_processors_nothing_is_done(prompts, monkeypatch):
    with_settings(target, {"do_sample": True, "temperature": 0.7}, [])
    monkeypatch.setattr("decoding.state.text_processors.TextProcessors.__init__", lambda *_: pytest.fail("built"))
    for decoder in DECODERS.values():
        generate(decoder(DRAFTS["close"]), *prompts, max_new_tokens=3)
