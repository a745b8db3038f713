"""Stop strings and streams find, in time that does not grow with the text, what decoding the whole text finds."""

import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_models import characters, words
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from transformers.convert_slow_tokenizer import bytes_to_unicode

from decoding.state.streaming import UNFINISHED, StopStrings, pieces
from decoding.state.token_buffer import Commit, TokenBuffer

PARTS = ["naïve", "日本語", "🙂", " and", " the", "\n", "日", " 日", ".", "e\u0301", "a", " ", "本"]


def merged():
    """Byte-level BPE with tokens that end one character and begin the next, as large vocabularies have them."""
    byte = ByteLevel.alphabet()
    vocab = {c: i for i, c in enumerate(sorted(byte))}
    level = ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = ["".join(piece for piece, _ in level.pre_tokenize_str(part)) for part in PARTS]
    halves = [a[len(a) // 2 :] + b[: len(b) // 2] for a in spelled for b in spelled]
    for token in [*spelled, *halves]:
        vocab.setdefault(token, len(vocab))
    core = Tokenizer(BPE(vocab, []))
    core.pre_tokenizer, core.decoder = level, decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<end>", special=True)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def sentences():
    """As Llama 2: words after a ▁, and characters that have no token as bytes."""
    vocab = {name: i for i, name in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))])}
    for part in [*PARTS, " w"]:
        vocab.setdefault(part.replace(" ", "▁"), len(vocab))
    core = Tokenizer(BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    core.decoder = decoders.Sequence(list(spaces))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def subwords():
    """As BERT: joined parts, and spaces removed before punctuation when the text is decoded."""
    names = ["[UNK]", "[SEP]", "a", "##b", "##", "n", "'", "t", "s", ".", "it", "do", "re", ",", "##日", "日"]
    core = Tokenizer(WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    core.pre_tokenizer, core.decoder = Whitespace(), decoders.WordPiece()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", sep_token="[SEP]", clean_up_tokenization_spaces=True
    )


TOKENIZERS = {"words": words(), "bytes": characters(), "merged": merged(), "fallback": sentences(), "parts": subwords()}
token = st.integers(0, 10**6)
answers = st.lists(token, min_size=1, max_size=12) | st.lists(token, min_size=40, max_size=120)


def earlier_pieces(tokenizer, answer):
    """The pieces of an answer, each from the whole text since the piece before the last."""
    found, prefix, shown = [], 0, 0
    for end in range(1, len(answer) + 1):
        before = tokenizer.decode(answer[prefix:shown], skip_special_tokens=True)
        now = tokenizer.decode(answer[prefix:end], skip_special_tokens=True)
        if now == before or (now.endswith(UNFINISHED) and end < len(answer)):
            found.append("")
        else:
            found.append(now[len(before) :])
            prefix, shown = shown, end
    return found


def from_whole_texts(tokenizer, answer, strings):
    """Least length at which the decoded answer contains one of the strings."""
    texts = ((end, tokenizer.decode(answer[:end])) for end in range(1, len(answer) + 1))
    return next((end for end, text in texts if any(string in text for string in strings)), None)


def found(tokenizer, answer, strings, chunk=1):
    """What ``StopStrings`` finds in an answer that is committed ``chunk`` tokens at a time."""
    buffer = TokenBuffer(torch.tensor([[5]]), torch.tensor([[1]]), len(answer), chunk, (), 0)
    stops, ends = StopStrings(strings, tokenizer), []
    for at in range(0, len(answer), chunk):
        part = torch.tensor([answer[at : at + chunk]])
        commit = Commit(torch.tensor([0]), part, torch.zeros_like(part), torch.tensor([part.shape[1]]))
        buffer.append(commit, lambda row, new: ends.append(stops.find(buffer, row, new)) or ends[-1])
        if ends[-1] is not None or not len(buffer.rows):
            break
    return ends[-1]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=120, deadline=None, derandomize=True)
