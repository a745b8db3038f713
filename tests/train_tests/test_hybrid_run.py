"""The main job for whole decoders: what is searched, what is given up, what is chosen, and that decoders follow it."""

import json
import shutil
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from tiny_runs import ENV, FAST, ROOT, command, save_model, toy_pair, toy_prompts, write_prompts

from decoding import LM, MTAD, Exact, SpecInfer, Speculative, generate
from decoding.__main__ import main as decode
from decoding.acceptance.rules import RULES, rule
from decoding.cost import cache
from decoding.cost.costs import ModelCosts
from decoding.decoders.registry import build_decoder
from policies import Rule, load, token_classes
from policies.decoder_spec import EXACT, DecoderSpec, spec_of
from policies.export.source import ExportError, open_source
from train.data.prompts import load_prompts
from train.evaluation.rivals import beside_rival
from train.fit_policy import main
from train.methods.hybrid import HybridMethod, against_single, described
from train.quality.metric import QualityMetric
from train.search import leniency
from train.search.draft_stop import StopSearch
from train.search.goal import Goal
from train.search.hybrid import HybridSearch
from train.search.study import complete, join_study, open_study, pruned, run_study
from train.traces.collect_drafts import collect_drafts
from train.traces.draft_traces import read_drafts

NEW, LONGEST = 12, 5
COST = ModelCosts(({1: 1.0, 4: 1.05, 16: 1.2}, {1: 10.0, 4: 10.5, 16: 13.0}))
EVERYTHING = {"draft": "chain", "stop": "constant", "length": 5, "accept": "Rollback", "Rollback.threshold": 20.0}
NOTHING = {"draft": "chain", "stop": "constant", "length": 5, "accept": "Lenient", "Lenient.lenience": 1.0}
LOGISTIC = {"stop": "logistic", "length": 4, "features": "confidence", "C": 0.1, "keep": True, "quantile": 0.5}


@pytest.fixture(scope="module")
def searching(tmp_path_factory):
    """``searching(goal, kind)``: a search on a small pair; its prompts are tuned on."""
    pair, prompts = toy_pair(), toy_prompts(14, seed=3)
    folder = tmp_path_factory.mktemp("drafts") / "traces"
    collect_drafts(*pair, prompts, LONGEST, folder, NEW)
    traces, fit = read_drafts(folder), {p.id for p in prompts[:6]}
    classes = token_classes(pair[1].tokenizer)

    def search(goal: Goal, kind: str = "logistic") -> HybridSearch:
        return HybridSearch(
            StopSearch(kind, traces.of(fit), traces, COST, classes),
            pair,
            prompts[6:],
            goal,
            QualityMetric(pair[1]),
        )

    return search


@pytest.mark.parametrize("kind", ["rule", "logistic", "mlp"])
def test_baselines_are_in_the_space_and_hold_what_is_published(searching, kind):
    search = searching(Goal(speedup=1.5), kind)
    baselines = search.baselines()
    for params in baselines:
        assert search.suggest(optuna.trial.FixedTrial(params)) == params
    assert all(baselines.count(params) == 1 for params in baselines)
    for draft, length in (("beams", 4), ("tree", 4), ("tree", 1)):
        assert {"draft": draft, "beams": 4, "length": length, "Joint.tau": 0.5} in baselines
    assert {"draft": "exact tree", "beams": 4, "length": 1} in baselines
    (bild,) = [p for p in baselines if p.get("Rollback.threshold") == 5.0]
    assert (bild["feature"], bild["direction"], bild["length"], bild["keep"]) == ("top1", "<=", LONGEST, False)
    assert float(search.stop(bild).threshold) == pytest.approx(-0.6, abs=0.05)  # a risk is minus a confidence
    best = search.stops.constant()
    assert {"draft": "chain", "stop": "constant", "length": best, "accept": "Exact"} in baselines


