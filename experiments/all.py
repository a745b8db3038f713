"""The headline rows of the ledger, measured again on the embedded pair, and what has moved beyond its interval.

    python experiments/all.py --quick        # a few prompts each; without it as many as the ledger's own numbers had

Each row is an existing command of this folder, in a process of its own, one after the other. A row has moved where its
interval and the ledger's have no value in common; a number without an interval is one point. Rows that are times depend
on the machine: those of the ledger are of another one, unless you measured it. What needs a finished run, or a pair of
models that is not embedded, has commands of its own (experiments/README.md).

A stopped run goes on after its last command. It leaves OUTPUT/result.json and OUTPUT/table.md.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from experiments.ledger.claims import COMMANDS, Claim, Command, moved, recorded
from policies.storage import atomic as files
from train.common import atomic, run_folder
from train.common.cli import InputError, checking, command
from train.common.progress import say
from train.reports.tables import markdown, with_interval
from train.reports.terminal import print_rows

HEAD = ("claim", "ledger", "now", "")


@dataclass
class Ledger:
    """Measure the headline rows of experiments/README.md again."""

    quick: bool = False
    """few prompts, so wide intervals: minutes in place of an hour"""
    only: tuple[str, ...] = ()
    """commands to run, such as drafter certificates (default: all)"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    output: Path = Path("runs/ledger")
    """each command's result goes to a folder of its own in OUTPUT/quick or OUTPUT/full"""


def run(config: Ledger) -> dict:
    """Run what has not been run yet, print the table and write it. Raises InputError where a command fails."""
    unknown = set(config.only) - {one.name for one in COMMANDS}
    if unknown:
        names = ", ".join(one.name for one in COMMANDS)
        raise InputError(f"--only takes names of {names}, not {', '.join(sorted(unknown))}")
    chosen = [one for one in COMMANDS if one.name in config.only or not config.only]
    folder = config.output / ("quick" if config.quick else "full")
    result = {
        "quick": config.quick,
        "rows": [row for one in chosen for row in rows(one, measured(one, config, folder))],
    }
    show(result, folder)
    return result


def measured(one: Command, config: Ledger, folder: Path) -> dict:
    """The command's result, from its file where the same command has written it before."""
    own = folder / one.name
    arguments = one.arguments(str(own), config.quick, config.threads)
    done, said = own / "done.json", f"python experiments/{one.name}.py {' '.join(arguments)}"
    otherwise = f"delete {own}"
    with checking():
        run_folder.ensure_same_run(own / "run.json", {"command": said}, config, otherwise)
    if not done.exists():
        say(said)
        script = Path(__file__).with_name(f"{one.name}.py")
        code = subprocess.run([sys.executable, script, *arguments]).returncode
        if code:
            raise InputError(f"{said} ended with exit code {code}; the rows of {folder} that are measured stay")
        atomic.write_json(done, {"command": said})
    with checking():
        return json.loads((own / one.result).read_text(encoding="utf-8"))


def rows(one: Command, result: dict) -> list[dict]:
    """What the ledger says, what is found now, and whether it moved, of each claim of a command."""
    return [_row(claim, result) | {"command": one.name} for claim in one.claims]


def _row(claim: Claim, result: dict) -> dict:
    before, now = recorded(claim.ledger), claim.found(result)
    both = {"ledger": before[0], "ledger_interval": before[1], "now": now[0], "now_interval": now[1]}
    return {"claim": claim.about} | both | {"timed": claim.timed, "moved": moved(before, now)}


def show(result: dict, folder: Path) -> None:
    """Print the table and say what moved; write both files."""
    cells = [
        (
            row["claim"],
            *(with_interval(row[key], row[f"{key}_interval"], ".3f") for key in ("ledger", "now")),
            "moved" if row["moved"] else "",
        )
        for row in result["rows"]
    ]
    print_rows(HEAD, cells, "the ledger, measured again")
    for row in result["rows"]:
        if row["moved"]:
            way = "up" if row["now"] > row["ledger"] else "down"
            why = " (a ratio of times: of this machine)" if row["timed"] else ""
            say(f"{row['command']}: {row['claim']}: {way} from {row['ledger']:.3f} to {row['now']:.3f}{why}")
    count = sum(row["moved"] for row in result["rows"])
    say(f"{count} of {len(result['rows'])} rows moved beyond their intervals")
    atomic.write_json(folder / "result.json", result)
    files.write(folder / "table.md", (markdown([HEAD, *cells]) + "\n").encode())
    say(f"wrote {folder}/result.json, table.md")


main = command(Ledger, run, __doc__, lambda config: config.output)

if __name__ == "__main__":
    raise SystemExit(main())
