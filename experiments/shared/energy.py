"""Joules of a GPU by its driver's counter, which misses nothing, unlike samples of its power."""

from collections.abc import Callable

import torch


def counter(device: torch.device | str) -> Callable[[], float] | None:
    """A function that reads the joules that ``device`` has spent so far; None where they are not counted.

    NVIDIA GPUs count them since Volta, in steps of 20 to 100 ms; they are read through ``nvidia-ml-py``.
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
        # Not by index: CUDA_VISIBLE_DEVICES renumbers devices for torch, not for the driver.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