def test_every_rule_of_the_space_is_one_of_the_engine():
    for name, found in leniency.LENIENT.items():
        for value in (found.low, found.high):
            described = leniency.described(leniency.number(name, value), name)
            built = rule(**described)
            assert isinstance(built, RULES[name].load())
            assert leniency.drawn(built) == {"accept": name} | leniency.number(name, value)
    with pytest.raises(ValueError, match="unknown acceptance rule 'Generous'"):
        rule("Generous")
    with pytest.raises(ValueError, match="the acceptance rule Lenient cannot have"):
        rule("Lenient", tau=1.0)


@pytest.mark.parametrize("params", [{"stop": "constant", "length": 3}, LOGISTIC])
def test_a_live_trial_is_priced_as_replay_would(searching, params):
    """What is accepted exactly can be judged in both ways."""
    search = searching(Goal(speedup=1.5))
    params = {"draft": "chain", "accept": "Exact"} | params
    for replayed, live in zip(search._replayed(params), search._decoded(params), strict=True):
        assert live == pytest.approx(replayed)


def test_what_a_trial_writes_down_is_its_mean(searching, tmp_path):
    search = searching(Goal(speedup=1.5))
    study = open_study(tmp_path / "study.journal", 0, [EVERYTHING])
    run_study(study, search, 1, [])
    (trial,) = study.trials
    taken, tokens, loss = np.array(list(search._decoded(EVERYTHING))).T
    speedup = search.alone["seconds"].sum() / search.alone["tokens"].sum() / (taken.sum() / tokens.sum())
    assert trial.user_attrs["speedup"] == pytest.approx(speedup)
    assert trial.value == trial.user_attrs["loss"] == pytest.approx(loss.mean()) and trial.value > 0
    assert trial.constraints == {"goal": pytest.approx(1.5 - speedup)}
    assert trial.user_attrs["seconds_a_token"] == pytest.approx(taken / tokens)
    assert list(trial.intermediate_values) == list(range(8))


def test_what_misses_the_goal_is_held_against_a_prompt(searching):
    """In units of the loss, or of the large model's time; what is better than asked earns nothing."""
    fast, careful = searching(Goal(speedup=2.0)), searching(Goal(budget=0.1))
    alone = float(fast.alone["seconds"][0]), int(fast.alone["tokens"][0])
    assert fast._reported(0, (*alone, 0.3)) == pytest.approx(0.3 + 1.0)
    assert fast._reported(0, (alone[0] / 4, alone[1], 0.3)) == pytest.approx(0.3)
    assert careful._reported(0, (alone[0] / 4, alone[1], 0.3)) == pytest.approx(0.25 + 0.2)
    assert careful._reported(0, (alone[0] / 4, alone[1], 0.0)) == pytest.approx(0.25)


def test_a_hopeless_trial_is_given_up_and_counted(searching, tmp_path):
    """Long drafts of which only what the target would write is kept, after the same of which all is."""
    search = searching(Goal(budget=0.95))
    study = open_study(tmp_path / "study.journal", 0, [EVERYTHING, NOTHING])
    run_study(study, search, 2, [])
    assert [t.number for t in complete(study)] == [0] and [t.number for t in pruned(study)] == [1]
    bad = study.trials[1]
    assert 2 <= len(bad.intermediate_values) < 8
    assert bad.constraints["goal"] < 0 and bad.user_attrs["speedup"] < study.trials[0].user_attrs["speedup"]


def test_what_replay_judges_is_never_given_up(searching, tmp_path):
    search, exact = searching(Goal(budget=0.95)), {"draft": "chain", "accept": "Exact"}
    study = open_study(tmp_path / "study.journal", 0, [EVERYTHING, exact | LOGISTIC])
    run_study(study, search, 2, [])
    assert len(complete(study)) == 2 and study.trials[1].value > study.trials[0].value


def trial(number: int, speedup: float, loss: float):
    params = {"draft": "chain", "stop": "constant", "length": number + 1, "accept": "Exact"}
    return SimpleNamespace(number=number, params=params, user_attrs={"speedup": speedup, "loss": loss})


