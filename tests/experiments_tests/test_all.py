"""The ledger's headline rows: each is in the ledger, finds its number in a result, and says whether it moved."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from experiments import all as ledger
from experiments.ledger.claims import COMMANDS, moved, recorded

ROOT = Path(__file__).parents[2]
CLAIMS = [claim for command in COMMANDS for claim in command.claims]
KINDS = ("0/1", "graded", "signed", "beyond the cap")
METHODS = {
    "small": 10.0,
    "speculative:length=2": 1.2,
    "specinfer:branches=4": 1.3,
    "mtad:tau=0.5": 1.1,
    "mmtad:tau=0.5": 1.3,
}
RESULTS = {
    "certificates": {
        "broken": {kind: {"certificate_breaks": 0.03, "naive_breaks": 0.4} for kind in KINDS},
        "certified": {kind: {"1.0": 0.07} for kind in KINDS},
    },
    "drafter": {"agreement": 0.37, "agreement_interval": [0.33, 0.41], "cost_ratio": 0.2},
    "replay": {
        "live": {way: {"equal": "3/3"} for way in ("length 1", "length 2", "length 4", "top1 <= 0.4", "survival 0.7")}
    },
    "decision": {
        "rows": [{"policy": name, "shares": [0.03, 0.05]} for name in ("rule, entropy", "logistic, all 17 features")]
    },
    "frontier": {
        "methods": [
            {"key": key, "speedup": x, "speedup_interval": [x, x], "loss": 0.05, "loss_interval": [0.04, 0.06]}
            for key, x in METHODS.items()
        ]
    },
    "overhead": {
        "batches": {
            "1": {
                "methods": {
                    "autoregressive": {"ratios": {"transformers": {"median": 1.7, "interval": [1.6, 1.8]}}},
                    "speculative:2": {"ratios": {"autoregressive": {"median": 0.9, "interval": [0.8, 1.0]}}},
                }
            }
        }
    },
}


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The commands that were started; each leaves its specimen of a result in place of measuring."""
    commands = []

    def start(words):
        commands.append(words)
        command = next(one for one in COMMANDS if one.name == Path(words[1]).stem)
        path = tmp_path / "quick" / command.name / command.result
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(RESULTS[command.name]))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(ledger.subprocess, "run", start)
    return commands


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.about)
def test_each_claim_is_in_the_ledger(claim):
    assert claim.ledger in (ROOT / "experiments/README.md").read_text()


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_command_takes_its_options(command, quick, monkeypatch):
    """By its own parser, so that an option which is renamed is not found out by a run of an hour."""
    import tyro

    class Parsed(Exception):
        pass

    def parse(*args, **options):
        raise Parsed(cli(*args, **options))

    cli = tyro.cli
    monkeypatch.setattr(tyro, "cli", parse)
    with pytest.raises(Parsed):
        import_module(f"experiments.{command.name}").main(command.arguments("folder", quick, threads=2))


@pytest.mark.parametrize(
    ("text", "value", "ends"),
    [
        ("1.21 [1.06, 1.36]", 1.21, (1.06, 1.36)),
        ("0.115 (0.105 to 0.118)", 0.115, (0.105, 0.118)),
        ("0.035 to 0.049", 0.042, (0.035, 0.049)),
        ("-0.125 [-0.195, -0.066]", -0.125, (-0.195, -0.066)),
        ("12 of 12 prompts", 1.0, (1.0, 1.0)),
        ("0.372", 0.372, (0.372, 0.372)),
    ],
)
def test_what_the_ledger_says_is_read(text, value, ends):
    found, interval = recorded(text)
    assert found == pytest.approx(value) and interval == ends


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ((1.0, 1.2), (1.1, 1.3), False),
        ((1.0, 1.2), (1.2, 1.3), False),
        ((1.0, 1.2), (1.3, 1.4), True),
        ((1.0, 1.2), (0.8, 0.9), True),
    ],
)
def test_moved_means_no_value_in_common(before, now, expected):
    assert moved((sum(before) / 2, before), (sum(now) / 2, now)) is expected


def test_the_table_says_what_moved_and_a_second_run_measures_nothing(started, tmp_path, capfd):
    options = ["--quick", "--threads", "2", "--output", str(tmp_path)]
    assert ledger.main(options) == 0
    result = json.loads((tmp_path / "quick" / "result.json").read_text())
    found = {row["claim"]: row["moved"] for row in result["rows"]}
    assert len(found) == len(CLAIMS)
    assert found["one token costs it, in tokens of the target"] and not found["guarded regret of MTAD"]
    assert "up from 0.115 to 0.200 (a ratio of times: of this machine)" in " ".join(capfd.readouterr().out.split())
    table = (tmp_path / "quick" / "table.md").read_text().splitlines()
    assert len(table) == len(CLAIMS) + 2 and table[0].startswith("| claim")
    assert len(started) == len(COMMANDS)
    assert ledger.main(options) == 0
    assert len(started) == len(COMMANDS)


def test_another_command_in_the_same_folder_is_refused(started, tmp_path, capfd):
    assert ledger.main(["--quick", "--only", "drafter", "--output", str(tmp_path)]) == 0
    assert ledger.main(["--quick", "--only", "drafter", "--threads", "1", "--output", str(tmp_path)]) == 2
    assert f"delete {tmp_path}/quick/drafter" in " ".join(capfd.readouterr().err.split())


def test_a_command_that_fails_is_named(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(ledger.subprocess, "run", lambda words: type("Done", (), {"returncode": 2}))
    assert ledger.main(["--quick", "--only", "drafter", "--output", str(tmp_path)]) == 2
    assert "python experiments/drafter.py" in capfd.readouterr().err
    assert ledger.main(["--only", "nothing"]) == 2
