"""Backoff Decoding's tables: the command on a finished run, and the arithmetic of its rows."""

import json
import re
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from feature_steps import step_of
from tiny_models import nudged
from tiny_runs import toy_pair, toy_prompts, write_prompts
from trace_specimens import made_up

from decoding.cost import cache
from decoding.cost.costs import ModelCosts, seconds
from experiments.backoff import main
from experiments.backoff_tables.policies import METHODS, Evenly, Fits
from experiments.backoff_tables.table import against_chance, large_share, seconds_per_token, summarize
from experiments.shared import estimates
from experiments.shared.decision_cost import decision_share
from experiments.shared.handoff_texts import price_texts
from policies import Periodic, Rule
from policies.decoder_spec import DecoderSpec
from train.common.job import Tuned
from train.common.preparation import prepare
from train.common.result import Holdout, write_result
from train.evaluation.live import bootstrap
from train.fit_policy import FitPolicy
from train.methods.backoff import BackoffMethod
from train.pipeline import describe
from train.replay.pricing import handoff_seconds
from train.search.study import open_study, run_study

TABLES = ({1: 1.0, 2: 1.5, 64: 20.0}, {1: 10.0, 2: 11.0, 64: 30.0}, {1: 100.0, 2: 110.0, 64: 300.0})
HOW = {"limit": 6, "batch": 4, "name": "toy"}


def options(**given) -> list[str]:
    return [f"--{key}={value}" for key, value in given.items()]


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Intervals from 100 draws: how they are drawn has its own test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "bootstrap", lambda statistic, n, draws: bootstrap(statistic, n, draws=100))
        yield


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A finished run of the main job on saved toys, a model between them, and the experiment's folder."""
    folder = tmp_path_factory.mktemp("backoff")
    small, large = toy_pair()
    for name, lm in (("small", small), ("middle", nudged(large, 0.15, seed=9)), ("large", large)):
        lm.model.save_pretrained(folder / name)
        small.tokenizer.save_pretrained(folder / name)
    pair = {"small": folder / "small", "large": folder / "large", "prompts": write_prompts(folder / "prompts.jsonl")}
    finish(FitPolicy(**pair, limit=12, max_new_tokens=12, quality_budget=0.95, holdout=1, output=folder / "runs"))
    start = [str(folder / "runs" / "default"), "--rates", "0.5", f"--middle={folder / 'middle'}"]
    arguments = [*start, *options(**HOW, output=folder / "out")]
    assert main(arguments) == 0
    return SimpleNamespace(folder=folder, arguments=arguments, out=folder / "out" / "toy", run=folder / "runs/default")


def finish(config) -> None:
    """A run of the main job without what depends on the clock: the first policy is chosen, nothing is timed."""
    folder = config.output / config.name
    folder.mkdir(parents=True)
    cache.write(folder / "cost.json", [], ModelCosts(TABLES[:2]))
    job = prepare(config)
    method = BackoffMethod(job)
    search = method.search
    study = open_study(folder / "study.journal", 0, search.baselines())
    run_study(study, search, 1, [])
    (trial,) = [t for t in study.trials if t.values is not None]
    policy = search.policy(trial.params)
    unmeasured = Holdout(methods=[], live_over_table=1.0, samples=[], verdict="")
    result = describe(job, method, study, Tuned(policy, DecoderSpec(), trial.number, 0.5), unmeasured)
    groups = {name: sorted({p.group for p in prompts}) for name, prompts in job.splits.items()}
    policy.save(folder / "policy.json", result.models, {"groups": groups})
    write_result(result, folder)


def texts(out, name):
    return [json.loads(line) for line in (out / "texts" / f"{name}.jsonl").read_text().splitlines()]


def test_every_method_at_every_rate(toys):
    result = json.loads((toys.out / "result.json").read_text())
    rows = {(row["key"], row["rate"]): row for row in result["methods"]}
    assert rows.keys() == {("small", 0.0), *((key, 0.5) for key in METHODS)}
    assert (toys.out / "backoff.png").read_bytes().startswith(b"\x89PNG")
    for (key, rate), row in rows.items():
        written = texts(toys.out, "small" if key == "small" else f"{key}-{rate:g}")
        writers = [w for text in written for w in text["writers"]]
        top = 2 if key.startswith("three") else 1
        assert len(written) == HOW["limit"]
        assert row["large_share"] == pytest.approx(np.mean([w == top for w in writers]))
        assert row["loss"] == pytest.approx(np.mean([text["loss"] for text in written]))
        assert row["loss_interval"][0] <= row["loss"] <= row["loss_interval"][1]
        assert row["speedup"] > 0
        assert key == "small" or (row["decision_share"] == 0) == key.endswith("oracle")
    assert rows["small", 0.0]["difference"] == rows["random", 0.5]["difference"] == 0
    assert {w for text in texts(toys.out, "three_random-0.5") for w in text["writers"]} == {0, 1, 2}


