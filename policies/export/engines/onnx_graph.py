"""Target ``onnx``: a graph from features to score and decision, compared with the policy when it is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from policies.export.portable import document, dumps
from policies.export.source import ExportError, Source
from policies.export.target import Files, Target

OPSET, IR = 17, 8
TOLERANCE = 1e-6
EXTREMES = (np.inf, -np.inf, np.nan, 1e30, -1e30, 1e-30, 0.0)
NEEDS = "the onnx target needs onnx and onnxruntime; run: pip install 'two-model-decoding[onnx]'"


def write(source: Source) -> Files:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ExportError(NEEDS) from error
    found = document(source)
    data = _model(onnx, found).SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    check_parity(source, session)
    return {"policy.onnx": data, "policy.json": found}


def check_parity(source: Source, session) -> None:
    """ExportError if the graph's score is not the policy's on 2000 random and extreme rows."""
    table, hidden = rows(source.policy, 2000)
    expected = source.policy.score_table(table, None if hidden is None else torch.from_numpy(hidden)).numpy()
    feed = {"features": table} | ({} if hidden is None else {"hidden": hidden})
    got = session.run(["score"], feed)[0]
    if not np.allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        raise ExportError("the ONNX graph does not give this policy's score, so it was not written; use --to json")


def rows(policy, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 features [count, f], a third of the rows with an extreme value; and hidden states, None if not read."""
    draw = np.random.default_rng(seed)
    table = draw.normal(scale=3.0, size=(count, len(policy.names))).astype(np.float32)
    if len(policy.names):
        for row in range(0, count, 3):
            table[row, draw.integers(len(policy.names))] = draw.choice(EXTREMES)
    hidden = draw.normal(size=(count, policy.hidden_width_)).astype(np.float32) if policy.needs_hidden else None
    return table, hidden


class _Graph:
    """The nodes and constants added so far; each method returns the name of its output."""

    def __init__(self, onnx):
        self.onnx, self.nodes, self.constants = onnx, [], []

    def constant(self, value, dtype=np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes) -> str:
        name = f"n{len(self.nodes)}" if output is None else output
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), [name], **attributes))
        return name


def _model(onnx, found: dict[str, Any]):
    helper, kinds, graph = onnx.helper, onnx.TensorProto, _Graph(onnx)
    _risk(graph, found["score"])
    below = graph.add("Less", "score", graph.constant(found["threshold"]))
    graph.add("Not", below, output="escalate")  # not "score >= threshold", which is False for NaN
    inputs = [helper.make_tensor_value_info("features", kinds.FLOAT, ["rows", len(found["features"])])]
    width = found["score"].get("hidden_width", 0)
    if width:
        inputs.append(helper.make_tensor_value_info("hidden", kinds.FLOAT, ["rows", width]))
    outputs = [
        helper.make_tensor_value_info("score", kinds.FLOAT, ["rows"]),
        helper.make_tensor_value_info("escalate", kinds.BOOL, ["rows"]),
    ]
    body = helper.make_graph(graph.nodes, "policy", inputs, outputs, graph.constants)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    helper.set_model_props(model, {"provenance": dumps(found["provenance"]).decode()})
    onnx.checker.check_model(model)
    return model


def _risk(graph: _Graph, program: dict[str, Any]) -> None:
    if program["type"] == "network":
        return _network(graph, program)
    if program["type"] == "periodic":
        column = graph.add("Squeeze", "features", graph.constant([1], np.int64))
        remainder = graph.add("Mod", column, graph.constant(program["every"]), fmod=1)
        zero = graph.add("Equal", remainder, graph.constant(0.0))
        graph.add("Cast", zero, to=1, output="score")
        return None
    rows_ = graph.add("Gather", graph.add("Shape", "features"), graph.constant([0], np.int64), axis=0)
    risk = np.float32(np.inf if program["escalate"] else -np.inf)
    value = graph.onnx.numpy_helper.from_array(np.array([risk], dtype=np.float32))
    graph.add("ConstantOfShape", rows_, value=value, output="score")
    return None


def _network(graph: _Graph, program: dict[str, Any]) -> None:
    centred = graph.add("Sub", "features", graph.constant(program["mean"]))
    z = graph.add("Div", centred, graph.constant(program["scale"]))
    unknown = graph.add("And", graph.constant(program["impute"], bool), graph.add("IsNaN", z))
    z = graph.add("Where", unknown, graph.constant(0.0), z)
    if program["hidden_width"]:
        z = graph.add("Concat", z, _normalised(graph), axis=-1)
    *inner, last = program["layers"]
    for layer in inner:
        z = _linear(graph, layer, z)
        z = graph.add("Mul", z, graph.add("Sigmoid", z))
    risk = graph.add("Squeeze", _linear(graph, last, z), graph.constant([1], np.int64))
    graph.add("Sigmoid" if program["output"] == "sigmoid" else "Identity", risk, output="score")


def _linear(graph: _Graph, layer: dict[str, Any], z: str) -> str:
    product = graph.add("MatMul", z, graph.constant(np.float32(layer["weight"]).T))
    return graph.add("Add", product, graph.constant(layer["bias"]))


def _normalised(graph: _Graph) -> str:
    centred = graph.add("Sub", "hidden", graph.add("ReduceMean", "hidden", axes=[-1], keepdims=1))
    variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[-1], keepdims=1)
    return graph.add("Div", centred, graph.add("Sqrt", graph.add("Add", variance, graph.constant(1e-5))))


TARGET = Target(
    name="onnx",
    summary="policy.onnx: features to risk and decision, for ONNX Runtime in any language",
    write=write,
    carries="every policy (the caller computes the features)",
    engines={"onnxruntime": ("1.20", "2")},
)
