"""Text from tokens while they are being written: pieces of a stream, and stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from decoding.state.token_buffer import TokenBuffer


@dataclass(frozen=True, slots=True)
class Piece:
    """One new token of a row: its id, the index of its writer, and the text that it completes.

    ``text`` is empty while a multi-byte character is incomplete; joined, the pieces of a row are its decoded answer.
    """

    row: int
    text: str
    token: int
    writer: int


class PieceStream:
    """Calls ``sink(piece)`` for every new token. Without a tokenizer the text of every piece is empty."""

    def __init__(self, sink: Callable[[Piece], None], tokenizer, rows: int):
        self.sink, self.tokenizer = sink, tokenizer
        self.sent = [0] * rows
        self.prefix = [0] * rows
        self.shown = [0] * rows

    def update(self, buffer: TokenBuffer, rows: Sequence[int]) -> None:
        """Send the tokens that ``rows`` have gained since the last call."""
        for row in rows:
            answer, closed = buffer.answer(row), row not in buffer.rows.tolist()
            writers = buffer.writers_of(row)
            for end in range(self.sent[row] + 1, len(answer) + 1):
                last = closed and end == len(answer)
                self.sink(Piece(row, self._piece(row, answer[:end], last), answer[end - 1], writers[end - 1]))
            self.sent[row] = len(answer)

    def _piece(self, row: int, answer: list[int], last: bool) -> str:
        """Text completed by the last token of ``answer``, decoded with the tokens before it to keep spaces."""
        if self.tokenizer is None:
            return ""
        before = self._decode(answer[self.prefix[row] : self.shown[row]])
        now = self._decode(answer[self.prefix[row] :])
        if now == before or (now.endswith("\ufffd") and not last):
            return ""
        self.prefix[row], self.shown[row] = self.shown[row], len(answer)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def pieces(tokenizer, answer: list[int]) -> list[str]:
    """The text completed by each token of ``answer``, as in a stream."""
    stream = PieceStream(lambda piece: None, tokenizer, 1)
    return [stream._piece(0, answer[:end], end == len(answer)) for end in range(1, len(answer) + 1)]


class StopStrings:
    """Finds the shortest answer of a row that contains a stop string. Raises ValueError without a tokenizer."""

    def __init__(self, strings: Sequence[str], tokenizer):
        if tokenizer is None:
            raise ValueError("stop_strings need a tokenizer: build the last model as LM(model, tokenizer)")
        self.strings, self.tokenizer = [strings] if isinstance(strings, str) else list(strings), tokenizer

    def find(self, buffer: TokenBuffer, row: int, new: int) -> int | None:
        """Least length, among those of the last ``new`` tokens, at which the answer of ``row`` has a stop string."""
        answer = buffer.answer(row)
        for length in range(len(answer) - new + 1, len(answer) + 1):
            written = self.tokenizer.decode(answer[:length])
            if any(string in written for string in self.strings):
                return length
        return None
