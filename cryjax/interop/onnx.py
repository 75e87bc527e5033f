"""ONNX export: the same network built node by node, front end included.

It is not converted from JAX's trace, which targets XLA. Batch norm is folded into the convolutions
before it, and the Fourier transform is a convolution with the windowed cosines and sines, so that
the file has only a few kinds of node, for which every runtime has fast kernels.
"""

import math
import os
import pathlib
from typing import Any

import numpy as np

from cryjax.audio import frontend
from cryjax.command.errors import UserError
from cryjax.interop import weights
from cryjax.interop.model import Description, Function, Source
from cryjax.models import ENCODERS
from cryjax.models.norm import EPSILON

OPSET = 17
_KEY = "cryjax"  # metadata key of the description


def _packages() -> Any:
    # Or onnxruntime 1.29 and later report their use to Microsoft; read when it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f'ONNX needs {error.name}: pip install "cryjax[export]"') from error
    return onnx, onnxruntime


class _Graph:
    """Nodes and constants, in order."""

    def __init__(self, kind: str):
        self._onnx, _ = _packages()
        self._kind = kind
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node; returns its output's name."""
        output = output or f"{op.lower()}{len(self.nodes)}"
        node = self._onnx.helper.make_node(op, inputs, [output], **attributes)
        self.nodes.append(node)
        return output

    def constant(self, value: Any) -> str:
        """Adds a constant as it is."""
        name = f"constant{len(self.constants)}"
        tensor = self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.constants.append(tensor)
        return name

    def floats(self, value: Any) -> str:
        return self.constant(np.asarray(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def kernel(self, value: np.ndarray, axis: int) -> str:
        """Adds a constant, stored as the file's weights are, its outputs along `axis`.

        A runtime restores it once, when it loads the file.
        """
        stored = weights.store(np.asarray(value, np.float32), self._kind, axis)
        if isinstance(stored, weights.Int8):
            whole = self.add("Cast", self.constant(stored.values), to=1)
            return self.add("Mul", whole, self.constant(stored.scale))
        if stored.dtype == np.float16:
            return self.add("Cast", self.constant(stored), to=1)
        return self.constant(stored)


def _affine(norm: dict[str, Any], stats: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Batch norm in eval mode as scale and offset, in float64."""
    norm, stats = ({k: np.asarray(v, np.float64) for k, v in x.items()} for x in (norm, stats))
    scale = norm["scale"] / np.sqrt(stats["var"] + EPSILON)
    return scale, norm["bias"] - stats["mean"] * scale


def _filled(graph: _Graph, waveform: str, description: Description) -> str:
    """[batch, samples] of at least `least_samples`: shorter ones are repeated to fill a window.

    As in cryjax. With fewer, nothing would be left to pool, which crashes some runtimes.
    """
    size = graph.add("Gather", graph.add("Shape", waveform), graph.integers(1))
    short = graph.add("Less", size, graph.integers(description.least_samples))
    window = max(description.window_samples, description.least_samples)
    wanted = graph.add("Where", short, graph.integers(window), size)
    one = graph.integers(1)
    some = graph.add("Max", size, one)  # avoids a division by zero samples
    rounds = graph.add("Div", graph.add("Sub", graph.add("Add", wanted, some), one), some)
    tiled = graph.add("Tile", waveform, graph.add("Concat", one, rounds, axis=0))
    return graph.add("Slice", tiled, graph.integers(0), wanted, one)


def _log_mel(graph: _Graph, waveform: str, settings: frontend.FrontEnd) -> str:
    """[batch, samples] -> [batch, mels, frames], same as `frontend.log_mel`."""
    before, after = settings.ends
    margin = graph.integers(0, before, 0, after)
    padded = graph.add("Pad", waveform, margin, mode=settings.padding)
    padded = graph.add("Unsqueeze", padded, graph.integers(1))
    basis = frontend.windowed_fourier_basis(settings).T[:, None]
    parts = graph.add("Conv", padded, graph.floats(basis), strides=[settings.hop_length])
    squares = graph.add("Mul", parts, parts)
    bins = len(basis) // 2
    real = graph.add("Slice", squares, *map(graph.integers, (0, bins, 1)))
    imaginary = graph.add("Slice", squares, *map(graph.integers, (bins, 2 * bins, 1)))
    power = graph.add("Add", real, imaginary)
    mel = graph.add("MatMul", graph.floats(frontend.mel_filters(settings).T), power)
    logarithm = graph.add("Log", graph.add("Max", mel, graph.floats(frontend.LEAST_POWER)))
    decibels = graph.add("Mul", logarithm, graph.floats(10.0 / math.log(10.0)))
    if settings.normalise == "none":
        return decibels
    return graph.add("Sub", decibels, graph.add("ReduceMean", decibels, axes=[2], keepdims=1))


def _embedding(graph: _Graph, log_mel: str, source: Source) -> str:
    """[batch, mels, frames] -> 'embedding' [batch, features], same as `models.encoders.Encoder`."""
    params = source.variables["encoder"]["params"]
    stats = source.variables["encoder"]["batch_stats"]
    _, layers, size, pooled, _ = ENCODERS[source.description.encoder]
    scale, offset = _affine(params["norm0"], stats["norm0"])
    x = graph.add("Mul", log_mel, graph.floats(scale[:, None]))
    x = graph.add("Add", x, graph.floats(offset[:, None]))
    x = graph.add("Transpose", x, perm=[0, 2, 1])
    x = graph.add("Unsqueeze", x, graph.integers(1))
    width = source.description.front_end.mels
    block = 1
    while f"block{block}" in params:
        weight, stat = params[f"block{block}"], stats[f"block{block}"]
        for layer in range(1, layers + 1):
            scale, offset = _affine(weight[f"norm{layer}"], stat[f"norm{layer}"])
            kernel = np.asarray(weight[f"conv{layer}"]["kernel"], np.float64) * scale
            stored = graph.kernel(kernel.transpose(3, 2, 0, 1), axis=0)
            x = graph.add("Conv", x, stored, graph.floats(offset), pads=4 * [size // 2])
            x = graph.add("Relu", x)
        if block <= pooled:
            shape = [2, min(2, width)]
            x = graph.add("AveragePool", x, kernel_shape=shape, strides=shape)
            width //= shape[1]
        block += 1
    x = graph.add("ReduceMean", x, axes=[3], keepdims=0)
    most = graph.add("ReduceMax", x, axes=[2], keepdims=0)
    x = graph.add("Add", most, graph.add("ReduceMean", x, axes=[2], keepdims=0))
    return graph.add("Relu", _dense(graph, x, params["dense"]), output="embedding")


def _dense(graph: _Graph, x: str, layer: dict[str, Any]) -> str:
    return graph.add("Gemm", x, graph.kernel(layer["kernel"], -1), graph.floats(layer["bias"]))


def write(source: Source, path: pathlib.Path, kind: str) -> None:
    """Writes a model and checks it with onnx.

    Args:
      source: the model.
      path: of the file to write.
      kind: of the weights, one of `weights.KINDS`.
    """
    onnx, _ = _packages()
    description, graph = source.description, _Graph(kind)
    waveform = _filled(graph, "waveform", description)
    embedding = _embedding(graph, _log_mel(graph, waveform, description.front_end), source)
    outputs = [("embedding", description.features)]
    if description.labels:
        logits = _dense(graph, embedding, source.variables["head"]["params"]["classifier"])
        graph.add("Sigmoid" if description.multi_label else "Softmax", logits,
                  output="probabilities")  # fmt: skip
        outputs.append(("probabilities", len(description.labels)))

    def tensor(name: str, *shape: str | int) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "cryjax",
            [tensor("waveform", "batch", "samples")],
            [tensor(name, "batch", width) for name, width in outputs],
            graph.constants,
        ),
        producer_name="cryjax",
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=8,  # as old as the opset, so that older runtimes accept it
    )
    onnx.helper.set_model_props(model, {_KEY: description.to_json()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def open_file(path: pathlib.Path) -> tuple[Description, Function]:
    """The description and function of a file. Raises UserError if it is not an export."""
    _, onnxruntime = _packages()
    try:
        # Others compute in fewer digits by default: several decibels in a quiet band.
        session = onnxruntime.InferenceSession(
            path.read_bytes(), providers=["CPUExecutionProvider"]
        )
        properties = session.get_modelmeta().custom_metadata_map
        description = Description.from_json(properties[_KEY])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # onnxruntime's errors share no base class
        raise UserError(
            f"{path}: not an ONNX file from python -m cryjax.export ({type(error).__name__})"
        ) from error
    names = list(description.output_names)
    return description, lambda x: dict(zip(names, session.run(names, {"waveform": x}), strict=True))


# Runs the file in a fresh process that has only onnxruntime and numpy.
CHECK = """
import os, sys, numpy as np
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
outputs = [output.name for output in session.get_outputs()]
inputs = np.load(sys.argv[2])
found = {}
for name in inputs.files:
    for output, value in zip(outputs, session.run(outputs, {"waveform": inputs[name]})):
        found[name + "/" + output] = value
np.savez(sys.argv[3], **found)
"""
