"""lm-evaluation-harness on a tuned pair: its tasks and options, with the model ``two_model`` of ours.

    pip install -e ".[lm-eval]"
    python -m experiments.lm_eval run --model two_model --model_args policy=runs/default/policy.json --tasks gsm8k
    python -m experiments.lm_eval run --model two_model --model_args small=S,large=L,policy=runs/x/policy.json \\
        --tasks my_task --include_path folder/of/my/task --batch_size 8 --output_path out --log_samples

--model_args takes the options of ``python -m decoding`` (policy, method, small, large, dtype, allow_other_models=True
...) and of the harness's own model hf (max_length, enable_thinking ...). Texts are those of ``decoding.generate``, in
batches, with the task's stop strings. Likelihoods, of multiple choice or perplexity, are the large model's alone,
whatever the policy.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import sys
from collections.abc import Sequence
from pathlib import Path

from train.common.cli import InputError, attempt, checking


def main(argv: Sequence[str] | None = None) -> int:
    """Run the harness's own command line with our model among its models; 2 after one sentence on wrong input."""
    return attempt("lm_eval", lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> None:
    """As ``main``. Raises InputError where the harness is missing, and for options of ours that cannot be."""
    folder = str(Path(__file__).parent)
    if folder in sys.path[:1]:  # where this file would hide the harness, which has its name
        raise InputError("start it as python -m experiments.lm_eval")
    try:
        from lm_eval.__main__ import cli_evaluate

        import experiments.harness_model  # noqa: F401  its import registers the model
    except ImportError as error:
        raise InputError(f"lm-evaluation-harness cannot be used ({error}); pip install -e '.[lm-eval]'") from error
    before, sys.argv = sys.argv, ["lm_eval", *argv]
    try:
        with checking():
            cli_evaluate()
    finally:
        sys.argv = before


if __name__ == "__main__":
    raise SystemExit(main())
