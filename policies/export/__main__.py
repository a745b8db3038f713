"""Write a tuned policy for another engine, or check an exported folder.

    python -m policies.export runs/NAME/policy.json --to python --output exported
    python -m policies.export --list
    python -m policies.export --check exported

With a policy.json, --check also compares the folder with that policy and its models.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from policies.export.stopping import stop_quietly

    stop_quietly()

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg


@dataclass
class Export:
    policy: Annotated[Path | None, tyro.conf.Positional, arg(metavar="POLICY", help_behavior_hint="")] = None
    """policy.json, as train/fit_policy.py writes it"""
    to: Annotated[str | None, arg(metavar="TARGET", help_behavior_hint="")] = None
    """engine or format to write for; --list names them"""
    output: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """new folder for the files and a manifest"""
    role: Annotated[str | None, arg(metavar="ROLE", help_behavior_hint="(default: as tuned, else handoff)")] = None
    """the decision it takes: handoff (which model writes the next token) or stop (whether the draft ends)"""
    length: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: as tuned, else 4)")] = None
    """most tokens of a draft"""
    draft: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(default: its name)")] = None
    """path of the small model, for engines that take it as an argument"""
    approximate: bool = False
    """if the target cannot carry the policy, write its nearest setting, fitted on --traces"""
    traces: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: traces/ beside the policy)")] = None
    """traces that the nearest setting is fitted on"""
    list: bool = False
    """print the targets and the policies that each can carry"""
    check: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """check that an exported folder is unchanged and fits the installed engines"""


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done; 2 bad input, a policy that the target cannot carry, a changed folder; 130 interrupted."""
    options = {"prog": "python -m policies.export", "description": __doc__, "config": (tyro.conf.FlagCreatePairsOff,)}
    for stream in filter(lambda stream: isinstance(stream, io.TextIOWrapper), (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # a name that a terminal cannot encode is no reason to fail
    config = tyro.cli(Export, args=argv, **options)
    import policies.export.targets  # noqa: F401  # and torch with it, which takes seconds
    from policies.export.stopping import stop_normally
    from policies.storage.files import PolicyError

    stop_normally()
    try:
        run(config)
    except (PolicyError, ValueError, OSError) as error:
        sentence = " ".join(str(error).split())  # may quote a folder from elsewhere: what commands a terminal is shown
        print("export: " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


def run(config: Export) -> None:
    from policies.export.source import ExportError

    jobs = [name for name in ("list", "check", "to") if getattr(config, name) not in (None, False)]
    if len(jobs) != 1:
        raise ExportError("give one of --to TARGET, --check DIR and --list")
    {"list": show_targets, "check": check_folder, "to": export}[jobs[0]](config)


def show_targets(config: Export) -> None:
    from policies.export.targets import TARGETS

    for target in TARGETS.values():
        tried = "" if target.evidence == "run" else " [keys from its documentation]"
        print(f"{target.name}: {target.summary}{tried}\n    carries {target.carries}; as {' or '.join(target.roles)}")


def check_folder(config: Export) -> None:
    from policies.export.checking import check
    from policies.export.source import open_source

    source = None if config.policy is None else open_source(config.policy, config.role, config.length)
    manifest = check(config.check, *(() if source is None else (source.policy.models, source.sha256)))
    print(f"{config.check}: {manifest['target']}, {len(manifest['files'])} files, as written")


def export(config: Export) -> None:
    from policies.export.bundle import write_bundle
    from policies.export.source import ExportError, open_source
    from policies.export.targets import TARGETS

    if config.policy is None or config.output is None:
        raise ExportError("an export needs a policy.json and --output DIR")
    if config.to not in TARGETS:
        raise ExportError(f"unknown target {config.to!r}; the known ones are {', '.join(TARGETS)}")
    source = open_source(config.policy, config.role, config.length, config.draft)
    target = TARGETS[config.to]
    if config.approximate and target.reason(source) is not None:
        source = approximated(config, source, target)
    written = write_bundle(source, target, config.output)
    print(f"{config.output}: {', '.join(written)}")
    if source.processors:
        names = ", ".join(f"{name}={value}" for name, value in source.processors.items())
        print(f"tuned under the large model's {names}: the engine must apply it to every token, drafts included")


def approximated(config: Export, source, target):
    """The nearest setting, after printing its agreement; on traces of hand-offs that is an estimate for drafts."""
    from policies.export.nearest import describe, nearest

    traces = config.policy.parent / "traces" if config.traces is None else config.traces
    fitted = nearest(source, target, traces)
    print(f"{target.name} cannot carry this policy: {target.reason(source)}\n{describe(fitted.approximation)}")
    return fitted


if __name__ == "__main__":
    from policies.export.stopping import end_quietly

    code = main()
    end_quietly()
    sys.exit(code)
