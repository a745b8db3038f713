"""All layers of a forward of few tokens as one call: the list of their compiled steps, recorded once and run again.

In 4 bits a token of a 0.5B model is 14 ms of products. Starting its 220 steps one by one from Python took 5 ms more.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from decoding.kernels.integer_products import TILE, Step, integers_size, product_arguments, run_steps
from decoding.kernels.joined import Concatenation
from decoding.kernels.layer_operations import CompiledOperations, rotations
from decoding.kernels.quantized import IntegerLinear

TOKENS, PROGRAMS = 32, 16
"""Tokens, of all rows, up to which starting steps takes time that matters, and shapes whose programs are kept: each has
activations of its own, 5 MB for 32 tokens of a 1.5B model."""


def programmable(layers) -> bool:
    """True if all products of ``layers`` are of integers, in whole tiles."""
    parts = [part for layer in layers for name in ("qkv", "out", "gate_up", "down") for part in _parts(layer, name)]
    return all(isinstance(p, IntegerLinear) and p.restore is None and p.out_features % TILE == 0 for p in parts)


def _parts(layer, name: str) -> list[nn.Module]:
    module = getattr(layer, name)
    return list(module.products) if isinstance(module, Concatenation) else [module]


class LayerPrograms:
    """The programs of one ``FusedForward``, by shape; one runs at a time, under ``lock``, until its result is used."""

    def __init__(self, fused):
        self.fused, self.lock = fused, threading.Lock()
        self.programs: OrderedDict[tuple[int, int], Program] = OrderedDict()

    def run(self, cache, x: Tensor) -> Tensor:
        """The residual stream [r, q, n] after all layers, which the next run overwrites."""
        shape = tuple(x.shape[:2])
        if shape not in self.programs:
            with torch.inference_mode(False), torch.no_grad():  # its activations outlive the generation
                self.programs[shape] = Program(self.fused, cache, x)
            if len(self.programs) > PROGRAMS:
                self.programs.popitem(last=False)
        self.programs.move_to_end(shape)
        return self.programs[shape](cache, x)


class Program(CompiledOperations):
    """Operations that are written down in place of being done; a call does them all, for any cache and text."""

    def __init__(self, fused, cache, x: Tensor):
        super().__init__(fused, cache.plan, x.clone())
        self.steps: list[Callable[[], Step]] = []
        """made when the tables are: their addresses are in the steps; they keep the arguments of products alive"""
        self.noted: defaultdict = defaultdict(list)
        """arguments by kernel, in the order of the steps"""
        self.buffers: dict[tuple, Tensor] = {}
        fused.through_layers(self, cache)
        kernels = self.kernels
        self.tables = {kernel: np.array(rows, dtype=np.int64) for kernel, rows in self.noted.items()}
        self.place, self.attend = self.tables[kernels.place], self.tables[kernels.attend]
        self.list = (Step * len(self.steps))(*(make() for make in self.steps))
        self.windows = [layer.window for layer in fused.layers]
        self.layer_ropes = [layer.rope for layer in fused.layers]

    def __call__(self, cache, x: Tensor) -> Tensor:
        plan, threads = cache.plan, torch.get_num_threads()
        self.plan, self.queries, self.masks = plan, plan.positions.queries.contiguous(), {}
        self.x.copy_(x)
        turns = {rope: rotations(self.queries, *self.fused.ropes[rope]) for rope in {*self.layer_ropes} - {None}}
        masks = {} if plan.positions.keys is None else {window: self._mask(window) for window in {*self.windows}}
        scratch = self.x.new_empty(self.kernels.SCRATCH * threads * plan.reach)
        addresses = np.array([[store.data_ptr() for store in self._stores(layer)] for layer in cache.layers])
        # Columns as ``layer_kernels.place`` and ``attend`` read them.
        self.place[:, 1], self.place[:, 2:4] = plan.slots.data_ptr(), addresses
        self.place[:, 4] = [0 if rope is None else turns[rope].data_ptr() for rope in self.layer_ropes]
        self.attend[:, 1:3] = addresses
        self.attend[:, 4], self.attend[:, 5] = scratch.data_ptr(), self.queries.data_ptr()
        self.attend[:, 6] = 0 if plan.rows is None else plan.rows.data_ptr()
        self.attend[:, 7] = [masks[window].data_ptr() for window in self.windows] if masks else 0
        self.attend[:, 13], self.attend[:, 14] = cache.layers[0].keys.shape[1], plan.reach
        run_steps(self.list, threads)
        return self.x

    def product(self, layer: nn.Module, x: Tensor) -> Tensor:
        parts = list(layer.products) if isinstance(layer, Concatenation) else [layer]
        y, begin = self.empty("product", *x.shape[:-1], sum(part.out_features for part in parts)), 0
        for part in parts:
            integers = self.empty("integers", integers_size(self.tokens, part.in_features))
            arguments = product_arguments(x, part.matrix, part.shift, integers, y, begin)
            self.steps.append(partial(Step.of_product, part.matrix.bits, arguments))
            begin += part.out_features
        return y

    def empty(self, role: str, *shape: int) -> Tensor:
        """One for each role and shape: a layer has read it before the next one writes."""
        if (role, shape) not in self.buffers:
            self.buffers[role, shape] = torch.empty(shape)
        return self.buffers[role, shape]

    def run(self, kernel, *arguments: int) -> None:
        self._note(kernel, arguments, parallel=False)

    def run_parallel(self, kernel, *arguments: int) -> None:
        self._note(kernel, arguments, parallel=True)

    def _note(self, kernel, arguments: tuple, parallel: bool) -> None:
        row = len(self.noted[kernel])
        self.steps.append(lambda: Step.of_kernel(kernel.address, self.tables[kernel][row:].ctypes.data, parallel))
        self.noted[kernel].append(arguments)

    def _stores(self, layer) -> tuple[Tensor, Tensor]:
        like = self.x.new_empty(self.x.shape[0], self.fused.groups, 1, self.fused.width)
        return layer.stores(like, like)