def test_prompts_are_of_groups_that_the_run_never_saw(toys):
    from train.data.prompts import load_prompts

    seen = json.loads((toys.run / "policy.json").read_text())["provenance"]["groups"]
    tokenizer = toy_pair()[1].tokenizer
    groups = {p.id: p.group for p in load_prompts(toys.folder / "prompts.jsonl", tokenizer)}
    own = {groups[row["id"]] for row in texts(toys.out, "large")}
    assert len(own) == HOW["limit"]
    assert not own & {group for some in seen.values() for group in some}


def test_a_stopped_run_goes_on_and_ends_the_same(toys, tmp_path):
    out = shutil.copytree(toys.out, tmp_path / "toy")
    whole = {path.name: path.read_bytes() for path in (out / "texts").iterdir()}
    (out / "texts" / "kl_mlp-0.5.jsonl").unlink()
    random = out / "texts" / "random-0.5.jsonl"
    random.write_bytes(random.read_bytes()[:-7])
    before = json.loads((out / "result.json").read_text())
    (out / "result.json").unlink()
    untouched = (out / "texts" / "entropy-0.5.jsonl").stat().st_mtime_ns
    assert main([*toys.arguments[:-1], f"--output={tmp_path}"]) == 0
    assert {path.name: path.read_bytes() for path in (out / "texts").iterdir()} == whole
    assert (out / "texts" / "entropy-0.5.jsonl").stat().st_mtime_ns == untouched
    assert json.loads((out / "result.json").read_text()) == before


def test_two_models_at_the_runs_own_prices(toys, tmp_path):
    chosen = ["--rates", "0.3", "0.7", "--methods", "saving", "kl_oracle"]
    assert main([str(toys.run), *chosen, *options(**HOW, output=tmp_path)]) == 0
    result = json.loads((tmp_path / "toy" / "result.json").read_text())
    cost = json.loads((toys.run / "result.json").read_text())["cost"]
    assert result["tables"] == [cost["small"], cost["large"]]
    shares = {(row["key"], row["rate"]): row["large_share"] for row in result["methods"]}
    assert shares.keys() == {
        ("small", 0.0),
        *((key, r) for key in ("random", "saving", "kl_oracle") for r in (0.3, 0.7)),
    }
    assert all(shares[key, 0.3] < shares[key, 0.7] for key in ("random", "saving", "kl_oracle"))
    assert texts(tmp_path / "toy", "small") == texts(toys.out, "small")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--rates", "0.5", "1.0"], "--rates are shares between 0 and 1"),
        (["--methods", "magic"], "no method 'magic'.*kl_logistic"),
        (["--methods", "three_kl"], "three_kl needs a third model"),
        (["--limit", "0"], "--limit must be at least 1, not 0"),
        (["--kl-quantile", "1.0"], "--kl-quantile must be between 0 and 1"),
        (["--kl-cut", "1e9", "--limit", "6"], "labels are all 0"),
        (["--middle", "nowhere/at/all"], "middle model (at )?nowhere"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(toys, tmp_path, capfd, wrong, says):
    capfd.readouterr()
    assert main([str(toys.run), f"--output={tmp_path / 'out'}", *wrong]) == 2
    err = capfd.readouterr().err
    assert err.startswith("backoff: ")
    assert err.count("\n") == 1
    assert re.search(says, err)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_texts_or_no_run_is_refused(toys, tmp_path, capfd):
    assert main([*toys.arguments, "--kl-cut=0.2"]) == 2
    assert "holds a run with another --kl-cut;" in capfd.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "has no run.json; give the folder of a finished run" in capfd.readouterr().err


@pytest.mark.parametrize("writers", [[0, 0, 1, 0, 1, 1, 0], [0] * 5, [1] * 4])
def test_two_models_are_priced_by_who_wrote(writers):
    small, large = TABLES[:2]
    asked = [i for i, writer in enumerate(writers) if writer]
    gaps = [b - a for a, b in zip([-9, *asked], asked, strict=False)]
    expected = seconds(small, 9) + (len(writers) - 1) * 1.0 + sum(seconds(large, gap) for gap in gaps)
    assert handoff_seconds(9, writers, ModelCosts(TABLES[:2])) == pytest.approx(float(expected))


def test_columns_of_a_text_by_three():
    (prompt,) = toy_prompts(1)
    n = len(prompt.ids)
    row = {"answer": [5] * 6, "writers": [0, 2, 1, 0, 0, 2], "loss": 0.25, "regret": 0.5}
    found = {
        name: float(values[0]) for name, values in price_texts([row], [prompt], ModelCosts(TABLES), (0.5, 4.0)).items()
    }
    first, second, third = TABLES
    small = seconds(first, n) + 5
    middle = seconds(second, n + 1) + seconds(second, 1) + seconds(second, 3)  # asked at 1, 2 and 5
    large = seconds(third, n + 1) + seconds(third, 4)
    assert found.pop("seconds") == pytest.approx(float(small + middle + large) + 6 * 0.5 + 3 * 4.0)
    assert found == {"tokens": 6, "large": 2, "runs": 2, "loss": 0.25, "regret": 0.5}


def text_columns(large, loss, each=10.0):
    """Two prompts of 10 tokens, ``large`` of the large model in both, ``each`` seconds."""
    values = {"tokens": 10, "large": large, "runs": 2, "seconds": each, "regret": 0}
    return {name: np.full(2, float(value)) for name, value in values.items()} | {"loss": np.array(loss)}


def test_chance_is_interpolated_at_the_same_share_or_speed():
    chance = [text_columns(10, [0, 0], 20), text_columns(0, [0.8, 0.6], 4), text_columns(5, [0.5, 0.3], 12)]
    own = text_columns(6, [0.2, 0.2], 8)
    # Halfway between 4 and 12 seconds chance loses 0.55, at a share of 0.6 four fifths of 0.4.
    assert against_chance("x", own, chance, seconds_per_token)["x"] == pytest.approx(0.2 - 0.55)
    found = against_chance("x", own, chance, large_share)
    assert found["x"] == pytest.approx(0.2 - 0.32)
    assert found["x_interval"] == pytest.approx([0.2 - 0.4, 0.2 - 0.24])
    assert against_chance("x", text_columns(5, [0, 0], 21), chance, seconds_per_token) == {"x": None}


def test_a_row():
    large = text_columns(10, [0, 0], 20)
    row = summarize({"large": large, "own": text_columns(6, [0.1, 0.3], 8)}, "own", [large, text_columns(0, [1, 1], 5)])
    assert row["mean_run"] == 2
    assert row["length_ratio"] == 1
    assert row["speedup"] == 2.5
    assert row["loss"] == pytest.approx(0.2)
    assert row["difference"] == pytest.approx(0.2 - 0.4)
    assert row["difference_at_speed"] == pytest.approx(0.2 - 0.8)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.4, 0.5, 0.6, 0.8, 0.9])
