"""The machine and the libraries that a measured speed depends on."""

import torch
import transformers

from decoding.cost.cache import processor


def machine(config) -> dict:
    """Processor, threads, libraries, and the device and dtype of ``config``."""
    return {
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if config.device.startswith("cuda") else config.device,
        "dtype": config.dtype,
    }
