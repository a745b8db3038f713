"""Models share a text where their ids mean the same: the text is the large model's own, whatever else either knows."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from gguf import GGUFWriter
from operation_counts import counted
from tiny_models import eager, nudged, tiny, words
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelJoin
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel as ByteLevelSplit
from transformers import PreTrainedTokenizerFast

from decoding import LM, MTAD, Autoregressive, Backoff, PromptLookup, Sampling, Speculative, generate
from decoding.acceptance.lossy import Divergence
from decoding.decoders.registry import DECODERS, build_decoder
from decoding.models.vocabulary import check_compatible
from policies import Random, Rule, token_classes
from train.data.prompts import Prompt
from train.distillation.gguf_file import write_gguf
from train.traces.collect_handoff import trajectory

pytestmark = pytest.mark.sampled

NEW = 16
IDS = torch.tensor([[3, 4, 5, 9], [6, 7, 8, 30]])
always, never = Rule.always(), Rule.never()


def vocabulary(size=37, added=(), padding=0, bos="<s>", eos="</s>"):
    """Words, then added tokens, then ids that llama.cpp's converter names [PAD...]."""
    tokenizer = words(size, special=("<pad>", "<s>", "</s>"))
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    names = [*added, *(f"[PAD{size + len(added) + i}]" for i in range(padding))]
    tokenizer.add_tokens([AddedToken(name, special=False) for name in names])
    return tokenizer


def model(head=37, seed=1, likes=(), **tokens):
    """A model that often says the tokens that it ``likes``."""
    lm = tiny(layers=2, seed=seed, vocab_size=head, initializer_range=0.3)
    with torch.no_grad():
        for token in likes:
            lm.model.lm_head.weight[token] *= 6
    lm = LM(lm.model, vocabulary(**tokens))
    lm.model.generation_config.eos_token_id = lm.tokenizer.eos_token_id
    return lm


def resized(lm, head, likes=(), scale=0.1, **tokens):
    """A draft that is right about some tokens, with ``head`` rows of which it likes some of its own."""
    other = copy.deepcopy(nudged(lm, scale).model)
    torch.manual_seed(4)
    other.resize_token_embeddings(head, mean_resizing=False)
    with torch.no_grad():
        for token in likes:
            other.lm_head.weight[token] *= 6
    return LM(other, vocabulary(**tokens))


THINK = {"added": ("<think>", "</think>")}
LARGE = model(likes=(5,))
THINKING = model(48, likes=(37, 38), **THINK)
PADDED = model(48, likes=(36,), padding=11)
PAIRS = {
    "larger head of the small": (lambda: resized(LARGE, 41, likes=(39,)), LARGE),
    "larger head of the large": (lambda: resized(THINKING, 39, **THINK), THINKING),
    "added by the small": (lambda: resized(LARGE, 48, likes=(37, 38), **THINK), LARGE),
    "added by the large": (lambda: resized(THINKING, 37), THINKING),
    "added by the large in a padded head": (lambda: resized(THINKING, 48, likes=(37, 38)), THINKING),
    "another eos": (lambda: resized(LARGE, 37, eos="w9"), LARGE),
    "another bos": (lambda: resized(LARGE, 37, bos="w9"), LARGE),
    "padding names in the small": (lambda: resized(LARGE, 48, likes=(40,), padding=11), LARGE),
    "padding names in the large": (lambda: resized(PADDED, 48, likes=(40,)), PADDED),
    "padding names where the large has tokens": (lambda: resized(THINKING, 48, padding=11), THINKING),
    "tokens where the large has padding names": (lambda: resized(PADDED, 48, likes=(37, 38), **THINK), PADDED),
    "both have tokens of their own": (lambda: resized(THINKING, 37, size=36), THINKING),
}
DEFAULTS = {"mtad": {"filtered": True}, "mmtad": {"filtered": True}}
EXACT = {
    **{
        name: lambda pair, name=name: build_decoder(
            pair[-1:] if len(DECODERS[name].models) == 1 else pair,
            always if DECODERS[name].policy == "needed" else None if DECODERS[name].policy is None else never,
            SimpleNamespace(name=name, settings=DEFAULTS.get(name, {})),
        )
        for name in DECODERS
        if name != "small"
    },
    "lookup": lambda pair: Speculative([PromptLookup(2), pair[1]], 4),
    "stop": lambda pair: Speculative(pair, 5, stop=Random(0.3)),
    "tree": lambda pair: MTAD(pair, beams=3, length=3, tree=True, filtered=True),
    "two handoffs": lambda pair: Backoff([pair[0], pair[0], pair[1]], [Random(0.5), always]),
}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    make, large = PAIRS[request.param]
    return make(), large


