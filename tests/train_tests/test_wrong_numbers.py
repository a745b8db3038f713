"""Numbers that no option can mean, and names of runs: one sentence, exit code 2, nothing lost."""

import pytest
import torch
from tiny_distillation import command as distill_command
from tiny_distillation import make_prompts, make_target
from tiny_runs import save_toys, toy_pair, typed

from decoding import Autoregressive, generate, measure_cost
from decoding.__main__ import main as decode
from train import bandit, distill, fit_policy, monitor, reinforce
from train.search.study import open_study

NOWHERE = {
    fit_policy.main: ["--small", "nowhere"],
    distill.cli: ["--target", "nowhere", "--self-prompts", "3"],
    reinforce.main: ["nowhere"],
    bandit.main: ["nowhere"],
    monitor.main: ["nowhere", "--prompts", "nowhere"],
    decode: ["text", "--small", "nowhere"],
    measure_cost.main: ["--small", "nowhere"],
}
"""the rest of each command: other checks, or the work, would say something else of it"""


@pytest.mark.parametrize(
    ("main", "option", "value", "said"),
    [
        (fit_policy.main, "--target-speedup", "nan", "a finite number, not nan"),
        (fit_policy.main, "--confidence", "inf", "a finite number, not inf"),
        (fit_policy.main, "--seed", str(2**32), f"at most {2**32 - 1}, not {2**32}"),
        (fit_policy.main, "--seed", str(10**26), f"at most {2**32 - 1}, not {10**26}"),
        (fit_policy.main, "--trials", str(10**12), f"at most {2**31 - 1}, not {10**12}"),
        (fit_policy.main, "--longest", "100000", "at most 256, not 100000"),
        (distill.cli, "--hard", "nan", "a finite number, not nan"),
        (distill.cli, "--prompt-weight", "inf", "a finite number, not inf"),
        (distill.cli, "--temperatures", "nan", "a finite number, not nan"),
        (distill.cli, "--seed", str(10**26), f"at most {2**32 - 1}, not {10**26}"),
        (reinforce.main, "--temperature", "nan", "a finite number, not nan"),
        (bandit.main, "--seed", str(2**32), f"at most {2**32 - 1}, not {2**32}"),
        (reinforce.main, "--group", str(10**9), f"at most 1024, not {10**9}"),
        (bandit.main, "--passes", str(10**9), f"at most 10000, not {10**9}"),
        (distill.cli, "--layers", str(10**6), f"at most 1024, not {10**6}"),
        (monitor.main, "--level", "nan", "a finite number, not nan"),
        (decode, "--temperature", "inf", "a finite number, not inf"),
        (decode, "--seed", str(10**26), f"at most {2**32 - 1}, not {10**26}"),
        (measure_cost.main, "--threads", str(10**9), "at most 1024, not 1000000000"),
    ],
)
def test_numbers_out_of_all_bounds(main, option, value, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*NOWHERE[main], option, value]) == 2
    error = capsys.readouterr().err
    assert f"{option} must be {said}\n" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "a\nb", "a\n", "a\u2028b", "a\x00b", "..", "a/b"])
def test_names_of_runs(name, tmp_path, capsys):
    assert fit_policy.main(["--name", name, "--small", "nowhere", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fit_policy: --name must be ") and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_greatest_seed_has_a_study(tmp_path):
    for _ in range(2):
        study = open_study(tmp_path / "study.journal", 2**32 - 1, [])
        study.tell(study.ask(), 0.0)


def test_a_distiller_keeps_no_more_than_the_vocabulary(tmp_path, capsys):
    make_target(tmp_path)
    make_prompts(tmp_path)
    assert distill.cli([str(a) for a in distill_command(tmp_path, "run", 0.01, "--top-k", "100000")]) == 2
    assert "--top-k must be at most " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_drafter_that_fits_no_memory_is_refused_with_its_size(tmp_path, capsys):
    make_target(tmp_path)
    make_prompts(tmp_path)
    arguments = [str(a) for a in distill_command(tmp_path, "run", 0.01)]
    for option, value in (("--width", "1000000"), ("--heads", "1")):
        arguments[arguments.index(option) + 1] = value
    assert distill.cli(arguments) == 2
    error = capsys.readouterr().err
    assert "--width 1000000 and --inner 64 takes " in error and " GiB of memory to train, but cpu has " in error
    assert error.splitlines()[-1].startswith("distill: a drafter of 1 layers") and not (tmp_path / "run").exists()


def test_a_training_that_diverges_is_one_sentence_and_no_drafter(tmp_path, capsys):
    make_target(tmp_path)
    make_prompts(tmp_path)
    arguments = [str(a) for a in distill_command(tmp_path, "run", 0.01)]
    arguments[arguments.index("--lr") + 1] = "1e30"
    assert distill.cli(arguments) == 2
    said = "distill: the training has diverged at --lr 1e+30; begin anew with a smaller one"
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert not list((tmp_path / "run").glob("drafter*"))


@pytest.fixture(scope="module")
def large():
    return toy_pair()[1]


def test_the_context_is_looked_at_before_memory_is_taken(large, monkeypatch):
    monkeypatch.setattr("decoding.generation.TokenBuffer", None)
    ids = torch.tensor([[3, 4, 5]])
    with pytest.raises(ValueError, match="need 1000000003 positions, but .* has 256"):
        generate(Autoregressive(large), ids, max_new_tokens=10**9)


def test_a_budget_beyond_the_context_is_refused_before_work(tmp_path, capsys):
    toys = save_toys(tmp_path / "toys", 40) | {"output": tmp_path / "runs", "max_new_tokens": 10**9}
    assert fit_policy.main(typed(toys)) == 2
    error = capsys.readouterr().err
    said = "--max-new-tokens 1,000,000,000 leaves no room for a prompt: the models read 256 tokens"
    assert error.splitlines()[-1] == f"fit_policy: {said}" and not (tmp_path / "runs").exists()