@pytest.mark.parametrize(
    ("goal", "best"), [(Goal(speedup=1.5), 2), (Goal(budget=0.1), 1), (Goal(speedup=1.7), 3), (Goal(speedup=3.0), None)]
)
def test_the_best_that_meets_the_goal_is_chosen_at_corrected_speeds(searching, goal, best, capsys):
    """Live, all turn out 0.9 times as fast as priced, and the fastest 0.8 times."""
    run = HybridMethod.__new__(HybridMethod)
    run.job, run.search = SimpleNamespace(goal=goal), searching(goal)
    run.trials = [trial(0, 1.6, 0.02), trial(1, 1.65, 0.08), trial(2, 1.7, 0.2), trial(3, 2.2, 0.4)]
    disturbed = np.array([0.9, 0.9, 0.1, 0.9, 0.9])
    chosen = run._best({0: disturbed, 1: disturbed, 3: disturbed - 0.1})
    if best is None:
        assert chosen is None and "no trial reached 3x: the fastest is about 1.98x" in capsys.readouterr().out
    else:
        assert chosen.trial == best
        exact = {"length": best + 1, "keep_stop_token": False, "accept": EXACT}
        assert chosen.spec == DecoderSpec("speculative", exact)
        assert chosen.faster == pytest.approx(0.8 if best == 3 else 0.9)


def test_the_comparison_is_with_the_fastest_that_loses_no_more():
    measured, methods = {}, {"large": (3.0, 0.0), "speculative": (2.0, 0.0), "bild": (1.0, 0.3), "tuned": (1.6, 0.1)}
    for name, (seconds, loss) in methods.items():
        rows = {"seconds": [seconds * s for s in (1.0, 5.0, 30.0)], "tokens": [8.0] * 3, "loss": [loss] * 3}
        measured[name] = {key: np.array(values) for key, values in rows.items()}
    found = against_single(measured, measured, {name: name for name in measured})
    assert found.of == "speculative"
    assert found.ratio == pytest.approx(1.25) and found.interval == pytest.approx([1.25, 1.25])
    assert "it is faster than speculative (ratio 1.250, 95 % interval" in beside_rival(found, found.of)
    measured["tuned"]["loss"] += 0.2
    assert against_single(measured, measured, {name: name for name in measured}).of == "bild"


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    return SimpleNamespace(
        small=save_model(folder / "small", seed=1, layers=1),
        large=save_model(folder / "large", seed=2, layers=12),
        prompts=write_prompts(folder / "prompts.jsonl", 30),
    )


