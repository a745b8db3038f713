"""The command that watches memory over many generations, at its smallest."""

import re

import pytest

from experiments.flat_memory import main


@pytest.mark.slow
def test_a_tenth_at_a_time(capfd):
    assert main(["--generations", "10", "--max-new-tokens", "2"]) == 0
    numbers = re.findall(r"(\d+): (\d+) MiB", capfd.readouterr().out)
    assert [int(i) for i, _ in numbers] == list(range(1, 11)) and all(100 < int(mib) < 20_000 for _, mib in numbers)


def test_bad_input_is_one_sentence(capfd):
    assert main(["--generations", "9"]) == 2
    assert "--generations must be at least 10, not 9" in capfd.readouterr().err
