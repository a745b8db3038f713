"""The hold-out: texts in batches are those of single runs, a dozen are timed, losses and scores are of all."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import save_toys, toy_pair, toy_prompts
from toy_graders import variety
from trace_specimens import COST

from decoding import Backoff, Speculative, generate
from decoding.models.settings import end_tokens
from policies import Random, Rule
from train.common.generations import places, write
from train.common.job import Job
from train.common.preparation import make_splits
from train.common.settings import FitPolicy
from train.data.prompts import PromptError
from train.data.splits import groups
from train.evaluation import holdout, scores
from train.quality.metric import QualityMetric

NEW, MANY, TIMED = 8, 40, 5
prompts = toy_prompts(MANY)
GRADER = "toy_graders:variety"


@pytest.fixture(scope="module")
def pair():
    return toy_pair()


@pytest.fixture(scope="module", autouse=True)
def no_llama_cpp():
    """Of another model than the toys, where it is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holdout, "_llama_cpp", lambda job: {})
        yield


def contenders(job):
    return holdout.controls(job) | {
        "random": holdout.Contender("a coin", Backoff(job.models, Random(0.5))),
        "speculative": holdout.Contender("exact", Speculative(job.models, length=3), exact=True),
        "tuned": holdout.Contender("tuned", Backoff(job.models, Rule("entropy", 1.5))),
    }


def job_in(folder, pair, grader=None):
    settings = FitPolicy(max_new_tokens=NEW, timed=TIMED, grader=grader)
    return Job(settings, None, folder, *pair, {"holdout": prompts}, COST, QualityMetric(pair[1], grader, NEW))


@pytest.fixture(scope="module")
def measured(pair, tmp_path_factory):
    """A hold-out with a grader: (job, its measurement)."""
    job = job_in(tmp_path_factory.mktemp("holdout"), pair, GRADER)
    return job, holdout.measure(job, contenders(job), Rule("entropy", 1.5), "a setting")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_texts_in_batches_are_those_of_single_runs(measured):
    job, found = measured
    place = places(prompts)
    assert len(found.rows) == MANY and len(lines(job.folder / "texts.jsonl")) == 5 * MANY
    for name, one in contenders(job).items():
        for prompt, row in [*zip(prompts, found.rows, strict=True)][::3]:
            ids = torch.tensor([prompt.ids])
            alone = generate(one.decoder, ids, max_new_tokens=NEW, seed=place[prompt.id])
            assert row[name]["answer"] == alone.sequences[0, ids.shape[1] :].tolist(), (name, prompt.id)
            assert row[name]["writers"] == alone.writers[0].tolist()


def test_a_few_are_timed_and_these_are_the_same_texts(measured):
    job, found = measured
    timed = lines(job.folder / "holdout.jsonl")
    assert [row["id"] for row in timed] == [p.id for p in prompts[:TIMED]]
    for row, texts in zip(timed, found.rows[:TIMED], strict=True):
        assert {name: one["answer"] for name, one in row["methods"].items()} == {
            name: one["answer"] for name, one in texts.items()
        }
    assert len(found.timed["tuned"]["seconds"]) == found.holdout("it", "", "so").timed == TIMED
    assert len(found.texts["tuned"]["loss"]) == MANY


def test_scores_lead_and_are_paired(measured):
    job, found = measured
    decode = job.large.tokenizer.decode
    ends = set(end_tokens(job.large))
    for key in ("large", "small", "random", "tuned", "speculative"):
        answers = [row[key]["answer"] for row in found.rows]
        graded = np.array([variety("", None, decode(a, skip_special_tokens=True)) for a in answers])
        own = np.array([variety("", None, decode(r["large"]["answer"], skip_special_tokens=True)) for r in found.rows])
        row = found.row(key)
        assert row.score == pytest.approx(graded.mean())
        assert row.score_difference == pytest.approx((graded - own).mean()) == pytest.approx(-row.loss)
        low, high = row.score_difference_interval
        assert low <= row.score_difference <= high
        assert row.at_cap == pytest.approx(np.mean([len(a) == NEW and a[-1] not in ends for a in answers]))
        assert row.guarded == pytest.approx(np.mean([r[key]["guarded"] for r in found.rows]))
    assert found.row("speculative").guarded == 0 < found.row("small").guarded
    said = found.holdout("it", "", "so").verdict
    assert f"Its score is {found.tuned.score:.3f} and the large model's {found.row('large').score:.3f}" in said
    assert (found.grading.grader, found.grading.methods, found.grading.texts) == (GRADER, 3, 3 * MANY)
    assert found.grading.failed == 0 and -1 <= found.grading.over_texts <= 1


