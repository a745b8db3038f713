"""False alarms of train/monitor.py, and how soon it notices other traffic, on texts of a tuned pair.

    python experiments/moved_traffic.py runs/NAME --own own.jsonl --other other.jsonl

The run's policy answers prompts of its own kind that it has not used, and prompts of another kind. Logs of a server are
drawn from these texts, with replacement: of the first kind, which should raise no alarm, and of the second.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from train.common.cli import at_least, checking, command

KINDS = ("own", "other")


@dataclass
class MovedTraffic:
    """Alarms of the monitor on logs that are drawn from texts of two kinds."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a finished run of train/fit_policy.py --method backoff"""
    own: str | None = None
    """prompts of the kind that the run was tuned on; those that it has used are left out"""
    other: str | None = None
    """prompts of another kind"""
    again: Path | None = None
    """instead: moved_traffic.json of an earlier call, from whose texts logs are drawn; no model is loaded"""
    limit: int = 80
    """at most this many prompts of each kind"""
    draws: int = 20
    """logs of each kind"""
    texts: int = 200
    """texts of a log"""
    every: int = 50
    level: float = 0.01
    batch: int = 16
    seed: int = 0
    output: Path = Path("moved_traffic")
    """folder of moved_traffic.json and moved_traffic.png"""
    grader: str | None = None


def run(config: MovedTraffic) -> dict:
    """The alarms on each kind. Raises InputError before any work is done.

    Its imports are here, so that --help answers at once.
    """
    import numpy as np

    from policies import load
    from policies.traffic_log import reference_of
    from train.common import atomic
    from train.common.progress import say
    from train.monitoring.watch import watch

    with checking():
        at_least(config, {"limit": 2, "draws": 1, "texts": 1, "every": 1, "batch": 1, "seed": 0})
        reference = reference_of(load(config.run / "policy.json"))
        result = _answered(config) if config.again is None else _again(config.again)
        config.output.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(config.seed)
    for name in KINDS:
        lines = result[name]["lines"]
        logs = [[lines[i] for i in draw.integers(0, len(lines), config.texts)] for _ in range(config.draws)]
        verdicts = [watch(reference, log, config.every, config.level) for log in logs]
        caught = [None if verdict.moved is None else verdict.moved.last for verdict in verdicts]
        result[name] |= {"caught": caught, "sentence": verdicts[0].sentence, "lines": [asdict(line) for line in lines]}
        alarms = [at for at in caught if at is not None]
        say(f"{name}: {len(alarms)} of {config.draws} logs of {config.texts} texts raise an alarm; {caught}")
    atomic.write_json(config.output / "moved_traffic.json", result | {"config": atomic.plain(vars(config))})
    _draw(result, config, config.output / "moved_traffic.png")
    return result


def _again(path: Path) -> dict:
    """The texts of an earlier call. FileError for a file that is none."""
    from policies.storage.documents import FileError, parse, read_bytes
    from policies.traffic_log import Counts, Served

    remedy = "give the moved_traffic.json of an earlier call"
    found = parse(read_bytes(path, remedy), path, remedy)
    try:
        for name in KINDS:
            columns = [{key: Counts(**one) for key, one in line["columns"].items()} for line in found[name]["lines"]]
            found[name]["lines"] = [Served(float(i), 1, counts) for i, counts in enumerate(columns)]
    except (KeyError, TypeError, AttributeError) as error:
        raise FileError(path, f"it holds no texts ({error!r})", remedy) from None
    return {name: found[name] for name in KINDS}


def _answered(config: MovedTraffic) -> dict:
    """A line for the policy's answer to each prompt of both kinds, by kind. ValueError for prompts that cannot be read.

    Of each kind at most ``config.limit`` prompts are picked at random.
    """
    import numpy as np

    from train.common.load_run import load_run
    from train.data.prompts import prompts_for
    from train.monitoring.recertification import fresh

    if config.own is None or config.other is None:
        raise ValueError("give --own and --other, prompts of two kinds, or --again")
    found, draw = load_run(config.run, config.grader), np.random.default_rng(config.seed)
    read = lambda source: prompts_for(replace(found.settings, prompts=source), found.models, None)  # noqa: E731
    kinds, result = {name: fresh(found, read(getattr(config, name))) for name in KINDS}, {}
    for name, prompts in kinds.items():
        picked = [prompts[i] for i in sorted(draw.permutation(len(prompts))[: config.limit])]
        families = sorted({prompt.family for prompt in picked})
        result[name] = {
            "prompts": len(picked),
            "families": families,
            "lines": _served(found, picked, config.batch),
        }
    return result


def _served(found, prompts: list, batch: int) -> list:
    """A line of a server's log for the answer to each prompt; texts are written in batches, and read again."""
    import numpy as np
    import torch

    from decoding import Backoff
    from policies import token_classes
    from policies.features.step_recorder import step_columns
    from policies.traffic_log import Served, counted, reference_of
    from train.common.generations import write
    from train.common.progress import track
    from train.traces.collect_handoff import trajectory

    policy, decoder = found.policy, Backoff(found.models, found.policy)
    classes, cuts = token_classes(found.large.tokenizer), reference_of(policy)["columns"]
    lines = []
    for start in track(range(0, len(prompts), batch), "answers of the policy"):
        some = prompts[start : start + batch]
        for prompt, (answer, writers) in zip(some, write(decoder, some, found.new, found.sampling), strict=True):
            seen = trajectory(*found.models, prompt, answer, writers, answer, classes)
            table = np.stack([seen[name] for name in policy.names], 1).astype(np.float32)
            escalated = policy.exceeds(policy.score_table(torch.from_numpy(table))).numpy()
            accepted = np.where(seen["since_large"] == 0, seen["agreed"], np.nan)
            columns = step_columns(policy.names, table, escalated, accepted)
            counts = {name: counted(columns[name], one["cuts"]) for name, one in cuts.items()}
            lines.append(Served(float(len(lines)), 1, counts))
    return lines


def _draw(result: dict, config: MovedTraffic, path: Path) -> None:
    """The share of logs that have raised an alarm, by texts served."""
    from matplotlib.figure import Figure

    from train.reports.figure import dress, legend, save
    from train.reports.plane import COLOURS, INK

    picture = Figure(figsize=(7, 4.2), dpi=150, facecolor="white")
    axes = picture.add_axes((0.1, 0.27, 0.86, 0.68))
    served = range(0, config.texts + 1, config.every)
    for name, label, colour in (("other", "another kind", "small"), ("own", "the tuning's kind", "large")):
        caught = result[name]["caught"]
        share = [sum(at is not None and at <= n for at in caught) / len(caught) for n in served]
        axes.plot(served, share, "o-", color=COLOURS[colour], label=f"prompts of {label}, {len(caught)} logs")
    axes.set_xlabel("texts served", color=INK)
    axes.set_ylabel("share of logs with an alarm", color=INK)
    axes.set_ylim(-0.03, 1.03)
    dress(axes)
    legend(axes)
    save(picture, path)


main = command(MovedTraffic, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
