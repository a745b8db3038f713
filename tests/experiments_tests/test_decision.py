"""What a decision costs, by the command that measures it."""

import pytest
from tiny_models import tiny
from tiny_runs import toy_prompts

from experiments.decision import ALL, CONFIDENCES, main
from experiments.shared.decision_cost import decision_share
from policies import Rule
from policies.features.fast_path import CompiledPolicy


def test_both_ways_are_timed(monkeypatch):
    """Steps are built only where they are asked for."""
    asked, table = [], CompiledPolicy.table
    monkeypatch.setattr(CompiledPolicy, "table", lambda *args: asked.append(1) or table(*args))
    lm, prompts = tiny(), toy_prompts(2)
    assert decision_share(lm, Rule("entropy", 1.0), prompts, 5) > 0
    assert len(asked) == 3 * 5
    assert decision_share(lm, Rule("entropy", 1.0), prompts, 5, uncompiled=True) > 0
    assert len(asked) == 3 * 5


def test_bad_input_is_one_sentence(capfd):
    assert main(["--max-new-tokens", "1"]) == 2
    assert "--max-new-tokens must be at least 2, not 1" in capfd.readouterr().err


@pytest.mark.slow
def test_every_kind_is_in_the_table(capfd):
    assert main(["--limit", "1", "--max-new-tokens", "3", "--repeats", "1"]) == 0
    shown = capfd.readouterr().out
    assert all(word in shown for word in ("rule", f"{len(CONFIDENCES)} confidences", f"all {len(ALL)}", "MLP"))
