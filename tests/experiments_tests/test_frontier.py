"""Quality against speed: what a method's text means, what a run leaves, and that a stopped one goes on."""

import json
import math
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import mostly_slow
from tiny_runs import ENV, ROOT, toy_pair, toy_prompts, write_prompts

from decoding import Autoregressive, Sampling, generate
from decoding.cost.costs import ModelCosts
from experiments.comparison import study, summary, text_shards, texts
from experiments.comparison.beam_search import BeamSearch
from experiments.comparison.methods import SAMPLING, SUFFIX, Method, MethodError, build, catalogue, parse
from experiments.comparison.registry import kinds
from experiments.frontier import main
from experiments.shared import energy
from policies import Random
from train.common.atomic import read_rows
from train.common.cli import InputError
from train.common.generations import write_with_counts
from train.quality.metric import QualityMetric
from train.search.recipes import RECIPES

KINDS = kinds()
ALL = sorted(set(KINDS) - {"policy", "large"})
WRONG = {
    "larg": "unknown method 'larg'",
    "": "unknown method ''",
    "mtad:width=3": "unknown option 'width' in 'mtad:width=3'; it takes beams, length, tau, verify",
    "large:length=3": "it takes no options",
    "mtad:": "'' in 'mtad:' is not key=value",
    "mtad:beams=2,beams=2": "each key once",
    "mtad:beams=2.5": "beams=2.5 in 'mtad:beams=2.5' must be a whole number",
    "mtad:tau=nan": "must be a finite number",
    "mtad:tau=1_0": "must be a finite number",
    "mtad:beams=٣": "must be a whole number",
    "mtad:verify=both": "must be one of raw, filtered",
    "mtad@samplin": "unknown method 'mtad@samplin'",
    "mtad@sampling,top_k=3": "after a colon",
    "beam@sampling": "beam search does not draw tokens",
    "policy:": "names no file",
}


@pytest.fixture(scope="module")
def pair():
    return toy_pair()


