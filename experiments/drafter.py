"""Agreement of the drafter with the target's own greedy text on unseen prompts, and the cost of both models.

python experiments/drafter.py --limit 100
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from decoding import Autoregressive, generate
from decoding.cli.options import use
from decoding.cost.timing import measure
from decoding.models.defaults import load_model
from experiments.shared.estimates import estimate
from train.common import atomic
from train.common.cli import checking, command
from train.common.progress import say, track
from train.data.options import PromptOptions, Reading
from train.data.prompts import prompts_for
from train.distillation.agreement import expected_accepted
from train.quality.guarded_regret import answer_logits, rules
from train.reports.terminal import print_rows


@dataclass
class DrafterQuality:
    """Greedy agreement of a drafter with the target's own answers, by prompt family, and both models' cost."""

    small: str | None = None
    """folder, hub id or .gguf of the drafter (default: the one in the repository)"""
    prompts: str | None = None
    """prompts that the drafter was not trained on (default: the embedded ones)"""
    limit: int = 100
    """prompts, spread over their families"""
    max_new_tokens: int = 96
    threads: int | None = None
    output: Path | None = None
    """write the figures to this JSON file"""
    reading: Reading = field(default_factory=PromptOptions)


def run(config: DrafterQuality) -> dict:
    """Measure, print and write the figures."""
    with checking():
        use("cpu", config.threads)
    large = load_model("large", None)
    small = load_model("small", config.small)
    prompts = prompts_for(config, [small, large], config.limit)
    by_family = defaultdict(list)
    for prompt in track(prompts, "target's answers"):
        by_family[prompt.family].append(agreement(small, large, prompt, config.max_new_tokens))
    cost = measure([small, large])
    result = {
        "prompts": len(prompts),
        **summarize([text for texts in by_family.values() for text in texts]),
        "by_family": {family: summarize(texts) for family, texts in sorted(by_family.items())},
        "seconds_one_token": {"small": cost.small[1], "large": cost.large[1]},
        "cost_ratio": cost.small[1] / cost.large[1],
        "threads": torch.get_num_threads(),
    }
    show(result)
    if config.output is not None:
        atomic.write_json(config.output, result)
    return result


def summarize(texts: list[np.ndarray]) -> dict:
    """Share of tokens that agree, and expected accepted tokens a round, of texts bool [n] each."""
    return {
        "tokens": sum(map(len, texts)),
        **estimate("agreement", lambda rows: np.concatenate([texts[i] for i in rows]).mean(), len(texts)),
        "accepted_at_length_4": expected_accepted(texts, 4),
    }


def agreement(small, large, prompt, max_new_tokens: int) -> np.ndarray:
    """bool [n]: whether the drafter's best token, after the target's greedy answer so far, is the target's."""
    ids = torch.tensor([prompt.ids])
    result = generate(Autoregressive(large), ids, max_new_tokens=max_new_tokens)
    answer = result.sequences[0, ids.shape[1] :].tolist()
    with torch.inference_mode():
        best = answer_logits(small, prompt.ids, answer, processors=rules(large, max_new_tokens)).argmax(-1)
    return best.numpy() == np.array(answer)


def show(result: dict) -> None:
    """Print a line for each family, and the cost of a token."""
    rows = [
        (family, row["tokens"], f"{row['agreement']:.3f}", f"{row['accepted_at_length_4']:.2f}")
        for family, row in {**result["by_family"], "all": result}.items()
    ]
    print_rows(("family", "tokens", "agreement", "accepted a round at length 4"), rows)
    seconds = result["seconds_one_token"]
    say(
        f"{result['prompts']} unseen prompts; one token: small {seconds['small'] * 1e3:.1f} ms, large "
        f"{seconds['large'] * 1e3:.1f} ms, ratio {result['cost_ratio']:.3f}"
    )


main = command(DrafterQuality, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
