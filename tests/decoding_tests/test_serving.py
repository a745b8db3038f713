"""The server's batch: every request gets the text that it would get alone, whatever it shares a batch with."""

import queue

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_models import nudged, tiny, words

from decoding import LM, MTAD, Autoregressive, Backoff, Sampling, SpecInfer, Speculative, generate
from decoding.serving.batcher import Batcher, Busy
from decoding.serving.bodies import ChatBody
from decoding.serving.jobs import HeldText, Job, Mode
from decoding.serving.writers import Writers
from policies import Rule
from policies.features.step_recorder import StepRecorder

NEW, ROWS = 14, 3
large = LM(tiny("llama", layers=2, seed=1).model, words())
small = LM(nudged(large).model, words())
cut = Rule("entropy", 2.4)
DECODERS = {
    "large": Autoregressive(large),
    "backoff": Backoff([small, large], cut),
    "speculative": Speculative([small, large], length=3),
    "mtad": MTAD([small, large], beams=2, length=3),
    "tree": SpecInfer([small, large]),
}
DRAWN = Sampling(0.8, top_k=20)
GREEDY = Mode(Sampling())


class Asked:
    """A job and the parts of its answer."""

    def __init__(self, prompt, mode=GREEDY, most=NEW, seed=0, stop=()):
        self.parts = queue.Queue()
        self.job = Job(prompt, most, mode, seed, stop, self.parts.put, large.tokenizer)

    def answer(self):
        """(text, finish or error)"""
        text = ""
        while True:
            part = self.parts.get(timeout=60)
            text += part.text
            if part.finish or part.error:
                return text, part.finish or part.error


def alone(decoder, asked: Asked):
    """What ``generate`` writes for the same request: text, tokens."""
    job = asked.job
    ids = torch.tensor([job.prompt])
    how = {"sampling": job.mode.sampling, "seed": job.seed, "stop_strings": job.stop}
    found = generate(decoder, ids, max_new_tokens=job.most, **how)
    tokens = found.sequences[0, len(job.prompt) :][: int(found.lengths[0])].tolist()
    text = large.tokenizer.decode(tokens, skip_special_tokens=True)
    cuts = [at for stop in job.stop if (at := text.find(stop)) >= 0]
    return text[: min(cuts, default=len(text))], len(tokens), found.writers[0, : len(tokens)].tolist()


def prompts(n):
    return [[3 + (5 * i + j) % 30 for j in range(2 + i % 4)] for i in range(n)]


@pytest.fixture
def serving():
    """A function that starts a batcher; all are closed."""
    started = []

    def start(decoder, **options):
        started.append(
            Batcher(decoder if callable(decoder) else lambda _: decoder, **{"rows": ROWS, "length": 64} | options)
        )
        return started[-1]

    yield start
    for batcher in started:
        batcher.close()


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_sixteen_requests_at_once_get_what_they_get_alone(serving, decoder, sampling):
    batcher = serving(decoder)
    asked = [Asked(p, Mode(sampling), 3 + i % NEW, seed=i) for i, p in enumerate(prompts(16))]
    for one in asked:
        batcher.submit(one.job)
    for one in asked:
        text, count, writers = alone(decoder, one)
        assert one.answer()[0] == text
        assert one.job.tokens == count
        assert [one.job.written[i] for i in (0, 1)] == [writers.count(0), writers.count(1)]


def test_a_request_says_why_it_ends_and_shows_nothing_of_its_stop_string(serving):
    batcher = serving(DECODERS["speculative"])
    free = Asked([3, 9, 20])
    text = alone(DECODERS["speculative"], free)[0]
    stop = text.split()[4]
    asked = [free, Asked([3, 9, 20], stop=(stop,)), Asked([3, 9, 20], most=2)]
    for one in asked:
        batcher.submit(one.job)
    whole, stopped, short = [one.answer() for one in asked]
    assert whole == (text, "length")
    assert stopped == (text[: text.index(stop)], "stop")
    assert short[1] == "length" and text.startswith(short[0])


def test_requests_of_other_modes_wait_for_each_other_and_change_nothing(serving):
    writers = Writers(DECODERS["backoff"], cut, Sampling())
    batcher = serving(writers)
    modes = [
        GREEDY,
        Mode(DRAWN),
        Mode(Sampling(), alone=True),
        Mode(Sampling(), threshold=0.0),
        Mode(Sampling(), threshold=9.0),
    ]
    asked = [Asked(p, modes[i % 5], seed=i) for i, p in enumerate(prompts(15))]
    for one in asked:
        batcher.submit(one.job)
    for i, one in enumerate(asked):
        mode, found = modes[i % 5], one.answer()[0]
        rule = Rule("entropy", 2.4 if mode.threshold is None else mode.threshold)
        decoder = Autoregressive(large) if mode.alone else Backoff([small, large], rule)
        assert found == alone(decoder, one)[0]
    by_threshold = [[one.job.written[1] for one in asked[i::5]] for i in (3, 4)]
    assert sum(by_threshold[0]) > 10 * sum(by_threshold[1])  # an EOS is the large model's in any case


