"""Tune a decision policy for a pair of models, and measure what it is worth.

Give it models, prompts and a target; it gives you a policy, a measured frontier and a report:

    python train/fit_policy.py                                  # the embedded pair and prompts, at a goal of its own
    python train/fit_policy.py --preset quick                   # the same in a few minutes; it proves nothing
    python train/fit_policy.py --quality-budget 0.05            # the fastest policy that loses at most 0.05
    python train/fit_policy.py --quality-budget 0.05 --certify 300      # ... and a promise that it does, on 300 more
    python train/fit_policy.py --prompts my.jsonl --grader code --quality-budget 0.02   # pass@1 may fall by 0.02
    python train/fit_policy.py --method speculative             # as fast as drafts can make it, and nothing lost
    python train/fit_policy.py --method hybrid --trials 60      # where drafts end, how long, and how leniently kept
    python train/fit_policy.py --small S --large L --prompts my.jsonl --policy mlp --name mine

The steps: split the prompts by group and collect traces of both models; fit policies; search thresholds with Optuna by
replaying the traces; run the best three live on the tuning prompts, and correct the best one's threshold by texts that
it writes until it meets the goal; measure the hold-out once: losses by texts in batches, speeds on a dozen prompts on
which it takes turns with its controls. The loss is the guarded regret (0: the large model's own text, 1: worst), or
with --grader what is lost of a score of the task.

With --certify, thresholds up to the tuned one are tested in a fixed order on prompts that nothing else touched. One of
the answers is "cannot certify"; policy.json then escalates every token.

--method speculative tunes drafts by exact replay: their length, and a policy that ends them early. --method hybrid also
tunes the rule that accepts a draft, at the same goals as hand-offs. Text that a lossy rule writes cannot be replayed,
so every trial decodes the tuning prompts; it is priced by the timing table, and pruned once it is surely worse than the
best. A stopped run goes on where it was when it is started again with the same settings; other processes help its
search with the same command and --join.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from train.common.cli import command
from train.common.presets import applied
from train.common.settings import FitPolicy


def run(settings: FitPolicy) -> None:
    """Run the job. Its imports are here, so that --help answers at once."""
    from train.pipeline import run as run_job

    run_job(applied(settings))


main = command(FitPolicy, run, __doc__, lambda settings: settings.output / applied(settings).name)

if __name__ == "__main__":
    raise SystemExit(main())