@given(answer=answers, few=st.sampled_from([3, 12, 10**6]))
def test_pieces_are_those_of_the_whole_text(name, answer, few):
    """``few`` kinds of tokens make long runs without text, and of bytes that are no character."""
    tokenizer = TOKENIZERS[name]
    size = len(tokenizer)
    answer = [size - 1 - token % min(few, size) for token in answer]
    assert pieces(tokenizer, answer) == earlier_pieces(tokenizer, answer)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    answer=answers,
    few=st.sampled_from([12, 10**6]),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 40)), min_size=1, max_size=3),
    other=st.sampled_from(["", "a", "日", "\n\n", " .", UNFINISHED, "n't"]),
    chunk=st.integers(1, 7),
)
@example(answer=[0] * 80, few=12, cuts=[(0.99, 40)], other="", chunk=5)
def test_a_stop_string_is_found_where_the_whole_text_has_it(name, answer, few, cuts, other, chunk):
    tokenizer = TOKENIZERS[name]
    size = len(tokenizer)
    answer = [size - 1 - token % min(few, size) for token in answer]
    text = tokenizer.decode(answer)
    places = [(int(at * len(text)), length) for at, length in cuts]
    strings = [string for at, length in places if (string := text[at : at + length])] + ([other] if other else [])
    assert not strings or found(tokenizer, answer, strings, chunk) == from_whole_texts(tokenizer, answer, strings)


@pytest.mark.parametrize("name", ["bytes", "merged", "fallback"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=40))
def test_pieces_join_to_the_text(name, parts):
    tokenizer = TOKENIZERS[name]
    said = "".join(parts)
    answer = tokenizer(said.replace(" ", "▁") if name == "fallback" else said, add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, answer)) == tokenizer.decode(answer, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("parts", "stop", "length"),
    [
        (["the日本語", "!"], "the", 3),  # begins and ends in the first token of a longer word
        (["🙂🙂"], "🙂", 4),  # spans all the tokens of a character
        (["a🙂b"], "a🙂", 5),  # completed by the token that ends the character
        (["x" * 300], "x" * 200, 200),  # longer than any window
    ],
)
def test_where_a_stop_string_ends(parts, stop, length):
    answer = TOKENIZERS["bytes"]("".join(parts))["input_ids"]
    assert found(TOKENIZERS["bytes"], answer, [stop]) == length


def test_a_token_that_ends_one_character_and_completes_the_next():
    tokenizer = TOKENIZERS["merged"]
    spelled = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("日🙂")[0][0]
    answer = [*tokenizer.convert_tokens_to_ids(list(spelled[:1])), tokenizer.convert_tokens_to_ids(spelled[1])]
    answer += tokenizer.convert_tokens_to_ids(list(spelled[2:]))
    assert tokenizer.decode(answer) == "日🙂"
    assert found(tokenizer, answer, ["日"]) == 3
    assert found(tokenizer, answer, ["日🙂"]) == 7


class Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoded = tokenizer, 0

    def decode(self, ids, **options):
        self.decoded += len(ids)
        return self.tokenizer.decode(ids, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("tokens", [[0x41], [0x80], [0xE6, 0x97, 0xA5], ["<end>"], [0x41, "<end>"]], ids=str)
def test_the_work_per_token_does_not_grow(tokens):
    """Also for bytes that are no character and for special tokens, which complete no text."""
    tokenizer = Counting(TOKENIZERS["merged"])
    named = bytes_to_unicode()
    answer = tokenizer.convert_tokens_to_ids([named.get(token, token) for token in tokens]) * (3000 // len(tokens))
    pieces(tokenizer, answer)
    streamed, tokenizer.decoded = tokenizer.decoded, 0
    assert found(tokenizer, answer, ["never said"], 4) is None
    assert streamed < 16 * len(answer)
    assert tokenizer.decoded < 200 * len(answer)


@pytest.mark.parametrize("strings", [[""], ["a", ""], [7], [None]])
def test_a_stop_string_that_is_none_is_refused(strings):
    with pytest.raises(ValueError, match="a stop string must be a text of at least one character"):
        StopStrings(strings, TOKENIZERS["words"])
