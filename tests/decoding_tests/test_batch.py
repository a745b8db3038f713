"""A batch of n equals n single runs: no row is touched by the others, by padding, or by when they end."""

import copy

import numpy as np
import pytest
import torch
from acceptance_laws import SAMPLING
from processed_logits import with_settings
from tiny_models import ending_tokens, nudged, tiny, words

from decoding import (
    LM,
    MTAD,
    Autoregressive,
    Backoff,
    PromptLookup,
    Sampling,
    SpecInfer,
    Speculative,
    Typical,
    generate,
    generate_many,
)
from policies import MLP, Logistic, Periodic, Random, Rule

pytestmark = pytest.mark.sampled

NEW, SEED = 18, 40
large = tiny("llama", layers=2, seed=1)
small = nudged(large)
other = tiny("llama", layers=1, seed=3)
cut = Rule("entropy", 2.4)
averaged = Rule("mean_entropy", 2.4)


def fitted(kind, columns, **options):
    """A policy of ``kind`` that has learned to say True above an entropy of about 2.4, the first of ``columns``."""
    draw = np.random.default_rng(0)
    hidden = {"hidden": draw.normal(size=(400, 32))} if options.get("use_hidden") else {}
    table = draw.normal(2.4, 1, (400, len(columns)))
    return kind(columns, **options).fit(table, table[:, 0] > 2.4, **hidden)


logistic = fitted(Logistic, ("entropy", "agreed", "mean_entropy"))
mlp = fitted(MLP, ("entropy", "since_large"), hidden=(8,), use_hidden=True, epochs=3)

DECODERS = {
    "autoregressive": Autoregressive(large),
    "backoff": Backoff([small, large], cut),
    "backoff-random": Backoff([small, large], Random(0.4)),
    "backoff-history": Backoff([small, large], averaged),
    "backoff-periodic": Backoff([small, large], Periodic(3)),
    "backoff-logistic": Backoff([small, large], logistic),
    "backoff-mlp-hidden": Backoff([small, large], mlp),
    "backoff-three": Backoff([other, small, large], [Random(0.6), Random(0.5)]),
    "speculative": Speculative([small, large], length=4),
    "speculative-stop": Speculative([small, large], length=5, stop=cut),
    "speculative-history": Speculative([small, large], length=5, stop=averaged),
    "speculative-mlp-hidden": Speculative([small, large], length=5, stop=mlp),
    "speculative-random-keep": Speculative([small, large], length=5, stop=Random(0.3), keep_stop_token=True),
    "speculative-strict": Speculative([small, large], length=3, accept=Typical(), strict_prefix=6),
    "promptlookup": Speculative([PromptLookup(2), large], length=4),
    "mtad": MTAD([small, large], beams=3),
    "mmtad": MTAD([small, large], beams=3, length=3, tree=True, filtered=True),
    "specinfer": SpecInfer([small, large], (3, 2, 1)),
}


@pytest.mark.sampled
@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_batch_is_single_runs(decoder, sampling, prompts):
    ids, mask = prompts
    width = ids.shape[1]
    options = {"max_new_tokens": NEW, "sampling": sampling, "pad_token_id": 0}
    free = generate(decoder, ids, mask, eos_token_id=(), seed=SEED, **options)
    for eos in ending_tokens(free.sequences[:, width:]):  # a backoff may write another text once an EOS is checked
        batch = generate(decoder, ids, mask, eos_token_id=eos, seed=SEED, **options)
        if len(batch.lengths.unique()) > 1:
            break
    assert len(batch.lengths.unique()) > 1
    for row, prompt in enumerate(mask.sum(1).tolist()):
        one = generate(decoder, ids[row : row + 1, width - prompt :], eos_token_id=eos, seed=SEED + row, **options)
        new = int(one.lengths)
        assert new == batch.lengths[row]
        assert torch.equal(one.sequences[0, prompt:], batch.sequences[row, width : width + new])
        assert torch.equal(one.writers[0], batch.writers[row, :new])


