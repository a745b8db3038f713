"""Throughput of ``python -m decoding.serve`` on this machine, with 1, 4 and 16 clients on loopback.

    python experiments/serving.py --policy runs/default/policy.json

Every client asks one request after another until all prompts are answered; requests let the policy decide
as tuned, and then turn it off. Prints a table and writes OUTPUT/serving.json.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import json
import re
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

from train.common.cli import attempt, checked_options
from train.data.options import PromptOptions
from train.data.prompts import DEFAULT_PROMPTS
from train.data.sources import read_records


@dataclass
class Serving:
    """Measure the server."""

    policy: Path
    """policy.json of a run"""
    small: str | None = None
    large: str | None = None
    prompts: str | None = None
    """as train/fit_policy.py takes them (default: the embedded ones)"""
    limit: int = 32
    """prompts that are asked in each measurement"""
    max_new_tokens: int = 64
    clients: tuple[int, ...] = (1, 4, 16)
    batch_size: int = 16
    output: Path = Path("runs/serving")


def run(config: Serving) -> list[dict]:
    """A row for each number of clients and way of writing."""
    models = [f"--{role}={path}" for role in ("small", "large") if (path := getattr(config, role))]
    command = [sys.executable, "-m", "decoding.serve", "--policy", str(config.policy), *models]
    command += ["--port", "0", "--batch-size", str(config.batch_size)]
    rows = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = address(server)
            for policy in (None, "off"):
                ask(url, [{"role": "user", "content": "Hello"}], 4, policy)
                rows += [measured(config, url, clients, policy) for clients in config.clients]
        finally:
            server.terminate()
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "serving.json").write_text(json.dumps(rows, indent=1))
    show(rows)
    return rows


def address(server: subprocess.Popen) -> str:
    """Where the server listens, once it does. ValueError with its last line where it ends."""
    lines = []
    for line in server.stderr:
        lines.append(line)
        if found := re.search(r"http://\S+", line):
            return found[0]
    raise ValueError(f"the server did not start: {lines[-1].strip() if lines else 'no word of it'}")


def ask(url: str, messages: list[dict], tokens: int, policy: str | None) -> tuple[float, int, int]:
    """Seconds, tokens, and tokens by the small model of one greedy request."""
    body = {"messages": messages, "max_tokens": tokens, "temperature": 0, "policy": policy}
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/chat/completions", data, {"Content-Type": "application/json"})
    began = time.perf_counter()
    with urllib.request.urlopen(request) as response:
        usage = json.load(response)["usage"]
    return time.perf_counter() - began, usage["completion_tokens"], usage["written_by"].get("small", 0)


def measured(config: Serving, url: str, clients: int, policy: str | None) -> dict:
    """Tokens a second over all clients, and the median request."""
    records = read_records(DEFAULT_PROMPTS if config.prompts is None else config.prompts, PromptOptions())
    texts = [record.messages for record in records[: config.limit]]
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda text: ask(url, text, config.max_new_tokens, policy), texts))
    seconds = time.perf_counter() - began
    took, tokens, by_small = zip(*answers, strict=True)
    return {
        "policy": policy or "as tuned",
        "clients": clients,
        "tokens_per_second": sum(tokens) / seconds,
        "median_request_seconds": median(took),
        "small_share": sum(by_small) / sum(tokens),
    }


def show(rows: list[dict]) -> None:
    """A Markdown table."""
    print("| policy | clients | tokens/s | median request, s | by the small model |\n|---|---|---|---|---|")
    for row in rows:
        numbers = f"{row['tokens_per_second']:.1f} | {row['median_request_seconds']:.2f} | {row['small_share']:.0%}"
        print(f"| {row['policy']} | {row['clients']} | {numbers} |")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 measured, 2 bad input."""
    config = tyro.cli(Serving, args=argv, description=__doc__)
    return attempt("serving", lambda: run(checked_options(config)))


if __name__ == "__main__":
    sys.exit(main())
