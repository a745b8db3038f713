"""Loss of a tuned policy against random hand-off at the same priced speed, on many prompts.

    python experiments/handoff.py runs/default --limit 120

The policy and random hand-off, at two rates around the policy's share of large-model tokens, write texts in batches, on
prompts of groups that the run has not used. Time is priced at the run's own costs, by the calls that each text took, so
this takes many more prompts than the run's hold-out, where each is timed on its own.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from train.common.cli import at_least, checking, command


@dataclass
class HandOff:
    """A tuned policy against random hand-off at the same priced speed, on prompts that its run has not used."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a finished run of train/fit_policy.py --method backoff"""
    limit: int = 120
    """prompts, spread over their families"""
    batch: int = 16
    around: float = 0.1
    """distance of the two rates of random hand-off from the policy's share of large-model tokens"""
    grader: str | None = None
    """the grader of the run, where it is a module:function of yours: such code is run at your word only"""
    output: Path | None = None
    """write the figures to this JSON file"""


def run(config: HandOff) -> dict:
    """Write the texts, price and compare them. Raises InputError before any work is done.

    Its imports are here, so that --help answers at once.
    """
    from decoding import Autoregressive, Backoff
    from experiments.shared.estimates import estimate
    from experiments.shared.unseen_prompts import shortest_first, unseen_prompts
    from policies import Random
    from train.common import atomic
    from train.common.generations import write
    from train.common.load_run import load_run
    from train.common.progress import say, track
    from train.evaluation.live import LARGE, speedup
    from train.evaluation.rivals import against_random
    from train.replay.pricing import alone, judged

    with checking():
        at_least(config, {"limit": 1, "batch": 1})
        found = load_run(config.run, config.grader)
        prompts = shortest_first(unseen_prompts(found)[: config.limit])
    batches = [prompts[i : i + config.batch] for i in range(0, len(prompts), config.batch)]

    def texts(name: str, decoder) -> list[tuple[list[int], list[int]]]:
        return [text for batch in track(batches, name) for text in write(decoder, batch, found.new, found.sampling)]

    references = [answer for answer, _ in texts(LARGE, Autoregressive(found.large))]
    measured = {LARGE: alone(prompts, references, found.cost)}

    def measure(name: str, policy) -> None:
        written = texts(name, Backoff([found.small, found.large], policy))
        measured[name] = judged(found.metric, prompts, written, references, found.cost)

    measure("tuned", found.policy)
    share = float(measured["tuned"]["large"].sum() / measured["tuned"]["tokens"].sum())
    measure("random_low", Random(min(1.0, share + config.around)))
    measure("random_high", Random(max(0.0, share - config.around)))
    result = {"prompts": len(prompts), "large_share": share} | asdict(against_random(measured))
    for name in ("tuned", "random_low", "random_high"):
        loss = measured[name]["loss"]
        result[name] = {
            "priced_speedup": speedup(measured, name),
            **estimate("loss", lambda rows, loss=loss: loss[rows].mean(), len(loss)),
            "plain_regret": float(measured[name]["regret"].mean()),
        }
    say(result)
    if config.output is not None:
        atomic.write_json(config.output, result)
    return result


main = command(HandOff, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