def test_what_is_served_as_tuned_is_recorded_and_nothing_else_is(serving):
    recorder, ended = StepRecorder(cut), []
    writers = Writers(DECODERS["backoff"], cut, Sampling(), logged=Backoff([small, large], recorder))
    batcher = serving(writers, ended=lambda mode, texts: ended.append((mode, texts)))
    modes = [GREEDY, Mode(Sampling(), threshold=2.0), Mode(DRAWN)]
    asked = [Asked(p, modes[i % 3], seed=i) for i, p in enumerate(prompts(12))]
    for one in asked:
        batcher.submit(one.job)
    batcher.close()
    for mode in modes:
        assert sum(texts for other, texts in ended if other == mode) == 4
    assert len(recorder.take()["escalated"]) == sum(one.job.tokens for one in asked[::3])
    assert asked[0].answer()[0] == alone(DECODERS["backoff"], asked[0])[0]


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_requests_one_after_another_share_the_caches_and_nothing_else(serving, decoder):
    batcher, states = serving(decoder), []
    for i, prompt in enumerate(prompts(6)):
        one = Asked(prompt, GREEDY if i < 4 else Mode(DRAWN), seed=i)
        batcher.submit(one.job)
        assert one.answer()[0] == alone(decoder, one)[0]
        while batcher._kept is None:
            pass
        states.append(batcher._kept[1])
    assert all(state is states[0] for state in states[:4]) and states[4] is states[5] is not states[0]
    assert len(states[0].buffer.on_restart) <= 1  # those of earlier batches are gone


def test_a_request_that_nobody_wants_frees_its_row(serving):
    batcher = serving(DECODERS["large"], rows=1, length=250)
    long, next_one = Asked([3, 4], most=240), Asked([5, 6], most=3)
    batcher.submit(long.job)
    long.parts.get(timeout=60)
    batcher.submit(next_one.job)
    long.job.cancelled = True
    assert next_one.answer()[0] == alone(DECODERS["large"], next_one)[0]
    assert long.answer()[1] == "cancelled" and long.job.tokens < 240


def test_too_many_and_too_long_requests_are_refused(serving):
    batcher = serving(DECODERS["large"], rows=1, length=250, queue=2)
    with pytest.raises(
        ValueError, match="the prompt has 2 tokens and the answer may have 249, which is more than the 250"
    ):
        batcher.submit(Asked([3, 4], most=249).job)
    first = Asked([3, 4], most=240)
    batcher.submit(first.job)
    first.parts.get(timeout=60)
    waiting = [Asked([3, 4], most=1) for _ in range(2)]
    for one in waiting:
        batcher.submit(one.job)
    with pytest.raises(Busy, match="2 requests wait already"):
        batcher.submit(Asked([3, 4], most=1).job)
    first.job.cancelled = True
    assert [one.answer()[1] for one in waiting] == ["length"] * 2


def test_a_batch_that_fails_is_said_and_the_next_is_served(serving):
    def breaks(mode):
        if mode.threshold is not None:
            raise FloatingPointError("NaN")
        return DECODERS["large"]

    batcher = serving(breaks)
    broken, whole = Asked([3], Mode(Sampling(), threshold=1.0)), Asked([3])
    batcher.submit(broken.job)
    batcher.submit(whole.job)
    assert broken.answer() == ("", "the model failed: NaN")
    assert whole.answer()[0] == alone(DECODERS["large"], whole)[0]


def test_closing_finishes_what_was_asked(serving):
    batcher = serving(DECODERS["large"])
    asked = [Asked(p) for p in prompts(7)]
    for one in asked:
        batcher.submit(one.job)
    batcher.close()
    assert all(one.answer() == (alone(DECODERS["large"], one)[0], "length") for one in asked)
    with pytest.raises(Busy, match="closing"):
        batcher.submit(Asked([3]).job)


@example(["a", "b"], ["ab"])
@given(st.lists(st.text("abc", max_size=3), max_size=8), st.lists(st.text("abc", min_size=1, max_size=4), max_size=2))
def test_held_text_is_the_text_before_the_first_stop_string(pieces, stop):
    whole = ""
    for n, piece in enumerate(pieces, 1):  # the engine ends a text with the token that completes a stop string
        whole += piece
        if any(string in whole for string in stop):
            pieces = pieces[:n]
            break
    held = HeldText(stop)
    shown = "".join(held.push(piece, n == len(pieces)) for n, piece in enumerate(pieces, 1))
    cuts = [at for string in stop if (at := whole.find(string)) >= 0]
    assert shown == whole[: min(cuts, default=len(whole))]
    assert held.found == bool(cuts)


def test_a_target_takes_the_threshold_of_least_loss_that_reaches_it():
    curve = [{"threshold": 1.0, "speedup": 1.2}, {"threshold": 2.0, "speedup": 1.6}]
    writers = Writers(DECODERS["backoff"], cut, Sampling(), curve)

    def mode(policy):
        return writers.mode(ChatBody(messages=[{"role": "user", "content": "hi"}], policy=policy))

    assert mode({"target_speedup": 1.3}) == Mode(Sampling(), threshold=2.0)
    assert mode({"threshold": 0.5}) == Mode(Sampling(), threshold=0.5)
    assert mode("off") == Mode(Sampling(), alone=True)
    with pytest.raises(ValueError, match=r"target_speedup is 2, but by replay this policy reaches at most 1.60"):
        mode({"target_speedup": 2})
    with pytest.raises(ValueError, match="no policy"):
        Writers(DECODERS["large"], None, Sampling()).mode(
            ChatBody(messages=[{"role": "user", "content": "hi"}], policy={"threshold": 1})
        )
