"""Every target by name: a new one is a file with a ``TARGET`` and a line here."""

from __future__ import annotations

from types import ModuleType

from policies.export import numpy_module, onnx_graph, portable_json, transformers_config, transformers_generate
from policies.export.target import Target

MODULES: tuple[ModuleType, ...] = (
    portable_json,
    numpy_module,
    onnx_graph,
    transformers_generate,
    transformers_config,
)
TARGETS: dict[str, Target] = {module.TARGET.name: module.TARGET for module in MODULES}
