"""Compare new prompts with those that a hand-off policy was tuned on: has traffic moved?

    python train/monitor.py runs/NAME --prompts new.jsonl

The tuned policy answers the prompts. Its steps (the features that it reads, how often it escalates, how often the large
model agrees) are compared with those of the run's hold-out texts. Prints one sentence; the exit code is 0 when there is
no sign of a shift, 1 when traffic has moved, and 2 for wrong input.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from train.common.cli import at_least, attempt, checked_options, checking


@dataclass
class MonitorTraffic:
    """Compare new prompts with those that a hand-off policy was tuned on."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a finished run of train/fit_policy.py --method backoff; models are loaded in its dtypes"""
    prompts: str
    """new prompts (as for fit_policy), a few dozen or more"""
    limit: int | None = None
    """at most this many of them"""
    level: float = 0.01
    """probability of a false alarm"""
    batch: int = 16
    """prompts that are answered at a time"""
    grader: str | None = None
    """the grader of the run, where it is a module:function of yours: such code is run at your word only"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when nothing has moved, 1 when traffic has, 2 after one sentence about wrong input."""
    config = tyro.cli(MonitorTraffic, args=argv, description=__doc__)
    found = []
    code = attempt("monitor", lambda: found.append(run(checked_options(config))))
    return code or int(found[0].moved)


def run(config: MonitorTraffic):
    """The ``Drift`` of the new prompts, whose sentence is printed. Raises InputError before any work is done.

    Its imports are here, so that --help answers at once.
    """
    from decoding import Backoff
    from train.common.generations import write
    from train.common.load_run import load_run
    from train.common.progress import track
    from train.data.prompts import prompts_for
    from train.monitoring.drift import Monitor
    from train.monitoring.recorder import StepRecorder

    with checking():
        at_least(config, {"batch": 1})
        found = load_run(config.run, config.grader)
        reference = found.policy.provenance.get("traffic")
        if reference is None:
            raise ValueError(f"{config.run / 'policy.json'} holds no traffic; tune a policy with --method backoff")
        monitor = Monitor(reference, config.level)
        # read as the run read its own: with its template, date and room for the answer
        prompts = prompts_for(replace(found.settings, prompts=config.prompts), found.models, config.limit)
    recorder = StepRecorder(found.policy)
    decoder = Backoff([found.small, found.large], recorder)
    for start in track(range(0, len(prompts), config.batch), "answers of the policy"):
        write(decoder, prompts[start : start + config.batch], found.new, found.sampling)
    drift = monitor.update(recorder.take())
    print(drift.sentence)
    return drift


if __name__ == "__main__":
    sys.exit(main())
