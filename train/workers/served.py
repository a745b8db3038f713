"""A worker that a process of the same machine tells of one stage after the other, and that ends with it.

    python -m train.workers.served LOG THREADS

reads a line of JSON for each stage, the fields of ``train.workers.worker.Worker``, and answers with one byte.
"""

import json
import os
import signal
import sys
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from train.common.cli import attempt
from train.workers.worker import Worker, print_to, work


def main() -> int:
    """Work on stages until standard input ends, which ends the process; the exit code where a stage cannot be done."""
    log, threads = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    answers = os.dup(1)
    print_to(Path(log))
    lines: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_read, args=(lines,), daemon=True).start()

    def serve() -> None:
        while True:
            asked = json.loads(lines.get())
            work(Worker(Path(asked["folder"]), asked["owner"], first=asked["first"], threads=int(threads)))
            os.write(answers, b".")

    return attempt("worker", serve)


def _read(lines: "SimpleQueue[bytes]") -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(1)  # whoever waits for the shards is gone


if __name__ == "__main__":
    raise SystemExit(main())
