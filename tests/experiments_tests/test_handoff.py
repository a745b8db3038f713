"""A tuned policy against chance on unseen prompts, as the command measures it on a toy run."""

import json

from experiments import handoff
from experiments.shared.unseen_prompts import one_of_each_group, unseen_prompts
from train.common.load_run import load_run


def test_the_policy_and_chance_write_the_same_prompts(tuned_run, tmp_path, capfd):
    assert handoff.main([str(tuned_run), "--limit", "6", "--batch", "4", "--output", str(tmp_path / "x.json")]) == 0
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["prompts"] == 6 and 0 <= result["large_share"] <= 1
    for name in ("tuned", "random_low", "random_high"):
        low, high = result[name]["loss_interval"]
        assert low <= result[name]["loss"] <= high and result[name]["priced_speedup"] > 0
    assert result["interval"][0] <= result["difference"] <= result["interval"][1]


def test_unseen_prompts_are_of_groups_that_the_run_has_not_used(tuned_run):
    run = load_run(tuned_run)
    prompts = unseen_prompts(run)
    used = {group for groups in run.policy.provenance["groups"].values() for group in groups}
    assert prompts and not {p.group for p in prompts} & used
    kept = one_of_each_group(prompts, 8)
    assert len({p.group for p in kept}) == len(kept) and all(len(p.ids) <= 8 for p in kept)


def test_bad_input_is_one_sentence(tmp_path, capfd):
    assert handoff.main([str(tmp_path)]) == 2
    assert "has no run.json" in capfd.readouterr().err
    assert handoff.main([str(tmp_path), "--batch", "0"]) == 2
    assert "--batch must be at least 1" in capfd.readouterr().err
