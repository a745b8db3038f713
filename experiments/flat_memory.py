"""Resident memory of the default pair over many short generations.

    python experiments/flat_memory.py --generations 1000

Autoregressive, speculative (with a stop), backoff and MTAD decoding take turns; prompts, batch sizes and lengths vary
from one generation to the next, as they do for a server. Anything kept between generations adds up.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import resource
from dataclasses import dataclass
from pathlib import Path

from decoding.cli.options import use
from train.common.cli import at_least, checking, command


@dataclass
class FlatMemory:
    """Resident memory after every tenth of the generations."""

    generations: int = 1000
    max_new_tokens: int = 6
    threads: int | None = None
    seed: int = 0


def run(config: FlatMemory) -> list[float]:
    """MiB after each tenth. Raises InputError before any work is done.

    Its imports are here, so that --help answers at once.
    """
    import numpy as np

    from decoding import MTAD, Autoregressive, Backoff, Speculative, default_pair
    from policies import Rule
    from train.common.generations import write
    from train.common.progress import say, track
    from train.data.prompts import load_prompts

    with checking():
        at_least(config, {"generations": 10, "max_new_tokens": 1, "seed": 0})
        use("cpu", config.threads)
    small, large = default_pair()
    prompts = [prompt for prompt in load_prompts(None, large.tokenizer, 100) if len(prompt.ids) <= 128]
    pair, stop = [small, large], Rule("entropy", 2.0)
    decoders = [Autoregressive(large), Speculative(pair, 4, stop=stop), Backoff(pair, stop), MTAD(pair, 2, 3)]
    rng, seen = np.random.default_rng(config.seed), []
    for i in track(range(config.generations), "generations"):
        some = [prompts[j] for j in rng.choice(len(prompts), rng.integers(1, 4), replace=False)]
        write(decoders[i % len(decoders)], some, int(rng.integers(1, config.max_new_tokens + 1)))
        if (i + 1) % (config.generations // 10) == 0:
            seen.append(resident())
            say(f"{i + 1}: {seen[-1]:.0f} MiB")
    say(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return seen


def resident() -> float:
    """Resident MiB of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


main = command(FlatMemory, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
