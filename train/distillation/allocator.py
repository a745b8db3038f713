"""Makes glibc keep freed memory: returning large blocks after every training step takes half of the time on a CPU.

glibc reads its settings when a process starts, so the process is started again with them.
"""

import os
import signal
import sys

SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "500000000",
}


def keep_freed_memory() -> None:
    """Replace this process by the same command with ``SETTINGS``; do nothing where any of them is set, or off Linux.

    Only for the first line of a script. The settings in the environment also end the recursion.
    """
    if sys.platform == "linux" and not SETTINGS.keys() & os.environ.keys():
        # Until its ``stop_quietly``: Ctrl-C while Python starts is a traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | SETTINGS)
