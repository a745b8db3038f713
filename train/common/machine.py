"""The machine and the libraries that a measured speed depends on."""

from collections.abc import Sequence

import torch
import transformers

from decoding.cost.cache import processor


def machine(device: str, dtypes: Sequence[str]) -> dict:
    """Processor, threads, libraries, the device, and the dtypes of the models, cheapest first."""
    return {
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "dtype": " and ".join(dict.fromkeys(dtypes)),
    }
