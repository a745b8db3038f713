"""Energy by the counter of an NVIDIA GPU, all users together; it moves every 0.1 s or so: sum many measurements."""

from __future__ import annotations

import ctypes

import torch


class EnergyMeter:
    """``with EnergyMeter(device) as meter: ...``, then ``meter.joules``: None where nothing counts them."""

    joules: float | None = None

    def __init__(self, device):
        self.read = _counter(device) if device.type == "cuda" else lambda: None

    def __enter__(self) -> EnergyMeter:
        self.began = self.read()
        return self

    def __exit__(self, *error) -> None:
        ended = self.read()
        if self.began is not None and ended is not None:
            self.joules = (ended - self.began) / 1e3


def _counter(device):
    """A function that returns millijoules since the driver was loaded, or None."""
    handle, total = ctypes.c_void_p(), ctypes.c_ulonglong()
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
            return lambda: None
        read = nvml.nvmlDeviceGetTotalEnergyConsumption
    except (OSError, AttributeError):
        return lambda: None
    return lambda: None if read(handle, ctypes.byref(total)) else total.value
