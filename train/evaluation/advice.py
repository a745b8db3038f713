"""What to deploy, in words for who decides it, and the command that does it."""

import shlex

from train.common.job import Job
from train.common.result import AgainstRandom, MethodRow


def advice(job: Job, tuned: MethodRow, exact: MethodRow, drafts: dict[str, str], comparison: AgainstRandom) -> str:
    """One sentence, and the command that comes next.

    exact: the fastest decoder that writes the large model's own text; drafts: its options on the command line.
    """
    worth_it = tuned.speedup_interval[0] > 1 and (comparison.interval[1] < 0 or tuned.loss_interval[1] <= 0)
    if exact.speedup_interval[0] > 1 and (exact.speedup >= tuned.speedup or not worth_it):
        what = f"exact drafts ({exact.label}), {_speed(exact)}, which write the large model's own text"
        return f"Deploy {what}: {_serve(_models(job) | drafts)}"
    if worth_it:
        low, high = tuned.loss_interval
        loss = f"a loss of {tuned.loss:.3f} (95 % interval {low:.3f} to {high:.3f})"
        what = f"the tuned policy, {_speed(tuned)} at {loss}, if you can bear that"
        return f"Deploy {what}: {_serve({'policy': str(job.folder / 'policy.json')})}"
    why = "no method here is surely faster, and surely better than chance at its speed"
    return f"Deploy the large model alone: {why}. Which pair would pay on this machine says {_cost(_models(job))}"


def _speed(row: MethodRow) -> str:
    low, high = row.speedup_interval
    return f"{row.speedup:.2f}x as fast as the large model alone (95 % interval {low:.2f} to {high:.2f})"


def _models(job: Job) -> dict[str, str]:
    """The options that load the models of the job as it did."""
    settings = job.settings
    given = {role: getattr(settings, role) for role in ("small", "large")}
    given |= {"small-dtype": settings.dtypes.small_dtype, "large-dtype": settings.dtypes.large_dtype}
    return {name: str(value) for name, value in given.items() if value is not None}


def _serve(options: dict[str, str]) -> str:
    return _command("decoding.serve", options)


def _cost(options: dict[str, str]) -> str:
    return _command("decoding.measure_cost", options)


def _command(module: str, options: dict[str, str]) -> str:
    said = " ".join(f"--{name} {shlex.quote(value)}" for name, value in options.items())
    return f"`python -m {module} {said}`".replace(" `", "`")