@pytest.fixture(scope="module")
def toys(tmp_path_factory, pair):
    folder = tmp_path_factory.mktemp("toys")
    for name, lm in zip(("small", "large"), pair, strict=True):
        lm.model.save_pretrained(folder / name)
        lm.tokenizer.save_pretrained(folder / name)
    Random(0.4).save(folder / "policy.json")
    write_prompts(folder / "prompts.jsonl", 8)
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """The bootstrap is tested with its own file; here it would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "DRAWS", 40)
        patch.setattr(summary, "FAMILY_DRAWS", 20)
        yield


def run(toys, output, *methods, **changes):
    """Exit code of the command."""
    options = {"small": toys / "small", "large": toys / "large", "prompts": toys / "prompts.jsonl", "output": output}
    options |= {"max_new_tokens": 8, "timed": 0, "batch": 3, "threads": 1} | changes
    return main([*methods, *(str(x) for key, value in options.items() for x in (f"--{key.replace('_', '-')}", value))])


@pytest.fixture(scope="module")
def finished(toys, tmp_path_factory):
    """Every method, priced: the folder and its result."""
    folder = tmp_path_factory.mktemp("finished")
    drawn = [f"{name}{SUFFIX}" for name in ("large", "speculative", "mtad", "mmtad", "typical")]
    assert run(toys, folder, *ALL, *drawn, f"policy:{toys / 'policy.json'}") == 0
    return SimpleNamespace(folder=folder / "default", result=json.loads((folder / "default/result.json").read_text()))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_write_the_texts_that_one_process_writes(toys, tmp_path):
    methods = "small", "mtad", f"speculative{SUFFIX}", f"policy:{toys / 'policy.json'}"
    left = []
    for option in ({}, {"workers": "processes:2"}):
        assert run(toys, tmp_path / f"{len(left)}", *methods, **option) == 0
        folder = tmp_path / f"{len(left)}" / "default"
        assert not (folder / "queue").exists() and (folder / "workers").exists() == bool(option)
        left.append({path.name: path.read_bytes() for path in (folder / "texts").iterdir()})
    assert left[0] == left[1] and len(left[0]) == 5


def test_every_text_is_judged_beside_the_large_models(toys, tmp_path, monkeypatch):
    seen, judge = [], QualityMetric.__call__

    def noted(metric, prompt, answer, reference):
        seen.append((prompt.id, answer, reference))
        return judge(metric, prompt, answer, reference)

    monkeypatch.setattr(QualityMetric, "__call__", noted)
    assert run(toys, tmp_path, "small") == 0
    rows = read_rows(tmp_path / "default/texts" / texts.file_name(parse("large")), dict)
    large = {row["id"]: row["answer"] for row in rows}
    assert len(seen) == 16 and all(reference == large[prompt] for prompt, _, reference in seen)
    assert any(answer != reference for _, answer, reference in seen)


def values(default):
    if isinstance(default, tuple):
        return st.sampled_from(default)
    if isinstance(default, str):
        return st.lists(st.integers(1, 9), min_size=1).map(lambda levels: "-".join(map(str, levels)))
    if isinstance(default, int):
        return st.integers(-(2**70), 2**70)
    return st.floats(allow_nan=False, allow_infinity=False)


def settings_of(options):
    return st.fixed_dictionaries({key: values(default) for key, default in options.items()})


methods = st.sampled_from(sorted(set(KINDS) - {"policy", "beam"})).flatmap(
    lambda name: st.builds(
        Method, st.just(name), settings_of(KINDS[name].options), st.one_of(st.none(), settings_of(SAMPLING))
    )
)


@given(methods)
def test_a_method_is_read_back_from_its_text(method):
    assert parse(str(method)) == method


@given(st.one_of(st.text(), st.text(alphabet="mtad:=,.@sampling0123456789 -"), methods.map(lambda m: f"{m},")))
@settings(max_examples=100)
def test_what_is_no_method_is_one_sentence(text):
    try:
        method = parse(text)
    except MethodError as error:
        assert text.rpartition(SUFFIX)[0] in str(error) or repr(text) in str(error)
    else:
        assert parse(str(method)) == method


@pytest.mark.parametrize(("text", "said"), WRONG.items(), ids=repr)
def test_wrong_methods(text, said):
    with pytest.raises(MethodError) as error:
        parse(text)
    assert said in str(error.value)


def test_what_is_left_out_has_its_default():
    assert str(parse("mtad:tau=0.30")) == "mtad:beams=4,length=4,tau=0.3,verify=raw"
    assert str(parse("large@sampling:top_k=3")) == "large@sampling:temperature=1,top_k=3,top_p=0.9"
    assert str(parse("policy:a=b,c.json@sampling")) == "policy:a=b,c.json@sampling:temperature=1,top_k=10,top_p=0.9"
    assert all(str(parse(name)) in catalogue() for name in ALL)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_their_own_lengths(name):
    assert parse(name).options == {"length": RECIPES[name].options()["length"]}
    assert KINDS[name].lossless == RECIPES[name].lossless


@pytest.mark.parametrize(
    "text",
    [
        "mtad:beams=0",
        "fixed:tau=-1",
        "large@sampling:top_p=2",
        "random:rate=2",
        "beam:width=1",
        "specinfer:branches=4-x",
    ],
)
def test_a_value_that_cannot_be_is_refused(text, pair):
    with pytest.raises(MethodError, match="cannot be built"):
        build(parse(text), pair)


def test_a_method_that_draws_draws_as_told(pair):
    ids = torch.tensor([[3, 4, 5]])
    wanted = generate(Autoregressive(pair[1]), ids, max_new_tokens=8, sampling=Sampling(2.0, top_p=0.8), seed=3)
    found = generate(
        build(parse("large@sampling:temperature=2,top_k=0,top_p=0.8"), pair), ids, max_new_tokens=8, seed=3
    )
    assert found.sequences.tolist() == wanted.sequences.tolist()
    assert found.sequences.tolist() != generate(Autoregressive(pair[1]), ids, max_new_tokens=8).sequences.tolist()


COUNTED = sorted({*ALL, "mmtad@sampling", "large"} - {"beam", "small"})


@pytest.mark.parametrize("name", mostly_slow(COUNTED, ("large", "mmtad@sampling", "mtad", "specinfer", "speculative")))
def test_target_calls_are_those_of_the_engine(name, pair):
    """Who wrote what says how often the target was called, in single runs as the engine counts them."""
    method = parse(name)
    for prompt in toy_prompts(4):
        ((answer, writers),), counts = write_with_counts(build(method, pair), [prompt], 9, seed=1)
        calls = text_shards.count_target_calls(method.kind.role, writers)
        assert calls == counts["calls"][-1]
        drafted, verified = text_shards._draft_tokens(method.kind.role, [prompt], [calls], counts)
        if method.kind.role == "draft":
            assert drafted * calls == pytest.approx(counts["drafted"])
            wide = method.options.get("beams", 1) if method.name == "mmtad" else 1
            most = 28 if name == "specinfer" else wide * method.options["length"]
            assert drafted - 1e-9 <= verified <= most
            assert len(answer) - calls <= verified * calls + 1e-9


def test_a_batch_of_beam_searches_is_single_ones(pair):
    large, prompts = pair[1], toy_prompts(5)
    beam = BeamSearch(large, 3)
    together, _ = write_with_counts(beam, prompts, 8)
    for prompt, (answer, _) in zip(prompts, together, strict=True):
        ids = torch.tensor([list(prompt.ids)])
        alone = beam.model.generate(ids, num_beams=3, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :].tolist()
        assert answer == alone[: len(answer)]
        assert len(answer) == len(alone)


def numbers(value):
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


def test_all_numbers_of_every_method_are_finite(finished):
    rows = {row["key"]: row for row in finished.result["methods"]}
    assert len(rows) == len(ALL) + 7
    assert all(math.isfinite(number) for number in numbers(finished.result))
    for row in rows.values():
        low, high = row["speedup_interval"]
        assert 0 < low <= high
        assert 0 <= row["loss"] <= 1
        assert set(row["families"]) == {"even", "odd"}
        assert sum(one["prompts"] for one in row["families"].values()) == finished.result["prompts"] == 8
        assert (row["accepted"] is None) == (row["role"] != "draft")
    assert rows["large"]["speedup"] == rows["large"]["calls_per_token"] == 1
    assert rows[str(parse("small"))]["recovered"] == 0


def test_lossless_greedy_methods_write_the_large_models_text(finished):
    texts_ = {
        name: read_rows(finished.folder / "texts" / texts.file_name(parse(name)), dict) for name in ("large", *ALL)
    }
    answers = {name: {row["id"]: row["answer"] for row in rows} for name, rows in texts_.items()}
    rows = {row["key"]: row for row in finished.result["methods"]}
    lossless = [name for name in ALL if KINDS[name].lossless]
    assert len(lossless) == 6
    for name in lossless:
        assert answers[name] == answers["large"]
        row = rows[str(parse(name))]
        assert row["loss"] == 0
        assert row["loss_interval"] == [0, 0]
        assert row["same_text"] == 1
    assert rows[str(parse("small"))]["same_text"] < 1


def test_a_run_leaves_a_picture_and_a_page(finished):
    assert (finished.folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    page = (finished.folder / "frontier.html").read_text(encoding="utf-8")
    for row in finished.result["methods"]:
        assert f"<td>{row['label']}</td>" in page
    assert "default-src 'none'" in page
    assert "error_x.arrayminus" in page
    assert "odd (4)" in page


def test_a_stopped_run_goes_on_and_a_new_method_writes_only_its_own(toys, tmp_path, monkeypatch):
    asked = []

    def noted(decoder, prompts, *args, **options):
        asked.append([p.id for p in prompts])
        if len(asked) == stop:
            raise KeyboardInterrupt
        return write_with_counts(decoder, prompts, *args, **options)

    monkeypatch.setattr(text_shards, "write_with_counts", noted)
    stop = 5
    assert run(toys, tmp_path, "random", "mtad@sampling") == 130
    assert not (tmp_path / "default/result.json").exists()
    path = tmp_path / "default/texts" / texts.file_name(parse("random"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])  # a kill cuts a line short
    asked.clear()
    stop = None
    assert run(toys, tmp_path, "random", "mtad@sampling") == 0
    assert [len(ids) for ids in asked] == [3, 3, 3, 3, 2]  # two texts were whole
    assert sorted(row["id"] for row in read_rows(path, dict)) == [f"p{i}" for i in range(8)]
    assert path.read_bytes()[: len(whole)] == whole
    asked.clear()
    assert run(toys, tmp_path, "random", "mtad@sampling", "lenient") == 0
    assert len(asked) == 3
    asked.clear()
    assert run(toys, tmp_path, "lenient", limit=5) == 0
    assert asked == []
    assert json.loads((tmp_path / "default/result.json").read_text())["prompts"] == 5


def test_timed_runs_take_turns_and_count_joules(toys, tmp_path, monkeypatch):
    spent = iter(range(0, 10_000, 3))
    monkeypatch.setattr(study, "counter", lambda device: lambda: float(next(spent)))
    assert run(toys, tmp_path, "small", "speculative", timed=3) == 0
    rows = read_rows(tmp_path / "default/timed.jsonl", dict)
    assert [len(row["methods"]) for row in rows] == [3, 3, 3]
    result = json.loads((tmp_path / "default/result.json").read_text())
    assert result["timed"] == 3
    for row in result["methods"]:
        timed = [one["methods"][row["key"]] for one in rows]
        assert row["joules_per_token"] == pytest.approx(9 / sum(one["tokens"] for one in timed))
        seconds = sum(one["seconds"] for one in timed)
        assert row["tokens_per_second"] == pytest.approx(sum(one["tokens"] for one in timed) / seconds)
        assert {name: one["timed"] for name, one in row["families"].items()} == {"even": 2, "odd": 1}


def test_a_grader_scores_the_tasks_it_knows(toys, tmp_path, monkeypatch):
    known = lambda prompt, text: None if prompt.family == "odd" else float(prompt.id == "p0" and "w" in text)  # noqa: E731
    monkeypatch.setattr(study, "grade", known)
    assert run(toys, tmp_path, "small") == 0
    for row in json.loads((tmp_path / "default/result.json").read_text())["methods"]:
        assert (row["score"], row["graded"]) == (0.25, 4)
        assert row["score_difference"] == 0 and 0 <= row["at_cap"] <= 1
        assert row["families"]["odd"]["score"] is None


@pytest.mark.slow
def test_a_grader_of_the_main_job_scores_every_prompt(toys, tmp_path, capsys):
    assert run(toys, tmp_path, "small", grader="toy_graders:variety") == 0
    result = json.loads((tmp_path / "default/result.json").read_text())
    large, small = result["methods"]
    assert result["plane"] == ["speedup", "score"]
    assert "task score (higher is better)" in (tmp_path / "default/frontier.html").read_text()
    assert large["graded"] == small["graded"] == 8 and large["score_difference"] == 0
    assert small["score_difference"] == pytest.approx(small["score"] - large["score"])
    low, high = small["score_difference_interval"]
    assert low <= small["score_difference"] <= high
    assert run(toys, tmp_path, "small", grader="math", name="other") == 2
    assert "prompts.jsonl, line 1: --grader math needs a `reference`" in capsys.readouterr().err


def test_what_a_grader_lacks_is_said_before_any_work(toys, tmp_path, monkeypatch, capsys):
    def lacking(prompt, text):
        raise InputError("chrF needs a package")

    monkeypatch.setattr(study, "grade", lacking)
    assert run(toys, tmp_path, "small") == 2
    assert capsys.readouterr().err.strip() == "frontier: chrF needs a package"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("methods", "changes", "said"),
    [
        (["mtd"], {}, "unknown method 'mtd'"),
        (["mtad:beams=0"], {}, "beams must be at least 1, not 0"),
        (["mtad", "mtad:beams=4"], {}, "'mtad' and 'mtad:beams=4' are the same method"),
        (["mtad"], {"baseline": "fsd"}, "--baseline fsd is not among the methods"),
        (["policy:nowhere.json"], {}, "nowhere.json"),
        (["mtad"], {"timed": -1}, "--timed must be at least 0"),
        (["mtad"], {"limit": 0}, "--limit must be at least 1"),
        (["mtad"], {"prompts": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        (["mtad"], {"name": "a/b"}, "--name must be a plain folder name"),
    ],
)
def test_wrong_input_is_one_sentence_before_any_work(methods, changes, said, toys, tmp_path, capsys):
    assert run(toys, tmp_path / "out", *methods, **changes) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_settings_is_refused(toys, finished, capsys):
    assert run(toys, finished.folder.parent, "small", max_new_tokens=9) == 2
    assert "holds a run with another --max-new-tokens" in capsys.readouterr().err
    assert json.loads((finished.folder / "result.json").read_text()) == finished.result


def test_a_changed_policy_is_another_method(tmp_path):
    names = []
    for rate in (0.2, 0.3):
        Random(rate).save(tmp_path / "policy.json")
        names.append(texts.file_name(parse(f"policy:{tmp_path / 'policy.json'}")))
    assert names[0] != names[1]


def test_prices_by_hand(pair):
    """The small model costs 1 and the large one 10 a call, and a tenth of that for each token it reads."""
    tokens = [1, 2, 4, 100]
    cost = ModelCosts(({n: 1 + 0.1 * n for n in tokens}, {n: 10 + n for n in tokens}))
    prompt = toy_prompts(1)[0]
    p = len(prompt.ids)
    row = {"answer": [5] * 6, "writers": [0, 0, 1, 0, 1, 1], "target_calls": 3, "drafted": 6, "verified": 6}
    price = lambda name: study.price(p, row, parse(name), build(parse(name), pair), cost)  # noqa: E731
    assert price("large") == pytest.approx(10 + p + 5 * 11)
    assert price("small") == pytest.approx(1 + 0.1 * p + 5 * 1.1)
    assert price("beam:width=4") == pytest.approx(10 + p + 5 * 14)
    checks = 10 + p + 2 + 2 * 13
    assert price("speculative:length=2") == pytest.approx(checks + 1 + 0.1 * p + 5 * 1.1)
    assert price("speculative@sampling") == price("speculative")
    assert price("mtad:beams=4,length=2") == pytest.approx(checks + 1 + 0.1 * p + 2 * 1.1 + 3 * 1.4)
    assert price("promptlookup") == pytest.approx(checks)
    # Its stop looks at one token a round that it drops; a stop that keeps it costs nothing beside.
    assert price("bild") == pytest.approx(price("speculative") + 3 * 1.1)
    assert price("svip") == pytest.approx(price("speculative"))
    # The large model reads the prompt and 3 tokens, then 2, then 1.
    assert price("random") == pytest.approx(1 + 0.1 * p + 5 * 1.1 + 10 + p + 2 + 12 + 11)


def test_differences_are_paired_with_the_baseline():
    losses = {"large": [0.0, 0.0, 0.0], "small": [0.5, 0.7, 0.9], "mtad": [0.4, 0.6, 0.8]}
    found = {key: {"loss": np.array(loss)} for key, loss in losses.items()}
    measured = summary.Measured({}, [], found, [], {}, "small")
    mean, interval = summary.loss_difference(measured, "mtad", "small").values()
    assert [mean, *interval] == pytest.approx([-0.1] * 3)


def test_joules_come_from_the_drivers_counter(monkeypatch):
    fake = ModuleType("pynvml")
    fake.NVMLError = RuntimeError
    fake.nvmlInit = lambda: None
    fake.nvmlDeviceGetHandleByUUID = lambda uuid: {"GPU-abc": 7}[uuid]
    millijoules = {7: 5000}
    fake.nvmlDeviceGetTotalEnergyConsumption = lambda handle: millijoules[handle]
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    read = energy.counter("cuda")
    assert read() == 5
    millijoules[7] += 250
    assert read() == 5.25
    assert energy.counter("cpu") is None

    def old(handle):
        raise RuntimeError("not supported")

    fake.nvmlDeviceGetTotalEnergyConsumption = old
    assert energy.counter("cuda") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.counter("cuda") is None


def test_help_teaches_and_is_quick():
    code = "import sys, experiments.frontier, experiments.mtad; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENV, timeout=60).returncode == 0
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "frontier.py"), "--help"],
        env=ENV | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "mmtad:beams=4,length=4,tau=0.5,verify=raw" in done.stdout


def test_methods_draw_at_a_temperature_and_losses_are_signed(toys, tmp_path):
    drawn = {"temperature": 0.8, "top_k": 20, "seeds": 3, "limit": 12}
    assert run(toys, tmp_path, "small", "speculative:length=2", "random:rate=0.5", **drawn) == 0
    folder = tmp_path / "default"
    result = json.loads((folder / "result.json").read_text())
    assert (result["sampling"]["temperature"], result["sampling"]["top_k"], result["texts_a_prompt"]) == (0.8, 20, 3)
    rows = {method["label"]: method for method in result["methods"]}
    assert rows["speculative:length=2"]["loss"] < rows["random:rate=0.5"]["loss"] < rows["small"]["loss"]
    assert abs(rows["large"]["loss"]) < 0.2 * rows["small"]["loss"], rows["large"]
    for path in (folder / "texts").iterdir():
        own = [json.loads(line) for line in path.read_text().splitlines()]
        assert sorted({row["text"] for row in own}) == [0, 1, 2] and len(own) == 3 * result["prompts"]
        first = {row["id"]: row["answer"] for row in own if row["text"] == 0}
        assert any(row["answer"] != first[row["id"]] for row in own if row["text"] == 2)
    before = (folder / "result.json").read_text()
    assert run(toys, tmp_path, "small", "speculative:length=2", "random:rate=0.5", **drawn) == 0
    after = json.loads((folder / "result.json").read_text())
    assert after["methods"] == json.loads(before)["methods"]


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("mtad@sampling", {"temperature": 0.7}, "'mtad@sampling' draws in its own way; leave out @sampling or"),
        ("beam", {"temperature": 0.7}, "beam search does not draw tokens; leave out beam or --temperature"),
        ("small", {"seeds": 2}, "leave out --seeds, or add --temperature"),
        ("small", {"temperature": 0.7, "seeds": 1}, "--seeds must be at least 2 at a temperature, not 1"),
    ],
)
def test_sampling_that_does_not_go_together_is_refused(toys, tmp_path, capfd, method, changes, said):
    assert run(toys, tmp_path, method, **changes) == 2
    assert said in capfd.readouterr().err


def test_methods_are_timed_in_batches(toys, tmp_path):
    methods = "small", "speculative:length=2", "random:rate=0.5"
    assert run(toys, tmp_path, *methods, batch_size=3, timed=8) == 0
    result = json.loads((tmp_path / "default" / "result.json").read_text())
    assert result["batch_size"] == 3 and result["timed"] == 8
    rows = [json.loads(line) for line in (tmp_path / "default" / "timed.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(row["setting"].endswith("in batches of 3") for row in rows)
    assert run(toys, tmp_path, *methods, batch_size=4, timed=0) == 0
    assert json.loads((tmp_path / "default" / "cost.json").read_text())["seconds"]["batch"] == 4
    assert run(toys, tmp_path, *methods, batch_size=2, timed=0) == 0
    assert json.loads((tmp_path / "default" / "cost.json").read_text())["seconds"]["batch"] == 2
