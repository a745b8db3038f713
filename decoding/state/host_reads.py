"""Reads of the host that do not stop the device."""

from __future__ import annotations

import torch
from torch import Tensor


def host_waits(device: torch.device) -> bool:
    """Whether reading a value makes the host wait until the device has finished all its work."""
    return device.type != "cpu"


class LateRead:
    """Values on their way to the host while the device works on."""

    def __init__(self, values: Tensor):
        self.value, self.copied = values, None
        if host_waits(values.device):
            self.value = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
            self.value.copy_(values, non_blocking=True)
        if values.is_cuda:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def arrived(self) -> Tensor:
        """The values, in the memory of the host, after the copy has ended; what was launched since goes on."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.value


def read_now(values: Tensor) -> list:
    """The values [n], for which the host waits: one small copy to pinned memory, not what was launched later."""
    return LateRead(values).arrived().tolist()


def send(values: list[int], device: torch.device) -> Tensor:
    """Numbers [n] on the device, for which nobody waits."""
    sent = torch.tensor(values)
    return (sent.pin_memory() if device.type == "cuda" else sent).to(device, non_blocking=True)
