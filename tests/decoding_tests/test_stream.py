"""Text while it is written: pieces join to the decoded answer, and stop strings end rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import characters, nudged, tiny, words

from decoding import LM, Autoregressive, Backoff, Speculative, generate
from decoding.state.streaming import PieceStream, StopStrings
from decoding.state.token_buffer import Commit, TokenBuffer
from policies import Random

WORDS, CHARACTERS = words(), characters()
large = LM(tiny("llama", layers=2, seed=1).model, WORDS)
small = nudged(large)
spelling = LM(tiny("llama", layers=2, seed=1, vocab_size=256).model, CHARACTERS)
DECODERS = {
    "autoregressive": Autoregressive(large),
    "backoff": Backoff([small, large], Random(0.5)),
    "speculative": Speculative([small, large], length=5),
    "characters": Speculative([nudged(spelling), spelling]),
}


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("eos", [(), 7], ids=["free", "eos"])
def test_pieces_join_to_the_answer(decoder, eos, prompts):
    ids, mask = prompts
    pieces = []
    result = generate(decoder, ids, mask, max_new_tokens=25, eos_token_id=eos, stream=pieces.append)
    tokenizer = decoder.models[-1].tokenizer
    for row, length in enumerate(result.lengths.tolist()):
        mine = [piece for piece in pieces if piece.row == row]
        answer = result.sequences[row, ids.shape[1] :][:length].tolist()
        assert [piece.token for piece in mine] == answer
        assert [piece.writer for piece in mine] == result.writers[row, :length].tolist()
        assert "".join(piece.text for piece in mine) == tokenizer.decode(answer, skip_special_tokens=True)


def streamed(tokenizer, tokens, chunk=1):
    """The pieces of a text that is committed ``chunk`` tokens at a time."""
    text = TokenBuffer(torch.tensor([[5]]), torch.tensor([[1]]), len(tokens), chunk, (), 0)
    pieces = []
    stream = PieceStream(pieces.append, tokenizer, 1)
    for at in range(0, len(tokens), chunk):
        part = torch.tensor([tokens[at : at + chunk]])
        text.append(Commit(torch.tensor([0]), part, torch.zeros_like(part), torch.tensor([part.shape[1]])))
        stream.update(text, [0])
    return [piece.text for piece in pieces]


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_an_unfinished_character_waits(chunk):
    said = "naïve 🙂 日本"
    pieces = streamed(CHARACTERS, CHARACTERS(said)["input_ids"], chunk)
    assert "".join(pieces) == said
    assert [piece for piece in pieces if piece] == list(said)
    assert pieces.count("") == len(said.encode()) - len(said)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(said=st.text(min_size=1, max_size=8), chunk=st.integers(1, 6), cut=st.integers(0, 3))
def test_pieces_join_whatever_is_said(said, chunk, cut):
    """Also when the text ends in the middle of a character."""
    tokens = CHARACTERS(said)["input_ids"]
    tokens = tokens[: max(1, len(tokens) - cut)]
    pieces = streamed(CHARACTERS, tokens, chunk)
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == CHARACTERS.decode(tokens, skip_special_tokens=True)


def test_a_character_that_never_ends_comes_last():
    tokens = CHARACTERS("a🙂")["input_ids"][:-1]
    assert streamed(CHARACTERS, tokens) == ["a", "", "", "\ufffd"]


@pytest.mark.parametrize("special", [[2], [2, 0, 1]])
def test_a_special_token_in_the_middle_costs_no_space(special):
    """Decoding restarted at a token without text of its own, and the next word lost the space before it."""
    tokens = [5, 6, *special, 7, 8]
    assert streamed(WORDS, tokens) == ["w5", " w6", *[""] * len(special), " w7", " w8"]


def test_without_a_tokenizer_pieces_have_no_text():
    pieces = []
    generate(Autoregressive(LM(large.model)), torch.tensor([[5]]), max_new_tokens=3, stream=pieces.append)
    assert [piece.text for piece in pieces] == ["", "", ""]


def test_a_stop_string_does_not_begin_in_the_text_that_a_row_had_before():
    text = TokenBuffer(torch.tensor([[5]]), torch.tensor([[1]]), 1, 1, (), 0)
    stops = StopStrings("w8 w9", WORDS)

    def written(token):
        one = torch.tensor([[token]])
        text.append(Commit(torch.tensor([0]), one, torch.zeros_like(one), torch.tensor([1])))
        return stops.find(text, 0, 1)

    assert written(8) is None and not len(text.rows)
    text.restart(0, torch.tensor([6]), 0)
    stops.restart(0)
    assert written(9) is None


@pytest.mark.parametrize("name", ["autoregressive", "speculative"])
def test_a_stop_string_ends_a_row_after_the_token_that_completes_it(name, prompts):
    ids, mask = prompts
    options = {"max_new_tokens": 20, "eos_token_id": (), "pad_token_id": 0}
    free = generate(Autoregressive(large), ids, mask, **options).sequences[:, ids.shape[1] :]
    stops = [WORDS.decode(free[0, 8:10]), WORDS.decode(free[2, 3:6])]
    assert all(" " in stop for stop in stops)
    pieces = []
    result = generate(DECODERS[name], ids, mask, stop_strings=stops, stream=pieces.append, **options)
    lengths = [
        min([n for n in range(1, 21) if any(stop in WORDS.decode(row[:n]) for stop in stops)], default=20)
        for row in free
    ]
    assert result.lengths.tolist() == lengths
    assert lengths[0] < 20
    assert lengths[2] < 20
    assert len(set(lengths)) > 1
    for row, length in enumerate(lengths):
        answer = result.sequences[row, ids.shape[1] :]
        assert torch.equal(answer[:length], free[row, :length])
        assert (answer[length:] == 0).all()
        assert (result.writers[row, length:] == -1).all()
        assert sum(piece.row == row for piece in pieces) == length


def test_one_stop_string_need_not_be_a_list(prompts):
    ids, mask = prompts
    free = generate(Autoregressive(large), ids, mask, max_new_tokens=5, eos_token_id=())
    stop = WORDS.decode(free.sequences[1, -5:-3])
    result = generate(Autoregressive(large), ids, mask, max_new_tokens=5, eos_token_id=(), stop_strings=stop)
    assert result.lengths[1] == 2


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(ValueError, match="stop_strings need a tokenizer"):
        generate(Autoregressive(LM(large.model)), torch.tensor([[5]]), stop_strings=["."])
