"""The MTAD paper's tables: equal budgets, claims from the data alone, and every table runs."""

import json

import numpy as np
import pytest
from tiny_runs import toy_pair, write_prompts

from experiments.comparison import presets, summary
from experiments.comparison.methods import parse
from experiments.comparison.presets import Claim
from experiments.comparison.settings import PaperTables
from experiments.comparison.study import parse_methods
from experiments.mtad import check_claim, main, with_defaults

TABLES = list(presets.PRESETS)


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    for name, lm in zip(("small", "large"), toy_pair(), strict=True):
        lm.model.save_pretrained(folder / name)
        lm.tokenizer.save_pretrained(folder / name)
    write_prompts(folder / "prompts.jsonl", 3)
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Short lines and few bootstrap draws: these are for real runs."""
    for module, name, value in (
        (summary, "DRAWS", 30),
        (summary, "FAMILY_DRAWS", 10),
        (presets, "LENGTHS", (1, 3)),
        (presets, "BEAMS", (1, 3)),
        (presets, "TAUS", (0.3, 0.7)),
    ):
        monkeypatch.setattr(module, name, value)


def run(toys, output, **changes):
    options = {"small": toys / "small", "large": toys / "large", "prompts": toys / "prompts.jsonl", "output": output}
    options |= {"max_new_tokens": 6, "timed": 0, "threads": 1, "beams": 2} | changes
    drawing = ["--drawing"] * options.pop("drawing", False)
    return main([str(x) for key, value in options.items() for x in (f"--{key.replace('_', '-')}", value)] + drawing)


@pytest.mark.parametrize("drawing", [False, True])
@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("table", TABLES)
def test_presets_name_every_method_once_and_claim_only_what_is_measured(table, length, drawing):
    config = with_defaults(PaperTables(table=table, length=length, drawn=drawing))
    preset = presets.PRESETS[table](config)
    methods, _ = parse_methods(preset.methods)
    used = [text for claim in preset.claims for text in (claim.method, *claim.others)]
    used += [text for line in preset.lines.values() for _, text in line]
    assert {str(parse(text)) for text in used} <= set(methods)
    assert preset.claims


def test_main_drafts_as_much_with_every_method():
    """Only exact decoding is also measured at shorter drafts, so that it may be at its best."""
    methods = [parse(text) for text in presets.PRESETS["main"](with_defaults(PaperTables())).methods]
    lengths = {str(m): m.options["length"] for m in methods if "length" in m.options}
    assert {n for text, n in lengths.items() if not text.startswith("speculative")} == {4}
    assert {n for text, n in lengths.items() if text.startswith("speculative")} == {1, 2, 4}
    (tau,) = {m.options["tau"] for m in methods if m.name == "fixed"}
    assert tau**4 == pytest.approx(0.5, rel=1e-3)


def test_defaults_are_fewer_prompts_where_a_setting_is_varied():
    assert (with_defaults(PaperTables()).limit, with_defaults(PaperTables()).timed) == (100, 25)
    few = with_defaults(PaperTables(table="tau", timed=0))
    assert (few.limit, few.timed, few.name) == (40, 0, "mtad-tau")


@pytest.mark.parametrize(
    ("table", "drawing"),
    [
        ("main", True),
        *(pytest.param(t, False, marks=pytest.mark.slow) for t in ("main", "tau", "gamma", "beta")),
    ],
)
def test_every_table_runs(table, drawing, toys, tmp_path, capsys):
    assert run(toys, tmp_path, table=table, drawing=drawing) == 0
    folder = tmp_path / (f"mtad-{table}" + "-drawing" * drawing)
    result = json.loads((folder / "result.json").read_text())
    assert (folder / "frontier.png").exists()
    assert (folder / f"{table}.png").exists() == (table != "main")
    rows = {row["key"]: row for row in result["methods"]}
    said = capsys.readouterr().out
    for claim in result["claims"]:
        assert claim["sentence"] in said
        ours, theirs = rows[claim["method"]], rows[claim["over"]]
        assert claim["speed_ratio"] == pytest.approx(ours["speedup"] / theirs["speedup"])
        assert claim["loss_difference"] == pytest.approx(ours["loss"] - theirs["loss"])


def measured(speeds, losses):
    """Methods of these speeds on three prompts of ten tokens, with these losses."""
    ten = np.full(3, 10.0)
    clock = {key: {"seconds": ten / speed, "tokens": ten} for key, speed in speeds.items()}
    losses = {key: {"loss": np.array(loss)} for key, loss in losses.items()}
    return summary.Measured({}, [None] * 3, losses, [None] * 3, clock)


@pytest.mark.parametrize(
    ("speed", "losses", "said"),
    [
        (3.0, [0.1, 0.2, 0.3], "1.50x [1.50, 1.50], faster; guarded regret +0.200 "),
        (1.0, [-0.1, -0.2, -0.3], "0.50x [0.50, 0.50], slower; guarded regret -0.200 "),
        (2.0, [0.0, 0.0, 0.0], "1.00x [1.00, 1.00], not clearly faster or slower; guarded regret +0.000 "),
    ],
)
def test_a_claim_says_what_the_data_say_of_the_fastest_other(speed, losses, said):
    one, two = (str(parse(f"speculative:length={n}")) for n in (1, 2))
    found = measured(
        {"large": 1.0, str(parse("mtad")): speed, one: 2.0, two: 1.5},
        {"large": [0.0] * 3, str(parse("mtad")): losses, one: [0.0] * 3, two: [0.9] * 3},
    )
    claim = check_claim(found, Claim("mtad", ("speculative:length=2", "speculative:length=1"), "exact decoding"))
    assert claim["over"] == one
    assert said in claim["sentence"]
    assert claim["sentence"].startswith("mtad over exact decoding (speculative:length=1): ")
    ending = {3.0: "loses more.", 1.0: "loses less.", 2.0: "loses no clearly different amount."}[speed]
    assert claim["sentence"].endswith(ending)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"length": 0}, "--length must be at least 1, not 0"),
        ({"beams": 0}, "--beams must be at least 1, not 0"),
        ({"tau": 0}, "--tau must be positive, not 0"),
        ({"baseline": "svip"}, "--baseline svip is not among the methods"),
    ],
)
def test_wrong_input_is_one_sentence(changes, said, toys, tmp_path, capsys):
    assert run(toys, tmp_path / "out", **changes) == 2
    assert capsys.readouterr().err.strip() == f"mtad: {said}" + "; add it to them" * ("baseline" in changes)
    assert not (tmp_path / "out").exists()
