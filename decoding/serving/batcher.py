"""The thread that writes: one continuous batch, which requests enter and leave between two commits (Orca, OSDI 2022).

All rows of a batch draw with one sampling and one threshold. A request that wants others waits until the batch has
ended, and nothing that came after it enters before: so nobody waits for ever, and no text depends on its neighbours.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

import torch

from decoding.generation import Decoder, commits, start
from decoding.serving.jobs import Job, Mode
from decoding.state.generation_state import GenerationState
from decoding.state.streaming import StopStrings
from decoding.state.token_buffer import TokenBuffer

logger = logging.getLogger(__name__)
OFTEN = 16
"""texts after which their end is told, however long the batch goes on"""


class Busy(RuntimeError):
    """The queue is full."""


class Batcher:
    """Writes jobs, ``rows`` of them at once, in a thread of its own.

    decoder: what writes in a ``Mode``. length: most tokens of a prompt and its answer. queue: most jobs that wait.
    ended: called in the thread that writes with a mode and how many texts of it have ended since the last call.
    """

    def __init__(
        self,
        decoder: Callable[[Mode], Decoder],
        rows: int,
        length: int,
        queue: int = 256,
        ignored: Sequence[str] = (),
        ended: Callable[[Mode, int], None] = lambda mode, texts: None,
    ):
        self.ended = ended
        self.decoder, self.rows, self.length, self.queue, self.ignored = decoder, rows, length, queue, ignored
        self.waiting: deque[Job] = deque()
        self.running = 0
        self._kept: tuple[Mode, GenerationState] | None = None
        """the mode and the state of the last batch, if it ended well"""
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Let ``job`` wait for a row. Busy where too many wait; ValueError for one that needs too much room."""
        if len(job.prompt) + job.most > self.length:
            raise ValueError(
                f"the prompt has {len(job.prompt)} tokens and the answer may have {job.most}, which is more than the "
                f"{self.length} that this server has room for"
            )
        with self._changed:
            if self._closing:
                raise Busy("the server is closing")
            if len(self.waiting) >= self.queue:
                raise Busy(f"{len(self.waiting)} requests wait already; try again later")
            self.waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Finish what has been submitted, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (mode := self._next_mode()) is not None:
            of_row: dict[int, Job] = {}
            try:
                with torch.inference_mode():
                    self._write(mode, of_row)
            except Exception as error:  # whatever it is: who waits for these texts hears of it, and the next are served
                logger.exception("a batch failed")
                # Where it failed before the first row was given away, the first that waits would fail again and again.
                for job in filter(None, of_row.values() or [self._take(mode)]):
                    job.fail(f"the model failed: {' '.join(str(error).split())}")
            self.running = 0

    def _next_mode(self) -> Mode | None:
        """The mode of the first job that waits, when there is one; None to end."""
        with self._changed:
            self._changed.wait_for(lambda: self.waiting or self._closing)
            return self.waiting[0].mode if self.waiting else None

    def _write(self, mode: Mode, of_row: dict[int, Job]) -> None:
        """Write all jobs of ``mode`` at the head of the queue, and those that come meanwhile."""
        decoder = self.decoder(mode)
        state = self._empty_state(decoder, mode)
        stops = RowStops(decoder.models[-1].tokenizer)
        self._admit(mode, state, stops, of_row)
        texts = 0
        for commit in commits(decoder, state, stops):
            still_open = set(state.buffer.rows.tolist())
            for row in commit.rows.tolist():
                if not self._pass_on(state.buffer, row, of_row[row], row in still_open):
                    del of_row[row]
                    texts += 1
            if texts >= OFTEN:  # a busy server's batch never ends
                self.ended(mode, texts)
                texts = 0
            self._admit(mode, state, stops, of_row)
        if texts:
            self.ended(mode, texts)
        self._kept = mode, state

    def _empty_state(self, decoder: Decoder, mode: Mode) -> GenerationState:
        """The state of a batch with room for texts of ``length`` tokens, in which every row is closed.

        The last batch's serves again where it is of this mode: its caches are gigabytes, and zeroing them takes longer
        than a short text.
        """
        kept, self._kept = self._kept, None
        if kept is not None and kept[0] == mode:
            kept[1].buffer.on_restart.clear()  # of the last batch's policies
            return kept[1]
        del kept  # before there is another one
        nothing = torch.zeros(self.rows, 1, dtype=torch.long, device=decoder.models[-1].device)
        state = start(decoder, nothing, None, self.length - 1, None, mode.sampling, 0, self.ignored)
        for row in range(self.rows):
            state.buffer.close(row)
        return state

    def _admit(self, mode: Mode, state: GenerationState, stops: RowStops, of_row: dict[int, Job]) -> None:
        """Give free rows to the jobs at the head of the queue, as long as they are of this ``mode``."""
        for row in range(self.rows):
            if row in of_row:
                continue
            job = self._take(mode)
            if job is None:
                break
            of_row[row] = job
            stops.begin(row, job.stop)
            prompt = torch.tensor(job.prompt, device=state.buffer.device)
            state.restart(row, prompt, job.seed, job.most)
        self.running = len(of_row)

    def _take(self, mode: Mode) -> Job | None:
        with self._changed:
            while self.waiting and self.waiting[0].cancelled:
                self.waiting.popleft().cancel()
            return self.waiting.popleft() if self.waiting and self.waiting[0].mode == mode else None

    def _pass_on(self, buffer: TokenBuffer, row: int, job: Job, still_open: bool) -> bool:
        """Pass the new tokens of a row on; whether it goes on."""
        begin = job.tokens
        tokens = buffer.answer(row, begin)
        ended = bool(buffer.lengths[row] < buffer.limits[row]) or int(tokens[-1]) in buffer.eos.tolist()
        finish = None if still_open else "stop" if ended else "length"
        job.add(tokens, buffer.writers_of(row, begin), finish)
        if still_open and job.cancelled:
            buffer.close(row)
            job.cancel()
            return False
        return still_open


class RowStops:
    """The stop strings of each row's own job."""

    def __init__(self, tokenizer):
        self.tokenizer, self.of = tokenizer, {}

    def begin(self, row: int, strings: tuple[str, ...]) -> None:
        """A row begins a text that ends at any of ``strings``."""
        self.of[row] = StopStrings(strings, self.tokenizer) if strings else None

    def find(self, buffer: TokenBuffer, row: int, new: int) -> int | None:
        """As ``StopStrings.find``."""
        own = self.of[row]
        return None if own is None else own.find(buffer, row, new)
