"""glibc gives big blocks of memory back after every training step: on CPU half of the time goes there.

Its settings are read when a process starts, so the process is started once more with them.
"""

from __future__ import annotations

import os
import sys

SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "500000000",
}


def keep_freed_memory() -> None:
    """Replace this process by the same command with ``SETTINGS``; does nothing where any of them is set, or off Linux.

    Call it first thing in a script and nowhere else. That they are set is also what ends the recursion.
    """
    if sys.platform == "linux" and not SETTINGS.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | SETTINGS)
