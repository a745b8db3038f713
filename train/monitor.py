"""Does a hand-off policy still hold? Compare traffic with that which it was tuned on.

    python -m train.monitor runs/NAME --log served.jsonl
    python -m train.monitor runs/NAME --prompts new.jsonl [--certify 0.1]

With --log, what a server has written about its texts (policies/traffic_log.py) is compared batch by batch with the
run's hold-out texts: the features that the policy reads, how often it escalates, how often the large model agrees. No
model is loaded. With --prompts, the tuned policy answers the prompts and its steps are compared; --certify tests its
loss on them too. Prints one sentence; the exit code is 0 when there is no sign of a shift and the loss holds, 1 when
traffic has moved or the loss cannot be certified, and 2 for wrong input.
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
    """Compare traffic with that which a hand-off policy was tuned on."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a finished run of train/fit_policy.py --method backoff"""
    log: Path | None = None
    """what a server wrote about the texts that it served; a picture is written beside it"""
    prompts: str | None = None
    """instead: new prompts (as for fit_policy), a few dozen or more; models are loaded in the run's dtypes"""
    certify: float | None = None
    """with --prompts: certify this mean loss again, on those of them that are new to the run"""
    every: int = 50
    """with --log: texts of a batch that is compared at a time"""
    limit: int | None = None
    """with --prompts: at most this many of them"""
    level: float = 0.01
    """probability of a false alarm, over the whole log however often it is read"""
    batch: int = 16
    """with --prompts: prompts that are answered at a time"""
    grader: str | None = None
    """the grader of the run, where it is a module:function of yours: such code is run at your word only"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when all holds, 1 when something does not, 2 after one sentence about wrong input."""
    config = tyro.cli(MonitorTraffic, args=argv, description=__doc__)
    found = []
    code = attempt("monitor", lambda: found.append(run(checked_options(config))))
    return code or int(not found[0])


def run(config: MonitorTraffic) -> bool:
    """Whether there is no sign that the policy no longer holds; says why. Raises InputError before any work is done."""
    with checking():
        at_least(config, {"batch": 1, "every": 1})
        if (config.log is None) == (config.prompts is None):
            raise ValueError("give --log, what a server wrote, or --prompts, to be answered here")
        if config.certify is not None and config.prompts is None:
            raise ValueError("--certify needs --prompts: a certificate takes prompts that nothing has seen")
    return read_log(config) if config.log is not None else answer(config)


def read_log(config: MonitorTraffic) -> bool:
    """Compare the texts of a log with the artifact.

    Its imports are here, so that --help answers at once.
    """
    from policies import load, traffic_log
    from train.monitoring import chart
    from train.monitoring.watch import watch

    with checking():
        policy = load(config.run / "policy.json")
        served = list(traffic_log.read_log(config.log, policy))
        if not served:
            raise ValueError(
                f"{config.log} holds no line about {config.run / 'policy.json'}; give the log of its server"
            )
        verdict = watch(traffic_log.reference_of(policy), served, config.every, config.level)
    if verdict.batches:
        chart.draw(verdict, config.log.with_suffix(".png"))
    print(verdict.sentence)
    return verdict.moved is None


def answer(config: MonitorTraffic) -> bool:
    """Compare the policy's own answers to prompts with the artifact, and certify their loss where asked."""
    from decoding import Backoff
    from policies.features.step_recorder import StepRecorder
    from policies.traffic_log import reference_of
    from train.common.generations import write
    from train.common.load_run import load_run
    from train.common.progress import track
    from train.data.prompts import prompts_for
    from train.monitoring.drift import Monitor
    from train.monitoring.recertification import fresh, recertify

    with checking():
        found = load_run(config.run, config.grader)
        monitor = Monitor(reference_of(found.policy), config.level)
        # read as the run read its own: with its template, date and room for the answer
        prompts = prompts_for(replace(found.settings, prompts=config.prompts), found.models, config.limit)
        new = fresh(found, prompts) if config.certify is not None else []
    recorder = StepRecorder(found.policy)
    decoder = Backoff([found.small, found.large], recorder)
    for start in track(range(0, len(prompts), config.batch), "answers of the policy"):
        write(decoder, prompts[start : start + config.batch], found.new, found.sampling)
    drift = monitor.update(recorder.take())
    print(drift.sentence)
    if config.certify is None:
        return not drift.moved
    with checking():
        holds, claim = recertify(found, new, config.certify)
    print(claim)
    return holds and not drift.moved


if __name__ == "__main__":
    sys.exit(main())
