"""Joules of a GPU, by the counter in its driver: no sampling of watts, and nothing is missed between two samples."""

from __future__ import annotations

from collections.abc import Callable

import torch


def counter(device: torch.device | str) -> Callable[[], float] | None:
    """A function that reads the joules spent by the whole of ``device`` so far; None where they are not counted.

    They are counted by NVIDIA GPUs since Volta, in steps of some 20 to 100 ms, and read through ``nvidia-ml-py``.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # Not by index: CUDA_VISIBLE_DEVICES renumbers devices for torch and not for the driver.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
