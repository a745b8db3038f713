"""A million prompts: what is read in pieces, sampled, or linear, tested at a size at which it would show."""

import json
import random
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from trace_specimens import made_up

from policies.storage.shards import write_shard
from train.data import overlap, sources
from train.data.components import Components
from train.data.prompts import Prompt, load_prompts
from train.data.splits import groups
from train.traces import trace_sample
from train.traces.handoff_traces import Traces, open_folder, read_traces
from train.traces.reservoir import Reservoir, prompt_keys, row_keys
from train.traces.trace_sample import HELD, read_sample


def peak(job) -> int:
    """Bytes that ``job`` had at once."""
    tracemalloc.start()
    try:
        job()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def prompt(i, text, family="a", group=None):
    return Prompt(f"p{i}", family, group or f"p{i}", text, (1,), None)


def by_definition(prompts: list[Prompt]) -> set[frozenset[str]]:
    """The groups, from all pairs of sets of 8-grams."""
    words = [p.text.split() for p in prompts]
    grams = [{tuple(w[i : i + 8]) for i in range(len(w) - 7)} for w in words]
    family = {name: [i for i, p in enumerate(prompts) if p.family == name] for name in {p.family for p in prompts}}
    own = []
    for p, mine in zip(prompts, grams, strict=True):
        others, least = family[p.family], max(5, 0.02 * len(family[p.family]))
        own.append({gram for gram in mine if sum(gram in grams[j] for j in others) < least})
    found = Components(len(prompts))
    for i, j in combinations(range(len(prompts)), 2):
        same = prompts[i].group == prompts[j].group or words[i] == words[j]
        if same or len(own[i] & own[j]) > 0.5 * min(len(own[i]), len(own[j])):
            found.join(i, j)
    return {frozenset(prompts[i].id for i in np.flatnonzero(found.label == label)) for label in set(found.label)}


@pytest.mark.parametrize("seed", range(12))
def test_groups_are_those_of_the_definition(seed):
    draw = random.Random(seed)
    phrases = [" ".join(f"p{k}x{j}" for j in range(draw.choice([6, 9, 12]))) for k in range(6)]
    rare = lambda: " ".join(f"u{draw.randrange(10_000)}" for _ in range(draw.randrange(1, 14)))  # noqa: E731
    texts = [
        " ".join(draw.choice(phrases) if draw.random() < 0.6 else rare() for _ in range(draw.randrange(1, 5)))
        for _ in range(40)
    ]
    prompts = [prompt(i, t, draw.choice("abc"), f"g{i % 17}" if i % 5 == 0 else None) for i, t in enumerate(texts)]
    names = groups(prompts)
    found = {frozenset(p.id for p, n in zip(prompts, names, strict=True) if n == name) for name in set(names)}
    assert found == by_definition(prompts)


def test_near_copies_are_compared_once_and_not_in_pairs(monkeypatch):
    compared, common = [], overlap._common

    def counting(by_prompt, own, others):
        compared.append(len(others))
        return common(by_prompt, own, others)

    monkeypatch.setattr(overlap, "_common", counting)
    text = " ".join(f"w{i}" for i in range(40))
    copies = [prompt(i, f"{text} {i}", family=f"family {i % 100}") for i in range(400)]
    others = [prompt(400 + i, " ".join(f"v{i}x{j}" for j in range(40))) for i in range(400)]
    assert len(set(groups(copies + others))) == 401
    assert sum(compared) < 2 * 400  # of 79,800 pairs


def test_a_phrase_that_many_prompts_hold_compares_none(monkeypatch):
    """It is in fewer than 2 % of them, so that it is no template, and is not most of any."""
    monkeypatch.setattr(overlap, "_common", None)
    phrase = " ".join(f"w{i}" for i in range(10))
    prompts = [
        prompt(i, " ".join(f"v{i}x{j}" for j in range(30)) + (f" {phrase}" if i % 60 == 0 else "")) for i in range(3000)
    ]
    assert len(set(groups(prompts))) == 3000


def test_memory_of_groups_is_little_a_word(monkeypatch):
    monkeypatch.setattr(overlap, "CHUNK", 2**12)
    prompts = [prompt(i, " ".join(f"v{i}x{j}" for j in range(100))) for i in range(1500)]
    assert peak(lambda: groups(prompts)) < 60 * 1500 * 100  # sets of tuples of words took 250 a word


