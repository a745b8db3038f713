"""--preset: values for what the user has left alone, and a verdict that says what it is worth."""

import json
from dataclasses import fields

import pytest
from tiny_runs import save_toys, typed

from train.common.presets import NOTES, PRESETS, applied
from train.common.settings import FitPolicy
from train.fit_policy import main


def test_a_preset_is_of_known_settings_and_says_what_it_is_worth():
    known = {field.name for field in fields(FitPolicy)}
    assert PRESETS.keys() == NOTES.keys()
    assert all(preset.keys() <= known and preset["name"] == name for name, preset in PRESETS.items())


def test_what_the_user_gives_holds():
    assert applied(FitPolicy(trials=3)) == FitPolicy(trials=3)
    quick = applied(FitPolicy(preset="quick", trials=3, grader="code"))
    assert quick.trials == 3 and quick.grader == "code"
    assert quick.limit == PRESETS["quick"]["limit"] and quick.name == "quick"


@pytest.mark.slow
def test_a_quick_run_says_that_it_proves_nothing(tmp_path, capsys):
    toys = save_toys(tmp_path / "toys", 40) | {"output": tmp_path, "wandb": "disabled", "threads": 1}
    toys.pop("limit")
    assert main([*typed(toys), "--preset", "quick"]) == 0
    result = json.loads((tmp_path / "quick" / "result.json").read_text())
    assert result["verdict"].endswith(NOTES["quick"])
    assert sum(split["prompts"] for split in result["splits"].values()) == 24
    assert main([*typed(toys), "--preset", "quick"]) == 0  # nothing is left to do
