"""The comparison of engines: every row on toys, arithmetic against a clock of our own, resuming, bad input."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tiny_models import tiny
from tiny_runs import save_model, toy_pair, toy_prompts, write_prompts

from decoding.cli.dtypes import DtypeOptions
from decoding.kernels.packed_products import pack
from decoding.kv_cache.session import Session
from experiments import overhead
from experiments.engine_speed import figure, forwards, measurement, setup, summary
from experiments.engine_speed.random_models import random_pair
from experiments.engines_under_test import catalogue
from experiments.engines_under_test.catalogue import Models
from experiments.engines_under_test.peers import Transformers, one_by_one, twin
from train.common.cli import InputError

METHODS = (
    "transformers",
    "autoregressive",
    "speculative:1",
    "speculative:2",
    "lookup:2",
    "mtad:2",
    "backoff:0.5",
    "transformers-assisted:2",
    "transformers-lookup:2",
)
EXACT = [m for m in METHODS if not m.startswith(("mtad", "backoff"))]
NEW = 6


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    measure = forwards.copy_bandwidth
    monkeypatch.setattr(forwards, "copy_bandwidth", lambda device: measure(device, 2**16, 3))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pair and prompts on disk, and the options that name them."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "small": save_model(folder / "small", seed=2, layers=1),
        "large": save_model(folder / "large", seed=1, layers=2),
        "prompts": write_prompts(folder / "prompts.jsonl", 6),
    }


@pytest.fixture(scope="module")
def models():
    small, large = toy_pair()
    return Models(small, large)


def config(output, saved, **changes):
    return overhead.Overhead(**{
        "methods": METHODS, "limit": 2, "max_new_tokens": NEW, "repeats": 2, "output": output, **saved, **changes
    })  # fmt: skip


@pytest.fixture(scope="module")
def result(saved, tmp_path_factory):
    """The whole command once: batches of one and of two."""
    output = tmp_path_factory.mktemp("run") / "speed"
    with pytest.MonkeyPatch.context() as patch:
        measure = forwards.copy_bandwidth
        patch.setattr(forwards, "copy_bandwidth", lambda device: measure(device, 2**16, 3))
        return overhead.run(config(output, saved, batch=(1, 2))), output


def strict(path):
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(name):
        raise AssertionError(name)

    return json.loads(path.read_text(), parse_constant=refuse)


def test_every_method_has_a_row(result):
    found, output = result
    assert strict(output / "result.json") == json.loads(json.dumps(found))
    one, two = found["batches"]["1"], found["batches"]["2"]
    assert list(one["methods"]) == list(METHODS)
    assert list(two["methods"]) == [m for m in METHODS if m not in ("transformers-assisted:2", "transformers-lookup:2")]
    for rows in (one, two):
        for method, row in rows["methods"].items():
            assert row["ms_per_token"] > 0 and row["overhead"] > 0 and row["bandwidth_percent"] > 0
            assert row["tokens_per_second"] == pytest.approx(1e3 / row["ms_per_token"])
            assert set(row["ratios"]) == {"transformers", "autoregressive"} - {method}
    assert one["best"].keys() == {"speculative"}


def test_exact_methods_write_the_same_text(result):
    for rows in result[0]["batches"].values():
        for method in set(EXACT) & set(rows["methods"]):
            assert rows["methods"][method]["equal"] == [2, 2], method
    assert result[0]["batches"]["1"]["methods"]["backoff:0.5"]["equal"][0] < 2


def test_the_rows_are_complete_and_take_turns(result):
    rows = [json.loads(line) for line in (result[1] / "rows.jsonl").read_text().splitlines()]
    assert [(row["repeat"], row["batch"], len(row["prompts"])) for row in rows] == (
        [(0, 1, 1)] * 2 + [(0, 2, 2)] + [(1, 1, 1)] * 2 + [(1, 2, 2)]
    )
    share = rows[0]["methods"]["backoff:0.5"]["share"]
    assert 0 <= share <= 1 and rows[0]["methods"]["autoregressive"]["share"] is None


@pytest.mark.slow
def test_a_run_goes_on_and_refuses_other_settings(result, saved, monkeypatch):
    _, output = result
    rows = (output / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (output / "rows.jsonl").write_bytes(b"".join(rows[:-2]) + rows[-2][:20])
    measured = []
    row = measurement.MethodTimer.row
    note = lambda self, group, i: measured.append(group.key) or row(self, group, i)  # noqa: E731
    monkeypatch.setattr(measurement.MethodTimer, "row", note)
    overhead.run(config(output, saved, batch=(1, 2)))
    assert [key[:2] for key in measured] == [(1, 1), (2, 1)]
    with pytest.raises(InputError, match="a run with another --max-new-tokens; name another --output"):
        overhead.run(config(output, saved, max_new_tokens=NEW + 1))
    assert len((output / "rows.jsonl").read_bytes().splitlines()) == len(rows)


def test_damaged_settings_are_said(saved, tmp_path):
    (tmp_path / "settings.json").write_text('{"methods": [')
    with pytest.raises(
        InputError, match=r"settings.json: it is not valid JSON \(.*\); name another --output or delete"
    ):
        overhead.run(config(tmp_path, saved))
    assert [p.name for p in tmp_path.iterdir()] == ["settings.json"]


def test_a_stop_keeps_what_was_measured(saved, tmp_path, monkeypatch, capsys):
    row = measurement.MethodTimer.row

    def stop(self, task, i):
        if i == 2:
            raise KeyboardInterrupt
        return row(self, task, i)

    monkeypatch.setattr(measurement.MethodTimer, "row", stop)
    arguments = [f"--{name}={value}" for name, value in saved.items()]
    output = tmp_path / "stopped"
    code = overhead.main([
        *arguments, "--methods", "autoregressive", "backoff:0.5", "--limit=3", "--max-new-tokens=4", "--repeats=1",
        f"--output={output}",
    ])  # fmt: skip
    assert code == 130
    assert str(output) in capsys.readouterr().err
    assert len((output / "rows.jsonl").read_text().splitlines()) == 2


class Clock:
    """Time that passes only in forwards: a little for the call, more for every token and every cached token."""

    def __init__(self, modules):
        self.now = 0.0
        for name, module in modules.items():
            module.register_forward_pre_hook(
                lambda _, a, options, name=name: self._work(name, options), with_kwargs=True
            )

    def __call__(self):
        return self.now

    def _work(self, name, options):
        cache = options.get("past_key_values")
        rows, query = options["input_ids"].shape
        context = 0 if cache is None else int(cache.get_seq_length())
        self.now += (1.0 if "small" in name else 8.0) * (1 + 0.1 * rows * query + 0.01 * context)


@pytest.fixture
def fresh():
    """A pair whose modules nobody else has hooked."""
    return Models(*toy_pair())


def turn(models, methods):
    return measurement.MethodTimer({m: catalogue.build(m, models) for m in methods}, models, NEW)


@pytest.mark.parametrize("batch", [1, 3])
def test_with_forwards_alone_the_overhead_is_one(fresh, monkeypatch, batch):
    task = setup.PromptGroup(batch, 0, toy_prompts(batch, seed=3))
    measuring = turn(fresh, METHODS)
    monkeypatch.setattr(forwards, "clock", Clock(fresh.modules))
    row = measuring.row(task, 1)
    assert row["cost"]["large"] == pytest.approx(8 * row["cost"]["small"])
    for method, measured in row["methods"].items():
        assert measured["seconds"] > NEW * 0.5
        assert measured["seconds"] == pytest.approx(measured["bare"], rel=0.01), method


def test_what_is_done_between_forwards_is_overhead(fresh, monkeypatch):
    from decoding.state.token_buffer import TokenBuffer

    task = setup.PromptGroup(1, 0, toy_prompts(1, seed=3))
    measuring = turn(fresh, ("autoregressive",))
    clock, append = Clock(fresh.modules), TokenBuffer.append
    monkeypatch.setattr(forwards, "clock", clock)
    monkeypatch.setattr(TokenBuffer, "append", lambda *args: setattr(clock, "now", clock.now + 2.0) or append(*args))
    measured = measuring.row(task, 0)["methods"]["autoregressive"]
    assert measured["seconds"] - measured["bare"] == pytest.approx(2.0 * measured["tokens"], rel=0.01)


@pytest.mark.parametrize("packed", [False, True])
def test_calls_are_noted_with_their_shapes(fresh, packed):
    models = fresh
    if packed:  # then the large model's forward is the lean one
        pack(models.large.model)
        assert models.large.fused_forward() is not None
    plain = Session._run
    recorder = forwards.Recorder(models.modules, models.lms)
    (prompt,) = toy_prompts(1, seed=4)
    ((answer, _),) = catalogue.build("autoregressive", models)([prompt], 4, 0)
    ours = recorder.take()
    ((same, _),) = catalogue.build("transformers", models)([prompt], 4, 0)
    theirs = recorder.take()
    recorder.close()
    n = len(prompt.ids)
    assert answer == same and len(answer) == 4
    assert ours == [forwards.Call("large", 1, n, 1, 0)] + [forwards.Call("large", 1, 1, 1, n + i) for i in range(3)]
    assert [call._replace(model="large") for call in theirs] == ours
    assert Session._run is plain


def rows(seconds, **others):
    """Rows of one method per key, one prompt per column and one repeat per line of its seconds for 10 tokens."""
    figures = {"tokens": 10, "equal": 1, "bare": None, "share": None, "peak_bytes": None, "joules": None} | others
    repeats, prompts = np.shape(next(iter(seconds.values())))
    return [
        {
            "batch": 1,
            "repeat": r,
            "prompts": [f"p{i}"],
            "cost": {"small": 1.0, "large": 4.0},
            "methods": {name: figures | {"seconds": values[r][i]} for name, values in seconds.items()},
        }
        for r in range(repeats)
        for i in range(prompts)
    ]


HEAD = {"weight_bytes": {"transformers": 10, "autoregressive": 10, "backoff:0.5": 10}, "copy_bytes_per_second": 100}


def test_the_summary_is_of_medians_and_pairs():
    base = [[20.0, 40.0, 100.0], [22.0, 44.0, 900.0], [24.0, 48.0, 110.0]]
    own = [[10.0, 20.0, 50.0], [11.0, 22.0, 60.0], [12.0, 24.0, 55.0]]
    found = summary.summarize(
        rows({"transformers": base, "autoregressive": own}), 1, ("transformers", "autoregressive"), HEAD
    )
    row = found["methods"]["autoregressive"]
    assert row["ms_per_token"] == 2200 and row["ratios"]["transformers"] == {"median": 2.0, "interval": [2.0, 2.0]}
    assert row["bandwidth_percent"] == pytest.approx(100 * 0.1 / 2.2)
    assert found["cost_ratio"] == 0.25 and row["overhead"] is None and row["joules_per_token"] is None


def test_hand_off_is_compared_with_its_own_limit():
    methods = ("autoregressive", "backoff:0.5")
    found = summary.summarize(
        rows({"autoregressive": [[10.0]], "backoff:0.5": [[8.0]]}, share=0.55, bare=5.0, joules=3.0), 1, methods, HEAD
    )
    row = found["methods"]["backoff:0.5"]
    assert row["limit"] == pytest.approx(1 / (0.25 + 0.55)) and row["of_limit"] == pytest.approx(1.25 / 1.25)
    assert row["overhead"] == 1.6 and row["joules_per_token"] == pytest.approx(0.3)
    assert row["ratios"]["autoregressive"] == {"median": 1.25, "interval": None}  # one prompt has no interval


def test_a_text_that_differs_once_is_not_equal():
    some = rows({"autoregressive": [[1.0, 1.0], [1.0, 1.0]]})
    some[2]["methods"]["autoregressive"]["equal"] = 0
    assert summary.count_equal(some, "autoregressive") == [1, 2]


def test_the_fastest_setting_is_found():
    times = {"speculative:1": 3.0, "speculative:2": 2.0, "mtad:4": 1.0, "backoff:0.1": 1.0, "backoff:0.9": 2.0}
    figures = {method: {"ms_per_token": time} for method, time in times.items()}
    assert summary.fastest_settings(figures) == {"speculative": "speculative:2"}


def test_the_figure_shows_who_is_who(result, tmp_path):
    found, output = result
    figure.draw({"batches": {"1": found["batches"]["1"]}}, tmp_path / "new" / "overhead.png")
    pixels = imread(tmp_path / "new" / "overhead.png")[..., :3]
    assert pixels.shape[1] == 1350
    assert imread(output / "overhead.png").shape[1] == 2400  # with the throughput of two sizes beside it
    for method in ("transformers", "autoregressive"):
        colour = figure.engine(method)[1]
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert (np.abs(pixels - rgb).max(-1) < 0.01).sum() > 500, method
    assert figure.engine("llamacpp-draft:2")[0].startswith("llama.cpp")


def test_random_weights_need_no_files(tmp_path):
    """Made in the dtype asked for, they never end an answer; every token is measured."""
    output = tmp_path / "random"
    overhead.run(
        overhead.Overhead(
            methods=("autoregressive", "backoff:0.5", "speculative:2"), random_weights="tiny", limit=2, repeats=1,
            batch=(1, 2), max_new_tokens=4, output=output, dtypes=DtypeOptions("float32"),
        )
    )  # fmt: skip
    for row in map(json.loads, (output / "rows.jsonl").read_text().splitlines()):
        assert {m["tokens"] for m in row["methods"].values()} == {4 * row["batch"]}
    found = strict(output / "result.json")["batches"]
    assert found["1"]["methods"]["backoff:0.5"]["limit"] > 0 and found["2"]["methods"]["backoff:0.5"]["limit"] is None
    assert {lm.model.dtype for lm in random_pair("tiny", "cpu", DtypeOptions("bfloat16"))} == {torch.bfloat16}


def test_the_twin_shares_its_weights_and_runs_as_transformers_does():
    lm = tiny(layers=1)
    other = twin(lm)
    assert {p.data_ptr() for p in other.parameters()} == {p.data_ptr() for p in lm.model.parameters()}
    assert other.config._attn_implementation == "sdpa" != lm.model.config._attn_implementation


def test_assisted_generation_drafts_what_it_is_told(models):
    """The knobs are in the draft's own config, and no threshold moves."""
    recorder = forwards.Recorder(models.modules, models.lms)
    way = catalogue.build("transformers-assisted:3", models)
    way(toy_prompts(1, seed=6), 12, 0)
    calls = recorder.take()
    recorder.close()
    checks = [call.query for call in calls if call.model == "large twin" and call.context > 0]
    assert checks and checks[0] == 4
    knobs = models.twins[0].generation_config
    assert (knobs.num_assistant_tokens, knobs.assistant_confidence_threshold) == (3, 0.0)
    assert knobs.num_assistant_tokens_schedule == "constant"


