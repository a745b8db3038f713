"""What a speed depends on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
import transformers


def machine(config) -> dict:
    """Processor, threads, libraries, and the device and dtype of ``config``."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), cpu
        )
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if config.device.startswith("cuda") else config.device,
        "dtype": config.dtype,
    }