def arguments(toys, output, **changes):
    options = {"small": toys.small, "large": toys.large, "prompts": toys.prompts, "output": output} | FAST
    options |= {"method": "hybrid", "trials": 16, "longest": LONGEST, "quality_budget": 0.95} | changes
    return [str(x) for name, value in options.items() for x in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def finished(toys, tmp_path_factory):
    """A run whose timing table is given, so that only what runs live depends on the clock."""
    output = tmp_path_factory.mktemp("finished")
    folder = output / "default"
    folder.mkdir()
    cache.write(folder / "cost.json", [], COST)
    assert main([*arguments(toys, output), "--frontier"]) == 0
    return SimpleNamespace(output=output, folder=folder, result=json.loads((folder / "result.json").read_text()))


@pytest.mark.slow
def test_it_leaves_a_decoder_a_report_and_its_data(finished):
    result, folder = finished.result, finished.folder
    keys = [m["key"] for m in result["methods"]]
    assert keys[:6] == ["large", "small", "speculative", "mtad", "mmtad", "bild"] and keys[-1] == "tuned"
    assert set(keys[6:-1]) <= {"leniency", "stop", "tree"}
    tuned = result["methods"][-1]
    assert tuned["loss"] > 0 and tuned["speedup"] > 0  # by the clock: toys differ little
    study = join_study(folder / "study.journal")
    assert len(complete(study)) + len(pruned(study)) == 16
    assert len(result["trials"]) == len(complete(study)) and result["pruned"] == len(pruned(study)) > 0
    (chosen,) = [trial for trial in result["trials"] if trial["number"] == result["chosen_trial"]]
    assert chosen["speedup"] > 1 and chosen["feasible"]  # by the given table
    assert result["goal"] == {"quality_budget": 0.95} and result["against"]["of"]
    front = [[point["speedup"], point["loss"]] for point in result["front"]]
    assert front == result["frontier"]["front"] == sorted(front, reverse=True)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"{result['pruned']} more were given up" in page and "a draft ends." in page and "Speed over" in page
    assert result["decoder"] in page
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_saved_policy_rebuilds_the_decoder(toys, finished, capsys):
    pair = [LM.load(path) for path in (toys.small, toys.large)]
    policy = load(finished.folder / "policy.json", [lm.identity() for lm in pair])
    decoder, rows = build_decoder(pair, policy, spec_of(policy.provenance)), finished.folder / "holdout.jsonl"
    measured = {row["id"]: row["methods"]["tuned"]["answer"] for row in map(json.loads, rows.open())}
    prompts = [p for p in load_prompts(toys.prompts, pair[1].tokenizer, None) if p.id in measured]
    assert len(prompts) == FAST["timed"]
    for prompt in prompts:
        ids = torch.tensor([prompt.ids])
        written = generate(decoder, ids, max_new_tokens=FAST["max_new_tokens"]).sequences[0, ids.shape[1] :].tolist()
        assert written == measured[prompt.id]
    options = ["--small", toys.small, "--large", toys.large, "--max-new-tokens", "12", prompts[-1].text]
    shown = pair[1].tokenizer.decode(measured[prompts[-1].id], skip_special_tokens=True)
    assert decode(["--policy", str(finished.folder / "policy.json"), *options]) == 0
    assert capsys.readouterr().out.split() == shown.split()


@pytest.mark.slow
def test_the_same_command_again_measures_nothing_and_more_trials_may_follow(toys, finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "default")
    assert main([*arguments(toys, tmp_path), "--frontier"]) == 0
    again = json.loads((folder / "result.json").read_text())
    assert {k: v for k, v in again.items() if k not in ("created", "checksum")} == {
        k: v for k, v in finished.result.items() if k not in ("created", "checksum")
    }
    assert main([*arguments(toys, tmp_path, trials=18), "--join"]) == 0
    assert len(join_study(folder / "study.journal").trials) == 18


@pytest.mark.slow
def test_a_run_that_is_killed_in_a_trial_goes_on(toys, tmp_path):
    folder, run = tmp_path / "default", arguments(toys, tmp_path, trials=13)
    process = subprocess.Popen(command(*run), env=ENV | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    while len(reports := reported(folder)) < 40:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not (folder / "policy.json").exists()
    assert main(run) == 0
    assert reported(folder)[: len(reports)] == reports
    study = join_study(folder / "study.journal")
    assert len(complete(study)) + len(pruned(study)) == 13
    assert json.loads((folder / "result.json").read_text())["pruned"] == len(pruned(study))


def reported(folder) -> list[str]:
    """Lines of the study that tell of one prompt."""
    path = folder / "study.journal"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if "intermediate_value" in line and line.endswith("}")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"certify": 300}, "leave out --certify: --method hybrid makes no certificate"),
        ({"target_speedup": 1.5}, "give --target-speedup or --quality-budget, not both"),
        ({"longest": 0}, "--longest must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(toys, tmp_path, capfd, changes, message):
    assert main(arguments(toys, tmp_path / "runs", **changes)) == 2
    err = capfd.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_spec_says_how_drafts_are_accepted():
    pair = toy_pair()
    known = {"length": 3, "keep_stop_token": True}
    lenient = DecoderSpec("speculative", known | {"accept": {"name": "Lenient", "lenience": 0.2}})
    decoder = build_decoder(pair, Rule("entropy", 1.0), lenient)
    assert isinstance(decoder, Speculative) and decoder.accept.lenience == 0.2
    assert (decoder.length, decoder.keep_stop_token) == (3, True)
    exact = build_decoder(pair, Rule.never(), DecoderSpec("speculative", known))
    assert isinstance(exact.accept, Exact) and exact.stop is None
    beams = {"beams": 3, "length": 3}
    for name in ("mtad", "mmtad"):
        decoder = build_decoder(pair, Rule.never(), DecoderSpec(name, beams | {"tau": 0.2}))
        assert isinstance(decoder, MTAD) and (decoder.beams, decoder.length, decoder.accept.tau) == (3, 3, 0.2)
        assert decoder.tree == (name == "mmtad")
    decoder = build_decoder(pair, Rule.never(), DecoderSpec("specinfer", beams))
    assert isinstance(decoder, SpecInfer) and decoder.branches == (3, 1, 1)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("speculative", {"accept": "Lenient"}, "accept must be of type dict"),
        ("speculative", {"accept": {}}, "unknown acceptance rule ''"),
        ("speculative", {"keep_stop_token": 1}, "keep_stop_token must be of type bool, not 1"),
        ("speculative", {"length": 0}, "length must be at least 1, not 0"),
        ("speculative", {"length": "4"}, "length must be of type int, not '4'"),
        ("speculative", {"beams": 3}, "unknown setting 'beams'; the known ones are length, keep_stop_token, accept"),
        ("mtad", {"tau": float("nan")}, "tau must be at least 0, not nan"),
        ("cook", {}, "unknown method 'cook'"),
    ],
)
def test_a_spec_that_no_decoder_can_follow_is_refused(name, settings, said):
    with pytest.raises(ValueError, match=said):
        build_decoder(toy_pair(), None, DecoderSpec(name, settings))


