"""A simulated device: its tensors claim to be on CUDA, compute on the CPU, and refuse what CUDA refuses.

Mixing a CPU tensor with one of the device, or reading its memory, raises an error; waits of the host for a value are
counted. Graphs are simulated by ``tape``; kernels and streams are not.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "item", "equal", "_unique2", "bincount")
MOVES = ("_to_copy", "to", "copy_")
NUMBERS = ("fill_", "index_put_", "scaled_dot_product_attention")

with torch.device(
    "cpu"
):  # torch lists once what makes tensors: later the list would hold the ``torch.tensor`` of a test,
    torch.empty(0)  # and models that transformers loads after it would have rotary frequencies of unset memory


class There(torch.Tensor):
    """A tensor that claims to be on the device. What passes the dispatcher goes to ``record``, which a tape sets."""

    record = None

    @staticmethod
    def __new__(cls, inner):
        like = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=DEVICE, **like)

    def __init__(self, inner):
        self.data_here = inner

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:  # or it would look for kernels of CUDA
            return (cls.record or dispatch)(func, args, kwargs or {})
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})

    def numpy(self, **options):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def tolist(self):
        Elsewhere.waits += 1
        return self.data_here.tolist()


class Elsewhere(TorchDispatchMode):
    """While active, tensors made on the device are ``There``; ``waits`` counts how often the host waited for it."""

    waits, active = 0, False

    def __enter__(self):
        self.tensor = torch.tensor  # its data goes past all modes
        torch.tensor = lambda *args, device="cpu", **options: self.tensor(*args, **options).to(device)
        Elsewhere.active = True
        return super().__enter__()

    def __exit__(self, *args):
        torch.tensor, Elsewhere.active = self.tensor, False
        return super().__exit__(*args)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def dispatch(func, args, kwargs):
    name = getattr(func, "overloadpacket", func).__name__
    parts = tree_flatten((args, kwargs))[0]
    tensors, asked = ([x for x in parts if isinstance(x, kind)] for kind in (torch.Tensor, torch.device))
    there = any(isinstance(x, There) for x in tensors)
    Elsewhere.waits += waits(func, args, kwargs)
    # A number that the host holds may be part of what is done to each element, and is read at once.
    held = torch.Tag.pointwise in getattr(func, "tags", ()) or name in NUMBERS
    if there and name not in MOVES and any(x.dim() or not held for x in tensors if not isinstance(x, There)):
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {DEVICE} and cpu")
    own = {id(x.data_here): x for x in tensors if isinstance(x, There)}

    def inner(x):
        return torch.device("cpu") if isinstance(x, torch.device) else x.data_here if isinstance(x, There) else x

    def outer(x):
        if not isinstance(x, torch.Tensor) or not (asked[0].type == DEVICE.type if asked else there):
            return x
        return own[id(x)] if id(x) in own else There(x)

    with _disable_current_modes():
        out = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    return args[0] if name == "copy_" else tree_map(outer, out)


def waits(func, args, kwargs) -> bool:
    """Whether the host waits for the device: for a value, for a shape that depends on values, or for a copy."""
    name = getattr(func, "overloadpacket", func).__name__
    parts = tree_flatten((args, kwargs))[0]
    tensors = [x for x in parts if isinstance(x, torch.Tensor)]
    there = [isinstance(x, There) for x in tensors]
    if Elsewhere.active and not any(there) and not any(x == DEVICE for x in parts if isinstance(x, torch.device)):
        return False
    if name in MOVES and Elsewhere.active:
        asked = [x.type for x in parts if isinstance(x, torch.device)]
        late = kwargs.get("non_blocking", False) or (name == "copy_" and True in args[2:])
        return not late and (not all(there) or "cpu" in asked)
    masks = name in ("index", "index_put_", "index_put") and args[1]
    return name in WAITS or any(x is not None and x.dtype == torch.bool for x in masks or ())


def move(model):
    """Put the weights of a model on the device."""
    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            for name, value in kept.items():
                if value is not None:
                    moved = There(value.detach())
                    kept[name] = torch.nn.Parameter(moved, requires_grad=False) if kept is module._parameters else moved
    return model
