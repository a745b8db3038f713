"""What a policy is shown: checked by hand for models that count, and against the text for those that do not."""

import pytest
import torch
from tiny_models import eager, nudged, successor, tiny

from decoding import Backoff, Speculative, generate
from decoding.generation import commits, start
from decoding.state.policy_state import entropy
from decoding.state.sampling import POLICY, Sampling, counter_noise
from decoding.state.suffix import longest_repeated_suffix

NAN = float("nan")
counting, mistaken = successor({}), successor({5: 0})


class Watcher:
    """A policy that writes down what it was shown."""

    def __init__(self, decide=lambda step: torch.zeros_like(step.position, dtype=torch.bool)):
        self.decide, self.steps = decide, []

    def __call__(self, step):
        self.steps.append(step)
        return self.decide(step)

    def column(self, name):
        return [getattr(step, name)[0].item() for step in self.steps]


def test_steps_of_a_backoff_by_hand():
    watcher = Watcher(lambda step: step.position % 4 == 3)
    generate(Backoff([mistaken, counting], watcher), torch.tensor([[2]]), max_new_tokens=10, eos_token_id=(), seed=6)
    assert watcher.column("position") == list(range(10))
    assert watcher.column("last_token") == list(range(2, 12))
    assert watcher.column("since_large") == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert watcher.column("agreed") == pytest.approx([NAN] * 4 + [0] * 4 + [1] * 2, nan_ok=True)
    said = entropy(counting.model(torch.tensor([[5], [9]])).logits[:, -1]).tolist()
    expected = [NAN] * 4 + [said[0]] * 4 + [said[1]] * 2
    assert watcher.column("large_entropy") == pytest.approx(expected, nan_ok=True, rel=1e-5)
    assert watcher.column("uniform") == counter_noise(torch.tensor([6]), torch.arange(10), POLICY).tolist()


def test_steps_of_a_draft_by_hand():
    """It drafts 3 4 5 and a wrong 0, is told 6, and starts again after it."""
    watcher = Watcher()
    decoder = Speculative([mistaken, counting], length=4, stop=watcher)
    generate(decoder, torch.tensor([[2]]), max_new_tokens=10, eos_token_id=())
    assert watcher.column("position") == [0, 1, 2, 3, 4, 5, 6, 7, 9][: len(watcher.steps)]
    assert watcher.column("last_token")[:8] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert watcher.column("since_large")[:8] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert watcher.column("agreed")[:8] == pytest.approx([NAN] * 4 + [0] * 4, nan_ok=True)


def test_each_policy_of_a_backoff_has_noise_of_its_own():
    watchers = [Watcher(lambda step: step.position >= 0), Watcher()]
    decoder = Backoff([counting, mistaken, counting], watchers)
    generate(decoder, torch.tensor([[2]]), max_new_tokens=5, eos_token_id=(), seed=1)
    for i, watcher in enumerate(watchers):
        assert watcher.column("uniform") == counter_noise(torch.tensor([1]), torch.arange(5), POLICY + i).tolist()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_logits_and_hidden_states_are_those_of_the_text(kind, prompts):
    ids, mask = prompts
    large = tiny(kind, layers=2, seed=1)
    small = nudged(large)
    watcher = Watcher(lambda step: step.position % 2 == 0)
    watcher.needs_hidden = True
    result = generate(Backoff([small, large], watcher), ids, mask, max_new_tokens=6, eos_token_id=())
    reference = eager(small)
    for row, prompt in enumerate(mask.sum(1).tolist()):
        text = result.sequences[row : row + 1, ids.shape[1] - prompt :]
        fresh = reference(text, output_hidden_states=True)
        for position, step in enumerate(watcher.steps):
            at = prompt + position - 1
            torch.testing.assert_close(step.logits[row], fresh.logits[0, at], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(step.hidden[row], fresh.hidden_states[-1][0, at], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.0, 0.3], ids=["fixed", "stopped"])
def test_a_draft_reads_the_text_after_every_rollback(rate):
    """A draft that read what was rejected would still end in the right text, only later."""
    large = tiny("llama", layers=2, seed=1)
    small = nudged(large)
    reference = eager(small)

    def reader(step):
        length = int(run.buffer.prompts + step.position)
        torch.testing.assert_close(
            step.logits, reference(run.buffer.ids[:, :length]).logits[:, -1], atol=1e-4, rtol=1e-4
        )
        return step.uniform < rate

    run = start(Speculative([small, large], length=6), torch.tensor([[5, 9, 4]]), None, 20, (), Sampling(1.0), 0)
    for _ in commits(Speculative([small, large], length=6, stop=reader), run):
        pass
    assert 0 < run.accepted < run.drafted


class Historian:
    """Keeps the last token and the position of each step as history, and compares what it is given with the text."""

    history, window = ("last_token", "position"), 5

    def __init__(self, decide):
        self.decide, self.known = decide, 0

    def observe(self, step):
        return torch.stack([step.last_token, step.position], -1)

    def __call__(self, step):
        position, length = int(step.position), int(self.buffer.prompts + step.position)
        for back in range(1, self.window + 1):
            token, where = step.history[0, -back].tolist()
            if where == where:
                assert where == position - back
                assert token == self.buffer.ids[0, length - back - 1]
                self.known += 1
            else:
                assert token != token
        return self.decide(step)


@pytest.mark.parametrize("name", ["backoff", "speculative", "stopped", "kept"])
def test_history_is_that_of_the_text_after_every_rollback(name):
    large = tiny("llama", layers=2, seed=1)
    small = nudged(large)
    rare = Historian(lambda step: entropy(step.logits) > 2.4)
    decoder = {
        "backoff": Backoff([small, nudged(large, seed=6), large], [lambda step: step.uniform < 0.5, rare]),
        "speculative": Speculative([small, large], length=6, stop=Historian(lambda step: step.uniform < 0)),
        "stopped": Speculative([small, large], length=6, stop=rare),
        "kept": Speculative([small, large], length=6, stop=rare, keep_stop_token=True),
    }[name]
    watched = decoder.policies[1] if name == "backoff" else decoder.stop
    for seed in range(3):
        run = start(decoder, torch.tensor([[5, 9, 4]]), None, 40, (), Sampling(1.0), seed)
        watched.buffer = run.buffer
        for _ in commits(decoder, run):
            pass
    assert watched.known > 40
    if name != "backoff":
        assert 0 < run.accepted < run.drafted


def test_repeated_is_the_longest_end_that_was_there_before():
    def by_hand(answer):
        ends = [answer[:i] for i in range(len(answer))]
        lengths = range(min(8, len(answer)) + 1)
        return max(k for k in lengths if k == 0 or any(len(e) >= k and e[-k:] == answer[-k:] for e in ends))

    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(0, 2, (60, 20), generator=generator)
    lengths = torch.randint(0, 21, (60,), generator=generator)
    found = longest_repeated_suffix(answers, lengths).tolist()
    assert found == [by_hand(row[:n].tolist()) for row, n in zip(answers, lengths.tolist(), strict=True)]
    assert len(set(found)) > 4
