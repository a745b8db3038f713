"""``generate``: the one loop that starts, stops, counts and times decoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from decoding.cost.batch_size import warn_of_batch_size
from decoding.cost.speedup import warn_if_slower
from decoding.models.lm import LM
from decoding.models.memory import check_fits
from decoding.models.settings import end_tokens, ignored_names, refuse_settings, stop_strings, text_processors
from decoding.models.vocabulary import check_compatible
from decoding.state.generation_state import GenerationState
from decoding.state.sampling import Sampling
from decoding.state.streaming import Piece, PieceStream, StopStrings
from decoding.state.token_buffer import Commit, Heard, TokenBuffer


class Decoder(Protocol):
    """Models, cheapest first; how many scratch slots a draft needs; and a generator of commits.

    A decoder whose draft model writes the same number of tokens in every round may have it as ``draft_length``.
    """

    models: list[LM]
    scratch: int

    def write(self, state: GenerationState) -> Iterator[Commit]: ...


@dataclass(slots=True)
class Result:
    """The result of ``generate``."""

    sequences: Tensor
    """[batch, prompt + new] the prompt as given and the answer, right-padded"""
    lengths: Tensor
    """[batch] new tokens, a final EOS included"""
    writers: Tensor
    """int8 [batch, new] index of the model that wrote each token, -1 for padding; a draft is 0 and its target 1, also
    if the draft is not a model"""
    counts: dict
    """sums over rows: "calls" and "tokens_read" per model; "drafted", "accepted" (drafted tokens that are in the
    answers), "escalated" per policy; where the host hears of tokens late, "wasted": those that the first model computed
    again before the host heard that they escalate"""
    reads: list[list[int]]
    """per model the tokens that each forward read, summed over rows; ``decoding.cost`` prices them"""
    seconds: dict
    """"total" wall time; "prefill" and "models", inside forwards (host clock: meaningful on CPU)"""


def generate(
    decoder: Decoder,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 128,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    stop_strings: Sequence[str] | None = None,
    sampling: Sampling = Sampling(),
    seed: int | None = None,
    stream: Callable[[Piece], None] | None = None,
    ignore_generation_config: Sequence[str] = (),
) -> Result:
    """Write at most ``max_new_tokens`` after each row of ``input_ids`` [batch, length] (left-padded when ragged).

    ``eos_token_id`` and ``stop_strings`` None take those of the last model's generation_config, ``()`` disables them. A
    stop string ends a row after the token that completes it. Row r of a batch with seed s draws what a single run with
    seed s + r draws; ``seed`` None takes a random one. The processors of the last model's generation_config hold for
    every token, whoever writes it (``state.processors``), but for those named in ``ignore_generation_config``;
    ``sampling`` stands in place of its temperature and filters. ``stream(piece)`` is called for every token
    (``streaming.Piece``). If the models' costs on this machine are stored (``decoding.measure_cost``), a draft length
    slower than the large model alone logs one warning.

    Raises ValueError before any forward for input that cannot be decoded (shapes, context length, memory, unequal
    tokenizers, settings of a generation_config that are not applied), FloatingPointError in the step in which a model
    returns NaN, ValueError in that in which processors leave no token.
    """
    began = time.perf_counter()
    with torch.inference_mode():
        what = decoder, input_ids, attention_mask, max_new_tokens, eos_token_id, sampling, seed
        state = start(*what, ignore_generation_config)
        tokenizer = decoder.models[-1].tokenizer
        stops = stops_of(decoder, stop_strings)
        pieces = PieceStream(stream, tokenizer, len(input_ids)) if stream is not None else None
        state.ahead = stops is None and pieces is None
        for _ in commits(decoder, state, stops, pieces):
            pass
    pad = _pad(decoder.models[-1], pad_token_id)
    # Outside inference mode: a result may be trained on.
    result = _result(state, input_ids, pad, time.perf_counter() - began)
    warn_if_slower(decoder, len(input_ids), result.counts)
    return result


def start(
    decoder,
    input_ids,
    attention_mask,
    max_new_tokens,
    eos_token_id,
    sampling,
    seed,
    ignored: Sequence[str] = (),
    longest: int = 0,
) -> GenerationState:
    """Check the arguments of ``generate`` and open a session per model, with room for prompts of ``longest`` tokens."""
    attention_mask = _check_input(input_ids, attention_mask, max_new_tokens)
    models = decoder.models
    shared, vocab = check_compatible(models), models[-1].vocab
    check_ids(models[-1], input_ids)
    ignored = ignored_names(ignored)
    refuse_settings(models[-1], sampling.greedy, ignored)
    eos = end_tokens(models[-1]) if eos_token_id is None else _ids(eos_token_id)
    processors = text_processors(models[-1], eos, max_new_tokens, sampling, ignored, input_ids.device)
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    longest = max(longest, int(attention_mask.sum(1).max()))
    needed = longest + max_new_tokens
    tightest = min(models, key=lambda lm: lm.context)
    if needed > tightest.context:
        raise ValueError(
            f"the longest prompt ({longest} tokens) and max_new_tokens ({max_new_tokens}) need "
            f"{needed} positions, but {tightest.name} has {tightest.context}"
        )
    buffer = TokenBuffer(input_ids, attention_mask, max_new_tokens, decoder.scratch, eos, seed, longest)
    check_fits(models, len(input_ids), buffer.capacity)
    warn_of_batch_size(decoder, len(input_ids))
    sessions = [lm.session(len(input_ids), buffer.capacity, decoder.scratch) for lm in models]
    for session, ids in zip(sessions, shared, strict=True):
        session.share(vocab, ids)
    return GenerationState(buffer, sessions, sampling, processors)


def check_ids(lm: LM, ids: Tensor) -> None:
    """ValueError for a number that is no token of ``lm``."""
    unknown = ids[(ids < 0) | (ids >= lm.vocab)]
    if len(unknown):
        raise ValueError(f"input_ids must be token ids in [0, {lm.vocab}), not {int(unknown[0])}")


def stops_of(decoder: Decoder, strings: Sequence[str] | None = None) -> StopStrings | None:
    """The stop strings of a generation: ``strings``, by default those of the last model."""
    last = decoder.models[-1]
    strings = stop_strings(last) if strings is None else strings
    return StopStrings(strings, last.tokenizer) if strings else None


def commits(
    decoder: Decoder, state: GenerationState, stops: StopStrings | None = None, pieces: PieceStream | None = None
) -> Iterator[Commit | Heard]:
    """Drive a decoder until every row has ended; a commit is in ``state.buffer`` before it is yielded."""
    writing = decoder.write(state)
    stop = (lambda row, new: stops.find(state.buffer, row, new)) if stops is not None else None
    processors = state.processors
    while len(state.buffer.rows):
        commit = next(writing)
        if isinstance(commit, Heard):
            state.buffer.hear(commit)
            if commit.broken:
                for session in state.sessions:
                    session.check()
            yield commit
            continue
        flags = [session.broken for session in state.sessions]
        if processors is not None and processors.emptied is not None:
            flags.append(processors.emptied)
        if any(state.buffer.append(commit, stop, flags)):
            for session in state.sessions:
                session.check()
            if processors is not None:
                processors.check()
        if pieces is not None:
            pieces.update(state.buffer, commit.rows.tolist())
        yield commit
    writing.close()


def _check_input(input_ids: Tensor, attention_mask: Tensor | None, max_new_tokens: int) -> Tensor:
    tensor = isinstance(input_ids, Tensor)
    if not tensor or input_ids.dim() != 2 or input_ids.dtype != torch.long or 0 in input_ids.shape:
        found = f"{input_ids.dtype} {list(input_ids.shape)}" if tensor else type(input_ids).__name__
        raise ValueError(f"input_ids must be a LongTensor [batch, length], not {found}")
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if not isinstance(attention_mask, Tensor):
        raise ValueError(f"attention_mask must be a tensor [batch, length], not {type(attention_mask).__name__}")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask has shape {list(attention_mask.shape)}, input_ids {list(input_ids.shape)}")
    wrong = attention_mask[(attention_mask != 0) & (attention_mask != 1)]
    if len(wrong):
        raise ValueError(f"attention_mask must be 0 before a prompt and 1 in it; it holds {wrong[0].item()}")
    attention_mask = attention_mask.to(torch.long)
    if bool((attention_mask[:, 1:] < attention_mask[:, :-1]).any()) or bool((attention_mask[:, -1] == 0).any()):
        raise ValueError("attention_mask must be left-padded: zeros, then ones, and no empty row")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    return attention_mask


def _ids(eos: int | Sequence[int]) -> tuple[int, ...]:
    return (eos,) if isinstance(eos, int) else tuple(eos)


def _pad(lm: LM, pad: int | None) -> int:
    if pad is None:
        pad = getattr(lm.model.generation_config, "pad_token_id", None)
    return (*end_tokens(lm), 0)[0] if pad is None else pad


def _result(state: GenerationState, input_ids: Tensor, pad: int, seconds: float) -> Result:
    buffer, sessions = state.buffer, state.sessions
    lengths = buffer.lengths - buffer.prompts
    column = torch.arange(int(lengths.max()), device=buffer.device)
    where = buffer.prompts[:, None] + column
    written = column < lengths[:, None]
    answers = buffer.ids.gather(1, where).masked_fill(~written, pad)
    return Result(
        sequences=torch.cat([input_ids, answers], 1),
        lengths=lengths,
        writers=buffer.writers.gather(1, where).masked_fill(~written, -1),
        counts={
            "calls": [s.calls for s in sessions],
            "tokens_read": [sum(s.reads) for s in sessions],
            "drafted": int(state.drafted),
            "accepted": state.accepted,
            "escalated": state.escalated,
        }
        | ({"wasted": state.wasted} if state.runs_ahead else {}),
        reads=[s.reads for s in sessions],
        seconds={
            "total": seconds,
            "prefill": sum(s.prefill for s in sessions),
            "models": [s.seconds for s in sessions],
        },
    )