@pytest.mark.parametrize("method", ["mtad", "mmtad", "specinfer"])
def test_the_command_line_follows_tuned_beams(toys, tmp_path, capsys, method):
    lenient = {} if method == "specinfer" else {"tau": 0.01}
    tuned = {"decoder": {"name": method, "settings": {"length": 3, "beams": 3} | lenient}}
    Rule.never().save(tmp_path / "policy.json", [], tuned)
    options = ["--small", toys.small, "--large", toys.large, "--max-new-tokens", "12", "w5 w9 w20"]
    assert decode(["--policy", str(tmp_path / "policy.json"), *options]) == 0
    tuned = capsys.readouterr().out
    flags = [word for key, value in lenient.items() for word in (f"--{key}", str(value))]
    assert decode(["--method", method, "--beams", "3", "--length", "3", *flags, *options]) == 0
    assert capsys.readouterr().out == tuned


def test_an_engine_that_accepts_exactly_is_not_handed_leniency(tmp_path):
    path = tmp_path / "policy.json"
    for name, settings in {
        "speculative": {"accept": {"name": "Rollback", "threshold": 5.0}},
        "specinfer": {"beams": 4},
    }.items():
        Rule("entropy", 1.0).save(path, [], {"decoder": {"name": name, "settings": {"length": 3} | settings}})
        with pytest.raises(ExportError, match=f"tuned for the decoder {name} with .* pass --role handoff or stop"):
            open_source(path, None, None)
        assert open_source(path, "stop", None).length == 3


def test_a_reader_is_told_all_three_decisions():
    def told(name, policy=None, **settings):
        policy = Rule.never() if policy is None else policy
        return described(SimpleNamespace(policy=policy, spec=DecoderSpec(name, settings)))

    stop, divergence = Rule("entropy", 1.0), {"name": "Divergence", "threshold": 0.95, "kind": "kl"}
    assert told("speculative", length=5, accept=divergence) == "constant length 5, Divergence 0.95"
    assert told("speculative", stop, length=5, accept=divergence) == "rule stop, at most 5, Divergence 0.95"
    assert told("mtad", beams=3, length=4, tau=0.5) == "MTAD, 3 beams of 4, tau 0.5"
    assert told("mmtad", beams=3, length=4, tau=0.5) == "MMTAD, 3 beams of 4, tau 0.5"
    assert told("specinfer", beams=3, length=4) == "SpecInfer, exact, 3 branches of 4"
    assert told("speculative", stop, length=4) == "rule stop, at most 4, Exact"
