"""A request on its way through the server: what is asked, and the answer as it grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from decoding.state.sampling import Sampling
from decoding.state.streaming import PieceDecoder


@dataclass(frozen=True)
class Mode:
    """What all texts of a batch share."""

    sampling: Sampling
    alone: bool = False
    """whether the large model writes alone, without the policy"""
    threshold: float | None = None
    """of the policy; None: as tuned"""


@dataclass(frozen=True)
class Part:
    """A piece of an answer."""

    text: str
    finish: str | None = None
    """in the last piece why it ends, as OpenAI's API says it: "stop" or "length"; "cancelled" where nobody wants it"""
    error: str | None = None
    """in the last piece, where the answer failed"""


@dataclass(eq=False)
class Job:
    """One text to write. ``sink`` is called with every part, in the thread that writes."""

    prompt: Sequence[int]
    most: int
    """tokens of the answer"""
    mode: Mode
    seed: int
    stop: tuple[str, ...]
    sink: Callable[[Part], None]
    tokenizer: object
    cancelled: bool = False
    """set by whoever no longer wants the answer; its row is then free after the next commit"""
    written: Counter = field(default_factory=Counter)
    """tokens by the index of the model that wrote them"""

    def __post_init__(self) -> None:
        self._pieces, self._text = PieceDecoder(self.tokenizer), HeldText(self.stop)

    @property
    def tokens(self) -> int:
        """Tokens of the answer so far, a final EOS included."""
        return self.written.total()

    def add(self, tokens: Sequence[int], writers: Sequence[int], finish: str | None) -> None:
        """Pass on new ``tokens``; ``finish`` where they are the last ones."""
        self.written.update(writers)
        last = len(tokens) - 1 if finish else len(tokens)
        pushed = "".join(self._pieces.push(token, i == last) for i, token in enumerate(tokens))
        text = self._text.push(pushed, finish is not None)
        if finish and self._text.found:
            finish = "stop"
        if text or finish:
            self.sink(Part(text, finish))

    def cancel(self) -> None:
        """Tell that nothing more comes, as nobody wants it."""
        self.sink(Part("", "cancelled"))

    def fail(self, sentence: str) -> None:
        """Tell that there will be no answer."""
        self.sink(Part("", error=sentence))


class HeldText:
    """Text before the first of ``stop``: what could be the beginning of one is held until that is known.

    ``found``: whether the whole text had one.
    """

    def __init__(self, stop: Sequence[str]):
        self.stop, self.held, self.found = stop, "", False
        self.longest = max(map(len, stop), default=1) - 1

    def push(self, text: str, last: bool) -> str:
        """The text that may be shown now. The text ends with the token that completes a stop string, if any does."""
        self.held += text
        if last:
            places = [at for string in self.stop if (at := self.held.find(string)) >= 0]
            shown, self.found = min(places, default=len(self.held)), bool(places)
        else:
            shown = max(0, len(self.held) - self.longest)
        text, self.held = self.held[:shown], self.held[shown:]
        return text