def test_an_answer_is_cut_after_its_eos():
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[2, 5]))
    assert Transformers(model)._cut([7, 5, 0, 2]) == [7, 5]
    assert Transformers(model)._cut([7, 8]) == [7, 8]


def test_weights_that_a_token_reads():
    tied = tiny(layers=1, tie_word_embeddings=True).model
    assert forwards.weight_bytes(tied) == 4 * sum(p.numel() for p in tied.parameters())
    untied = tiny(layers=1).model
    table = untied.get_input_embeddings().weight.numel()
    assert forwards.weight_bytes(untied) == 4 * (sum(p.numel() for p in untied.parameters()) - table)


def test_llama_cpp_is_left_out_with_its_reason(models):
    models.files = (None, "large.safetensors")
    kept, lacking = catalogue.runnable(["transformers", "llamacpp", "llamacpp-draft:2"], models)
    assert kept == ["transformers"] and set(lacking) == {"llamacpp", "llamacpp-draft:2"}
    assert "xllamacpp" in lacking["llamacpp"]


def test_llama_cpp_answers_like_the_others():
    asked = []
    engine = SimpleNamespace(answer=lambda ids, new: asked.append((ids, new)) or ([7, 8], 0.1))
    (prompt,) = toy_prompts(1)
    assert one_by_one(engine)([prompt], NEW, 0) == [([7, 8], [])]
    assert asked == [(prompt.ids, NEW)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("autoregressive", "fast")}, "unknown method 'fast'"),
        ({"methods": ("speculative:2",)}, "must hold transformers or autoregressive"),
        ({"methods": ("autoregressive", "autoregressive")}, "must not name one method twice"),
        ({"methods": ("autoregressive:2",)}, "takes no number"),
        ({"methods": ("autoregressive", "speculative")}, "must be speculative: and a number of drafted tokens"),
        ({"methods": ("autoregressive", "speculative:0")}, "must be speculative: and a number"),
        ({"methods": ("autoregressive", "backoff:nan")}, "must be backoff: and the share that escalates"),
        ({"batch": (8,)}, "--batch 8 needs as many prompts, and there are 2"),
        ({"batch": (2, 2)}, "--batch must be different numbers"),
        ({"repeats": 0}, "--repeats must be at least 1, not 0"),
        ({"random_weights": "gpt"}, r"--random-weights must be .* or tiny, not 'gpt'"),
        ({"random_weights": "tiny"}, "takes no --small, --large or --prompts"),
        ({"device": "cuda:77"}, "no device 'cuda:77' here"),
        ({"dtypes": DtypeOptions("real")}, "--dtype must be one of"),
        ({"dtypes": DtypeOptions(large_dtype="real")}, "--large-dtype must be one of"),
        ({"small": "/nowhere"}, "small model (at )?/nowhere"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(saved, tmp_path, changes, message):
    output = tmp_path / "none"
    with pytest.raises(InputError, match=message) as caught:
        overhead.run(config(output, saved, **changes))
    assert "\n" not in str(caught.value)
    assert not output.exists()


def test_help_is_quick_and_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        overhead.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "speculative:2" in text and "llama-8b+1b" in text
