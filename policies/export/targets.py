"""Every target by name: a new one is a file with a ``TARGET`` and a line here."""

from __future__ import annotations

from policies.export import numpy_module, onnx_graph, portable_json
from policies.export.target import Target

TARGETS: dict[str, Target] = {module.TARGET.name: module.TARGET for module in (portable_json, numpy_module, onnx_graph)}
