"""An OpenAI endpoint that writes with two models: ``python -m decoding.serve --policy runs/NAME/policy.json``."""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import importlib.util
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from decoding.cli.dtypes import weights_line
from decoding.cli.ending import ending, mendable
from decoding.cli.options import ModelOptions, parse, use
from decoding.cli.tuned import load, sampling_of, traffic_log

ROOM = 4096
"""tokens of a prompt and its answer, where the models have as many: a cache is kept for each row"""


@dataclass(kw_only=True)
class ServeOptions(ModelOptions):
    """Serve a small and a large model as one OpenAI endpoint: /v1/chat/completions, /v1/completions, /v1/models.

        python -m decoding.serve --policy runs/NAME/policy.json --batch-size 8
        curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
            -d '{"messages": [{"role": "user", "content": "Write a haiku."}], "max_tokens": 64}'

    Requests are answered in one continuous batch. A request may carry "policy": "off" (the large model writes alone),
    {"threshold": 0.4} or {"target_speedup": 1.5}, and its usage says how many tokens each model wrote. Requests of
    another temperature, filter or threshold than those that are being written wait until these have ended. MODEL is a
    folder, a .gguf file or a hub id. SIGTERM and Ctrl-C finish what has been asked, and ask for no more.
    """

    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 lets other machines in. There are no keys: put a proxy before it"""
    port: int = 8000
    """0: any free one"""
    batch_size: int = 8
    """texts that are written at once"""
    max_model_len: Annotated[int | None, arg(metavar="INT", help_behavior_hint=f"(default: at most {ROOM})")] = None
    """most tokens of a prompt and its answer; each row of the batch has a cache of so many"""
    max_queue: int = 256
    """requests that may wait; another one is answered with 429"""
    served_model_name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: its own)")] = None
    """name of the model in requests"""
    log: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """append a line of JSON for every request: tokens, who wrote them, seconds; never its text"""
    traffic_log: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """append what the policy saw, without any text, for python -m train.monitor: has traffic moved since the tuning?"""


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 ended, 2 bad input (one sentence on standard error), 130 Ctrl-C."""
    return ending("serve", lambda: run(parse(argv, ServeOptions, "python -m decoding.serve")), mendable)


def run(options: ServeOptions) -> int:
    """Load, listen, and serve until a signal. ValueError or OSError for whatever is wrong with the options."""
    check(options)
    use(options.device, options.threads)
    with listening(options.host, options.port) as sock:
        served = prepare(options)
        host, port = sock.getsockname()[:2]
        print(f"serving {served.name} at http://{host}:{port}/v1", file=sys.stderr, flush=True)
        import uvicorn

        from decoding.serving.app import build_app

        uvicorn.Server(uvicorn.Config(build_app(served), log_level="warning")).run(sockets=[sock])
    return 0


def check(options: ServeOptions) -> None:
    """ValueError for what is wrong without any model."""
    options.check()
    for name, least in {"batch_size": 1, "max_queue": 1, "max_model_len": 2, "port": 0}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    if options.port > 65535:
        raise ValueError(f"--port must be at most 65535, not {options.port}")
    for path in filter(None, (options.log, options.traffic_log)):
        path.open("a").close()  # an OSError of a log is said before the models are loaded
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f'serving needs {package}; pip install -e ".[serve]"')


def listening(host: str, port: int) -> socket.socket:
    """A bound socket: a port that is taken is said before the models are loaded. OSError where it cannot be had."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host") from error


def prepare(options: ServeOptions):
    """Load the models and start the batch. A first text is written, so that no request waits for a compiler."""
    from decoding.serving.app import Served
    from decoding.serving.batcher import Batcher
    from decoding.serving.record import Records
    from decoding.serving.warm_up import warm_up
    from decoding.serving.writers import Writers

    found = load(options)
    large, length = found.models[-1], room(options, found.models)
    provenance = {} if found.policy is None else found.policy.provenance
    log = None if options.traffic_log is None else traffic_log(found.policy, options.traffic_log)
    logged = None if log is None else replace(found, policy=log.policy).decoder()
    sampling = sampling_of(options, large, found.policy)
    check_budget_free(large)
    writers = Writers(found.decoder(), found.policy, sampling, provenance.get("curve", ()), logged)

    def ended(mode, texts: int) -> None:
        if log is not None and writers.is_logged(mode):
            log.write(texts)

    batcher = Batcher(writers, options.batch_size, length, options.max_queue, ended=ended)
    name = options.served_model_name or (large.name if options.policy is None else str(options.policy.parent.name))
    served = Served(name, large, writers, batcher, found.names, Records(options.log))
    warm_up(served)
    print(weights_line(found.names, found.models), file=sys.stderr)
    return served


def check_budget_free(lm) -> None:
    """ValueError for a setting that depends on the length of an answer, as requests of one batch differ in it."""
    from decoding.models.settings import OPTION, changes

    name = "forced_eos_token_id"
    if changes(lm, {name: None}):
        raise ValueError(
            f"the generation_config of {lm.name} sets {name}, which a server cannot apply: its texts end at lengths of "
            f"their own; to go on without it, add {OPTION} {name}"
        )


def room(options: ServeOptions, models) -> int:
    """Tokens of a prompt and its answer. ValueError for more than the models have."""
    tightest = min(models, key=lambda lm: lm.context)
    if options.max_model_len is None:
        return min(ROOM, tightest.context)
    if options.max_model_len > tightest.context:
        raise ValueError(
            f"--max-model-len is {options.max_model_len}, but {tightest.name} has {tightest.context} positions"
        )
    return options.max_model_len


if __name__ == "__main__":
    sys.exit(main())