def test_other_seeds_write_other_texts(prompts):
    ids, mask = prompts
    options = {"max_new_tokens": 8, "eos_token_id": (), "sampling": Sampling(temperature=1.5)}
    texts = [generate(Autoregressive(large), ids, mask, seed=s, **options).sequences for s in (1, 1, 100, None)]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0], texts[3])


def ragged(n):
    """Prompts of 1 to 9 tokens."""
    draw = torch.Generator().manual_seed(2)
    return [torch.randint(3, 37, (1 + 5 * i % 9,), generator=draw).tolist() for i in range(n)]


def alone(decoder, prompts, **options):
    """(tokens, writers) of each prompt answered on its own."""
    texts = []
    for i, prompt in enumerate(prompts):
        one = generate(decoder, torch.tensor([prompt]), seed=SEED + i, **options)
        texts.append((one.sequences[0, len(prompt) :].tolist(), one.writers[0].tolist()))
    return texts


def continuous(decoder, prompts, size, **options):
    """The same by ``generate_many``."""
    found = {}
    for answer in generate_many(decoder, prompts, batch_size=size, seed=SEED, **options):
        assert answer.prompt not in found
        found[answer.prompt] = answer.tokens, answer.writers
    assert found.keys() == set(range(len(prompts)))
    return [found[i] for i in range(len(prompts))]


@pytest.mark.sampled
@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_a_row_that_ends_is_replaced_and_no_answer_changes(decoder, sampling):
    prompts, options = ragged(8), {"max_new_tokens": NEW, "sampling": sampling}
    free = alone(decoder, prompts, eos_token_id=(), **options)
    options["eos_token_id"] = ending_tokens(torch.tensor([tokens for tokens, _ in free]))[0]
    expected = alone(decoder, prompts, **options)
    assert len({len(tokens) for tokens, _ in expected}) > 1
    assert continuous(decoder, prompts, 3, **options) == expected


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_any_batch_size_gives_the_same_answers(size):
    prompts, options = ragged(5), {"max_new_tokens": 7, "eos_token_id": ()}
    decoder = DECODERS["backoff-history"]
    assert continuous(decoder, prompts, size, **options) == alone(decoder, prompts, **options)


def test_a_consumer_between_answers_is_not_in_inference_mode():
    for answer in generate_many(Autoregressive(large), ragged(3), batch_size=2, max_new_tokens=3):
        assert not torch.is_inference_mode_enabled() and len(answer.tokens) <= 3


@pytest.mark.parametrize(
    ("prompts", "size", "said"),
    [
        ([[3]], 0, "batch_size must be at least 1, not 0"),
        ([], 2, "there must be prompts, each of at least one token"),
        ([[3], []], 2, "there must be prompts, each of at least one token"),
        ([[3], [3] * 4000], 1, r"the longest prompt \(4000 tokens\)"),
        ([[3], [3], [999]], 1, r"input_ids must be token ids in \[0, 37\), not 999"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused_before_the_first(prompts, size, said):
    with pytest.raises(ValueError, match=said):
        next(generate_many(Autoregressive(large), prompts, batch_size=size))


@pytest.mark.parametrize("decoder", ["autoregressive", "speculative"])
def test_stop_strings_and_processors_hold_for_rows_that_replaced_others(decoder):
    """A stop string may not be completed by the text that the row had before."""
    words_large = LM(copy.deepcopy(large.model), words())
    with_settings(words_large, {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3}, ())
    made = {"autoregressive": Autoregressive(words_large), "speculative": Speculative([small, words_large], length=3)}
    prompts, options = ragged(7), {"max_new_tokens": NEW}
    free = alone(made[decoder], prompts, **options)
    options["stop_strings"] = [words_large.tokenizer.decode(tokens[i : i + 2]) for i, (tokens, _) in enumerate(free, 2)]
    expected = alone(made[decoder], prompts, **options)
    assert len({len(tokens) for tokens, _ in expected}) > 2
    assert continuous(made[decoder], prompts, 2, **options) == expected