def test_lines_of_a_file_are_read_one_by_one(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": "word " * 200}) + "\n" for _ in range(4000)))
    assert path.stat().st_size > 4_000_000
    assert peak(lambda: sum(1 for _ in sources._lines(path, "p.jsonl"))) < 400_000


def test_a_token_is_one_object_in_all_prompts(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a b\nc d\n")
    first, second = load_prompts(path, lambda text: {"input_ids": [1000 + len(text), 40_000]})
    assert first.ids[1] is second.ids[1] and first.ids == second.ids == (1003, 40_000)


def sampled(columns, keys, most, pieces):
    found = Reservoir(most)
    for rows in np.array_split(np.arange(len(keys)), pieces):
        found.add({name: column[rows] for name, column in columns.items()}, keys[rows])
    return found.take()


@pytest.mark.parametrize("pieces", [1, 7, 100])
def test_a_sample_does_not_depend_on_the_pieces(pieces):
    n, columns = 1000, {"x": np.arange(1000)}
    keys = row_keys(n, 3, 0)
    found = sampled(columns, keys, 100, pieces)["x"]
    assert sorted(found) == list(found) == sorted(np.argsort(keys)[:100])
    assert (sampled(columns, keys, 2000, pieces)["x"] == columns["x"]).all()


def test_a_sample_is_uniform():
    counts = np.zeros(200)
    for seed in range(400):
        counts[sampled({"x": np.arange(200)}, row_keys(200, seed, 0), 50, 4)["x"]] += 1
    assert counts.sum() == 400 * 50
    assert abs(counts - 100).max() < 4.5 * np.sqrt(400 * 0.25 * 0.75)


def test_keys_keep_prompts_whole():
    names = np.repeat([f"p{i}" for i in range(50)], 10)
    found = sampled({"prompt": names}, prompt_keys(names, 0), 205, 13)["prompt"]
    kept, count = np.unique(found, return_counts=True)
    assert len(kept) == 20 and (count == 10).all()
    assert set(kept) != set(sampled({"prompt": names}, prompt_keys(names, 1), 205, 13)["prompt"])


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of 40 shards of 4 prompts, of two texts each in two rounds."""
    folder = tmp_path_factory.mktemp("traces")
    open_folder(folder, {})
    for shard in range(80):
        columns = made_up(prompts=8 if shard < 40 else 4, seed=shard).columns
        rows = len(columns["position"])
        each = rows // 4
        columns["prompt"] = np.repeat([f"p{4 * (shard % 40) + i}" for i in range(4)], each)
        kinds = ["large", "mixed"] if shard < 40 else ["policy"]
        columns["trajectory"] = np.tile(np.repeat(kinds, 20), 4)
        write_shard(folder, shard, columns)
    return folder


FITTING = {f"p{i}" for i in range(100)}


def test_few_rows_are_all_there(many):
    found, whole = read_sample(many, FITTING), read_traces(many)
    assert found.sentence is None and found.seen == len(whole) == 9600
    own = whole.of(FITTING)
    for name in HELD:
        np.testing.assert_array_equal(found.texts[name], whole[name])
        np.testing.assert_array_equal(found.rows[name], own[name])
    assert found.there == {f"p{i}" for i in range(160)}


def test_many_rows_are_a_sample_of_whole_texts_and_of_rows_of_all_prompts(many, monkeypatch):
    monkeypatch.setattr(trace_sample, "TEXT_ROWS", 1500)
    monkeypatch.setattr(trace_sample, "FIT_ROWS", 800)
    found = read_sample(many, FITTING)
    assert len(found.texts) == 1500 and len(found.rows) == 800
    names, rows = np.unique(found.texts["prompt"], return_counts=True)
    assert (rows == 60).all() and len(names) == 25  # all three texts of each
    assert len(found.texts.starts) - 1 == 75
    fitted = set(found.rows["prompt"].tolist())
    assert fitted <= FITTING and len(fitted) > 95
    assert found.sentence == "of 9,600 rows of traces, texts of 1,500 are replayed, and 800 are fitted to"
    assert found.there == {f"p{i}" for i in range(160)}
    again = read_sample(many, FITTING)
    assert (again.rows["entropy"] == found.rows["entropy"]).all()
    assert (read_sample(many, FITTING, seed=1).texts["prompt"] != found.texts["prompt"]).any()


def test_shards_are_read_one_by_one(many, monkeypatch):
    monkeypatch.setattr(trace_sample, "TEXT_ROWS", 300)
    monkeypatch.setattr(trace_sample, "FIT_ROWS", 100)
    whole = sum(column.nbytes for column in read_traces(many).columns.values())
    read_sample(many, FITTING)  # pyarrow is imported
    assert peak(lambda: read_sample(many, FITTING)) < 0.4 * whole


def test_a_sample_of_rows_fits_as_all_do():
    traces = made_up(prompts=400)
    from policies import Logistic

    keys = row_keys(len(traces), 0, 0)
    some = Traces(sampled(traces.columns, keys, 4000, 5))
    whole, part = (
        Logistic(("entropy", "top1")).fit(one.table(("entropy", "top1")), one.risk) for one in (traces, some)
    )
    np.testing.assert_allclose(part.coef_, whole.coef_, atol=0.15)