def own(large, ids=IDS, **options):
    """What transformers writes with the large model, without the padding of its head."""
    return eager(large).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        suppress_tokens=list(range(large.vocab, large.head)) or None,
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )


@pytest.mark.sampled
@pytest.mark.parametrize("decoder", [name for name in EXACT if name != "two handoffs"])
def test_exact_methods_write_the_text_of_the_large_model(decoder, pair):
    result = generate(EXACT[decoder](pair), IDS, max_new_tokens=NEW, eos_token_id=())
    assert torch.equal(result.sequences, own(pair[1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_transformers_assisted_generation_writes_the_same(name):
    """It asks for heads of one width."""
    small, large = PAIRS[name][0](), PAIRS[name][1]
    if small.head != large.head:
        pytest.skip("transformers refuses heads of two widths")
    small.model.generation_config.eos_token_id = None
    for row in IDS[:, None]:
        found = generate(Speculative([small, large]), row, max_new_tokens=NEW, eos_token_id=())
        assert torch.equal(found.sequences, own(large, row, assistant_model=eager(small)))


@pytest.mark.sampled
@pytest.mark.parametrize("length", [1, 4])
def test_the_small_model_writes_only_what_the_large_one_has(pair, length):
    """Drafted and accepted, or written by itself after a hand-off."""
    small, large = pair
    shared = {i for t, i in small.tokenizer.get_vocab().items() if large.tokenizer.get_vocab().get(t) == i}
    for decoder in (
        Speculative(pair, length),
        Backoff(pair, never, verify_eos=False),
        Backoff(pair, Random(0.5), verify_eos=False),
        Backoff([small, large, large], [Random(0.5), Random(0.5)], verify_eos=False),
    ):
        for sampling in (Sampling(), Sampling(3.0)):
            result = generate(decoder, IDS, max_new_tokens=NEW, eos_token_id=(), sampling=sampling, seed=3)
            by_small = result.sequences[:, 4:][result.writers == 0].tolist()
            assert set(by_small) <= shared
            assert result.sequences.max() < large.vocab


def test_the_large_model_writes_what_only_it_has_and_the_small_one_reads_on():
    large = model(48, likes=(37,), **THINK)
    small = resized(large, 37, scale=0.02)
    result = generate(Speculative([small, large]), IDS, max_new_tokens=40, eos_token_id=())
    assert (result.sequences >= 37).any()
    assert result.counts["accepted"] > 0
    thinking = torch.tensor([[3, 37, 5, 38]])
    result = generate(Speculative([small, large]), thinking, max_new_tokens=NEW, eos_token_id=())
    assert torch.equal(result.sequences, own(large, thinking))


@pytest.mark.parametrize("name", ["another eos", "added by the large"])
def test_an_answer_ends_at_the_eos_of_the_large_model(name):
    small, large = PAIRS[name][0](), PAIRS[name][1]
    eos = int(own(large)[0, 4 + 5])
    large = copy.deepcopy(large)
    large.model.generation_config.eos_token_id = eos
    small.model.generation_config.eos_token_id = 7
    expected = generate(Autoregressive(large), IDS, max_new_tokens=NEW)
    assert expected.lengths.min() < NEW
    for decoder in (Speculative([small, large]), Backoff([small, large], always)):
        assert generate(decoder, IDS, max_new_tokens=NEW).sequences.tolist() == expected.sequences.tolist()


def test_always_escalating_draws_what_the_large_model_draws(pair):
    how = {"max_new_tokens": NEW, "eos_token_id": (), "sampling": Sampling(1.5), "seed": 2}
    alone = generate(Autoregressive(pair[1]), IDS, **how).sequences
    assert torch.equal(generate(Backoff(pair, always), IDS, **how).sequences, alone)


def test_a_difference_is_said_once(caplog):
    small, large = PAIRS["added by the small"][0](), model(likes=(5,), eos="w9")
    with caplog.at_level(logging.WARNING):
        check_compatible([small, large])
        check_compatible([small, large])
    (record,) = caplog.records
    said = record.getMessage()
    assert "only llama has '<think>' and 1 more; the eos_token is 'w9', not '</s>'" in said
    caplog.clear()
    check_compatible([resized(LARGE, 37), LARGE])
    assert not caplog.records


def test_equal_vocabularies_cost_no_operation(monkeypatch):
    """And those in which nothing is lacking; a mask costs few."""
    how = {"max_new_tokens": 40, "eos_token_id": (), "seed": 1}

    def operations(small):
        found = counted(monkeypatch, Speculative([small, LARGE], 4), IDS[:1], **how)
        return found.operations / found.rounds

    equal = operations(resized(LARGE, 37))
    assert operations(resized(LARGE, 37, eos="w9")) <= equal + 1
    assert operations(resized(LARGE, 48, **THINK)) <= equal + 25


def test_tokens_of_two_meanings_are_refused():
    other = model(48, added=("</think>",))
    with pytest.raises(ValueError, match="id 37 is '</think>' in one and '<think>' in the other"):
        check_compatible([other, THINKING])
    with pytest.raises(ValueError, match="id 37 is '<think>' in one and '</think>' in the other"):
        check_compatible([THINKING, other])


def test_traces_of_texts_with_tokens_that_the_small_model_lacks():
    """Both models read them; what the small one lacks is none of its choices, and no number is NaN."""
    small, large = PAIRS["added by the large"][0](), THINKING
    prompt = Prompt("p", "default", "g", "", (3, 4, 5), None)
    answer = [37, 9, 38, 6]
    table = trajectory(small, large, prompt, answer, [1, 0, 1, 0], answer, token_classes(large.tokenizer))
    assert set(table["small_token"].tolist()) <= set(range(37))
    assert torch.isfinite(torch.from_numpy(table["kl"])).all()
    logits = large.model(torch.tensor([[3, 4, 5, *answer]])).logits[0, 2:-1, :39]
    assert table["large_token"].tolist() == logits.argmax(-1).tolist()


def gguf_tokenizer(path, padded):
    """The metadata of a tokenizer of bytes, an end, one merge, and ids without a token up to ``padded``."""
    tokens = [*sorted(ByteLevelSplit.alphabet()), "<|end|>", "ab"]
    names = [*tokens, *(f"[PAD{i}]" for i in range(len(tokens), padded))]
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_types([3 if name == "<|end|>" else 5 if "PAD" in name else 1 for name in names])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(256)
    writer.add_bos_token_id(256)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    core = Tokenizer(BPE({name: i for i, name in enumerate(tokens)}, [("a", "b")]))
    core.pre_tokenizer, core.decoder = ByteLevelSplit(add_prefix_space=False), ByteLevelJoin()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", bos_token="<|end|>")


@pytest.mark.parametrize("role", ["GGUF small", "GGUF large"])
def test_a_folder_beside_a_gguf_file_of_one_family(role, tmp_path):
    """The file has names for ids without a token, up to the 272 rows of its head."""
    tokenizer = gguf_tokenizer(tmp_path / "tokenizer.gguf", 272)
    changes = {"vocab_size": 272, "tie_word_embeddings": True, "intermediate_size": 64, "head_dim": 8}
    model = tiny(layers=2, seed=1, **changes).model
    model.save_pretrained(tmp_path / "folder")
    tokenizer.save_pretrained(tmp_path / "folder")
    write_gguf(nudged(LM(model)).model, tmp_path / "tokenizer.gguf", tmp_path / "model.gguf", "toy", {})
    folder, gguf = LM.load(tmp_path / "folder"), LM.load(tmp_path / "model.gguf")
    assert (folder.vocab, gguf.vocab) == (258, 272)
    small, large = (gguf, folder) if role == "GGUF small" else (folder, gguf)
    ids = large.tokenizer("abba", return_tensors="pt")["input_ids"]
    assert ids.tolist() == folder.tokenizer("abba", return_tensors="pt")["input_ids"].tolist()
    alone = generate(Autoregressive(large), ids, max_new_tokens=NEW, eos_token_id=())
    result = generate(Speculative([small, large]), ids, max_new_tokens=NEW, eos_token_id=())
    assert torch.equal(result.sequences, alone.sequences)
    assert result.counts["accepted"] > 0
    assert result.sequences[:, ids.shape[1] :][result.writers == 0].max() < 258


def test_a_divergence_that_would_be_infinite_everywhere_is_refused():
    """KL(target || draft), where the draft lacks tokens of the target: it once rejected every draft without a word."""
    rule = Divergence("reverse_kl", 100.0)
    for draft, target in ((resized(THINKING, 37), THINKING), (PromptLookup(3), LARGE)):
        with pytest.raises(ValueError, match="infinite where the draft lacks a token of the target; take kl, js or tv"):
            Speculative([draft, target], accept=rule)
    for draft, target in ((resized(LARGE, 48, likes=(37, 38), **THINK), LARGE), (nudged(LARGE, 0.1), LARGE)):
        assert generate(Speculative([draft, target], accept=rule), IDS, max_new_tokens=NEW).counts["accepted"] > 0
