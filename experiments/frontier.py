"""Quality against speed of any set of methods, on the same prompts, in one run.

    python experiments/frontier.py small speculative:length=2 mtad:tau=0.3 typical@sampling --limit 40 --timed 10
    python experiments/frontier.py random:rate=0.5 policy:runs/default/policy.json --timed 0 --name hand-off

Quality: every method answers --limit prompts, in batches, and its texts are compared with the large model's greedy ones
by guarded regret (0: the same text, 1: the worst), with intervals over prompts. Speed: the methods take turns on
--timed of these prompts, one text at a time; with --timed 0 nothing is timed, and time is priced from the calls that
each text took, at measured costs of both models. The large model alone is always measured too.

The output folder keeps the texts: a stopped run goes on, and a method that is added later writes only its own. All
methods are then timed again, because speeds are only comparable within one run.

Methods, with their defaults:
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from dataclasses import dataclass
from typing import Annotated

import tyro

from experiments.comparison.methods import catalogue
from experiments.comparison.settings import ComparisonSettings
from train.common.cli import command

DEFAULT = (
    *("small", "random:rate=0.66", "random:rate=0.39"),
    *("speculative:length=1", "speculative:length=2", "speculative:length=4", "promptlookup"),
    *("lenient", "divergence", "cascade", "fixed:verify=raw", "mtad", "mmtad", "bild", "beam"),
)


@dataclass
class Frontier(ComparisonSettings):
    """Quality against speed of any set of methods."""

    methods: Annotated[tuple[str, ...], tyro.conf.Positional] = DEFAULT
    """methods, as below"""


def run(config: Frontier) -> None:
    """Measure the methods and write the result. Raises InputError before any work is done."""
    from experiments.comparison.study import compare

    compare(config, config.methods)


main = command(Frontier, run, f"{__doc__}\n{catalogue()}", lambda config: config.output / config.name)

if __name__ == "__main__":
    raise SystemExit(main())
