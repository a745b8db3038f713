"""Text from tokens while they are being written: pieces of a stream, and stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix

from decoding.state.token_buffer import TokenBuffer

UNFINISHED = "\ufffd"
"""what the bytes of an unfinished character, and those of none, decode to"""
LONGEST = 4
"""bytes of a character, and so tokens that write it"""
MARGIN = 16
"""tokens, or characters, within which decoding depends on the text before"""


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
        self.sink = sink
        self.sent = [0] * rows
        self.decoders = None if tokenizer is None else [PieceDecoder(tokenizer) for _ in range(rows)]

    def update(self, buffer: TokenBuffer, rows: Sequence[int]) -> None:
        """Send the tokens that ``rows`` have gained since the last call."""
        open_rows = set(buffer.rows.tolist())
        for row in rows:
            tokens, writers = buffer.answer(row, self.sent[row]), buffer.writers_of(row, self.sent[row])
            self.sent[row] += len(tokens)
            for left, (token, writer) in enumerate(zip(tokens, writers, strict=True), 1 - len(tokens)):
                last = left == 0 and row not in open_rows
                text = "" if self.decoders is None else self.decoders[row].push(token, last)
                self.sink(Piece(row, text, token, writer))


class PieceDecoder:
    """The text that each token of an answer completes, in time that does not grow with the answer.

    A token is decoded with those of the piece before it, to keep the space between words, and with those that wait
    for the rest of a character.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self.skipped = special.intersection(tokenizer.all_special_ids)
        self.window: list[int] = []
        self.shown, self.before = 0, ""
        """of the window: the tokens whose text has been returned, and this text"""

    def push(self, token: int, last: bool) -> str:
        """The text that ``token`` completes; as the ``last`` token also an unfinished character."""
        if token not in self.skipped:
            self.window.append(token)
        if not last and self._waits(token):
            return ""
        now = self._decode(self.window)
        if now == self.before or (now.endswith(UNFINISHED) and not last):
            return ""
        text = now[len(self.before) :]
        self.window, self.shown = self.window[self.shown :], len(self.window) - self.shown
        self.before = self._decode(self.window)
        return text

    def _waits(self, token: int) -> bool:
        """Whether ``token`` surely completes nothing: decoding a long run of bytes at each of them takes long."""
        long = len(self.window) - self.shown > LONGEST
        return token in self.skipped or (long and self._decode(self.window[-LONGEST:]).endswith(UNFINISHED))

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def pieces(tokenizer, answer: list[int]) -> list[str]:
    """The text completed by each token of ``answer``, as in a stream."""
    decoder = PieceDecoder(tokenizer)
    return [decoder.push(token, end == len(answer)) for end, token in enumerate(answer, 1)]


class StopStrings:
    """Finds the shortest answer of a row that contains a stop string, in time that does not grow with the answer.

    Raises ValueError without a tokenizer, and for a stop string that is empty or no string.
    """

    def __init__(self, strings: Sequence[str], tokenizer):
        if tokenizer is None:
            raise ValueError("stop_strings need a tokenizer: build the last model as LM(model, tokenizer)")
        self.strings, self.tokenizer = [strings] if isinstance(strings, str) else list(strings), tokenizer
        for string in self.strings:
            if not isinstance(string, str) or not string:
                raise ValueError(f"a stop string must be a text of at least one character, not {string!r}")
        self.enough = max(map(len, self.strings), default=0) + MARGIN
        self.windows: dict[int, tuple[list[int], str]] = {}
        """by row: the last tokens, and their text"""

    def find(self, buffer: TokenBuffer, row: int, new: int) -> int | None:
        """Least length, among those of the last ``new`` tokens, at which the answer of ``row`` has a stop string.

        Must be called for every token of the row, in order.
        """
        length = int(buffer.lengths[row] - buffer.prompts[row])
        for before, token in enumerate(buffer.answer(row, length - new), length - new):
            if self._completed(row, token):
                return before + 1
        return None

    def restart(self, row: int) -> None:
        """Forget the text of a row that begins another one."""
        self.windows.pop(row, None)

    def _completed(self, row: int, token: int) -> bool:
        """Whether ``token`` completes a stop string: the text had none, so one must end in what the token changes."""
        window, before = self.windows.get(row, ([], ""))
        window = [*window, token]
        now = self.tokenizer.decode(window)
        same = len(commonprefix([before, now]))  # noqa: RUF071 - by characters is right here
        self.windows[row] = self._shortened(window, now)
        return any(now.find(string, max(0, same - len(string) + 1)) >= 0 for string in self.strings)

    def _shortened(self, window: list[int], text: str) -> tuple[list[int], str]:
        """The later half of a long window, if its text is long enough and does not depend on the earlier half."""
        if len(window) > MARGIN:
            half = window[len(window) // 2 :]
            later = self.tokenizer.decode(half)
            if len(later) >= self.enough and text.endswith(later):
                return half, later
        return window, text