def test_even_spacing_at_any_rate(rate):
    step = step_of(torch.zeros(200, 5))
    step.position = torch.arange(200)
    handed = Evenly(rate)(step)
    assert handed[0]
    assert int(handed.sum()) == pytest.approx(200 * rate, abs=1)
    gaps = handed.nonzero().flatten().diff()
    assert int(gaps.max() - gaps.min()) <= 1
    if rate in (0.1, 0.25, 0.5):
        assert torch.equal(handed, Periodic(round(1 / rate))(step))


def test_published_labels_are_calibrated_on_other_texts_than_they_are_fitted_on():
    fits = Fits(made_up(seed=5), made_up(seed=6), ("entropy", "top1"), 0.1, cut=0.7)
    policy = fits.at("kl_logistic", 0.3)
    table = torch.from_numpy(fits.tune.table(policy.names))
    assert (policy.score_table(table) >= policy.threshold).float().mean() == pytest.approx(0.3, abs=0.01)
    assert float(policy.threshold) != float(fits.at("kl_logistic", 0.6).threshold)
    assert (fits.tune["kl"] > fits.quantile("kl", 0.3)).mean() == pytest.approx(0.3, abs=0.01)
    # A cut that holds for three rows in ten is what the scores average to.
    own = policy.score_table(torch.from_numpy(fits.fit.table(policy.names)))
    assert float(own.mean()) == pytest.approx((fits.fit["kl"] > 0.7).mean(), abs=0.02)


def test_the_cost_of_a_decision_grows_with_the_decision():
    class Slow(Rule):
        def score(self, step):
            time.sleep(0.05)
            return super().score(step)

    small = toy_pair()[0]
    fast, slow = (decision_share(small, kind("entropy", 0.0), toy_prompts(2), 6) for kind in (Rule, Slow))
    assert 0 < fast < slow
    assert slow > 0.5
