"""Energy that an NVIDIA GPU has used, from the counter of its driver."""

from __future__ import annotations

import ctypes


class EnergyMeter:
    """``with EnergyMeter(device) as meter: ...``, then ``meter.joules``: None where no device or driver counts them.

    The counter is the whole GPU's, whoever uses it, and moves about every 0.1 s: sum many short measurements.
    """

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
    import torch

    handle, total = ctypes.c_void_p(), ctypes.c_ulonglong()
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        known = nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) == 0
    except (OSError, AttributeError):
        known = False
    read = lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(total))  # noqa: E731
    return lambda: total.value if known and read() == 0 else None