def test_without_a_grader_there_is_no_score(pair, tmp_path):
    job = job_in(tmp_path, pair)
    found = holdout.measure(job, contenders(job), Rule("entropy", 1.5), "a setting")
    assert found.grading is None and "Its score" not in found.holdout("it", "", "so").verdict
    assert found.tuned.score is None and found.tuned.guarded is None and 0 <= found.tuned.at_cap <= 1


def test_a_hold_out_goes_on_where_it_was(measured, pair, tmp_path, monkeypatch):
    first, found = measured
    for name in ("texts.jsonl", "holdout.jsonl"):
        (tmp_path / name).write_bytes((first.folder / name).read_bytes())
    path = tmp_path / "texts.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[: 4 * MANY + 20]) + kept[4 * MANY + 20][:9])
    asked = []
    noted = lambda *given, **more: asked.append(1) or write(*given, **more)  # noqa: E731
    monkeypatch.setattr("train.evaluation.text_shards.write", noted)
    job = job_in(tmp_path, pair, GRADER)
    again = holdout.measure(job, contenders(job), Rule("entropy", 1.5), "a setting")
    assert len(asked) == 3 and again.methods == found.methods  # the last batch of three contenders
    holdout.measure(job, contenders(job), Rule("entropy", 1.5), "another setting")
    assert len(asked) == 3 + 5 * 3


def test_seconds_of_hand_offs_are_prices_times_what_the_timed_took(measured):
    _, found = measured
    priced, seconds = found.texts["tuned"]["priced"], found.handoffs["tuned"]["seconds"]
    assert seconds[:TIMED].sum() == pytest.approx(found.timed["tuned"]["seconds"].sum())
    np.testing.assert_allclose(seconds / priced, seconds[0] / priced[0])


@pytest.mark.parametrize(
    ("one", "other", "rho"),
    [([1, 2, 3], [2, 4, 9], 1.0), ([1, 2, 3], [3, 2, 1], -1.0), ([1, 2], [1, 2], None), ([1, 1, 1], [1, 2, 3], None)],
)
def test_rank_correlation(one, other, rho):
    assert scores.rank_correlation(np.array(one), np.array(other)) == (None if rho is None else pytest.approx(rho))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_toys(tmp_path_factory.mktemp("source"), 80)["prompts"]


def splits(pair, source, **changes):
    return make_splits(FitPolicy(prompts=source, max_new_tokens=NEW, **{"limit": 30} | changes), *pair)


def test_more_is_held_out_than_a_share_of_the_limit(pair, source):
    few, many = splits(pair, source, holdout=0), splits(pair, source, holdout=25)
    assert [len(few[name]) for name in ("fit", "tune", "holdout")] == [12, 6, 12]
    assert (many["fit"], many["tune"], many["holdout"][:12]) == (few["fit"], few["tune"], few["holdout"])
    assert len(many["holdout"]) == 25
    every = [p for part in many.values() for p in part]
    names = groups(every)
    assert not set(names[: len(every) - 13]) & set(names[-13:]) and len(set(names[-13:])) == 13


def test_certification_comes_first_where_prompts_are_few(pair, source):
    both = splits(pair, source, holdout=10**6, certify=30)
    assert len(both["certify"]) == 30 and len(both["holdout"]) > 12
    with pytest.raises(PromptError, match="are needed"):
        splits(pair, source, holdout=60, certify=79)


def test_a_file_of_few_prompts_is_split_as_before(pair, source):
    assert splits(pair, source, limit=80, holdout=60) == splits(pair, source, limit=80, holdout=0)


def test_grading_that_fails_is_counted(measured):
    _, found = measured
    grader = SimpleNamespace(name="g", failed={"p1", "p2"})
    assert scores.grading(grader, found.texts, ["small", "random", "tuned"]).failed == 2
