"""Model files of any format: ONNX by our own reader, others (TFLite, Keras, ...) by tvmc's importers.

tvmc's errors are put into a line with the cure, and what it would do wrong without a word is refused: it
fills the weights that a Relay text lacks with random numbers, and it loads a TensorFlow whose LLVM and
TVM's abort the process.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping, Sequence

from ..errors import LoadError, last_line
from ..network.graph import Graph
from ..readers import onnx_float
from ..readers.onnx_file import stem
from . import tvmc
from .framework import relay, tvm
from .layout import as_nchw
from .read import from_relay

#: (format, what its importer's error says, what to do)
CURES = (
    ("pytorch", "PytorchStreamReader|constants.pkl",
     "it takes TorchScript, as torch.jit.trace(model, example).save(FILE) writes it, not a state_dict"),
    ("keras", "batch_shape|Unrecognized keyword",
     "Keras 3 wrote it, which TVM's importer does not know; save it with Keras 2, or as ONNX with tf2onnx"),
    ("tflite", "not a constant scalar", "it is quantized; quantize takes float models"),
    ("relay", "version information", "it takes what module.astext() returns, with its #[version]"),
)  # fmt: skip


def load_model(
    path: str | os.PathLike,
    model_format: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
) -> Graph:
    """A model file in one of tvmc's formats as a `Graph`; ONNX, too, by our own reader.

    model_format: a name of tvmc's (onnx, tflite, pytorch, keras, pb, paddle, relay); by default the file's
    ending decides. input_shapes, batch: see `onnx_float.load`; other formats take input_shapes only.
    Raises LoadError.
    """
    kind = tvmc.frontend(path, model_format)
    if kind in (None, "onnx"):
        return onnx_float.load(path, input_shapes, batch)
    return from_relay(load(path, kind, input_shapes), name=stem(path))


def load(path: str | os.PathLike, kind: str, input_shapes: Mapping[str, Sequence[int]] | None = None):
    """The float Relay module (NCHW, weights bound) of a model file in tvmc's format ``kind``.

    Raises LoadError.
    """
    name = os.path.basename(os.fspath(path))
    if not os.path.exists(path):
        raise LoadError(f"there is no file {os.fspath(path)}")
    shapes = {key: [int(d) for d in shape] for key, shape in (input_shapes or {}).items()} or None
    if kind in ("keras", "pb"):
        check_tensorflow(name)
    if kind == "relay" and shapes is None:
        raise LoadError(f"{name}: a Relay text needs --input-shapes, which tells inputs from weights")
    try:
        module, params = tvmc.load(path, kind, shapes)
    except LoadError:
        raise
    except Exception as error:  # noqa: BLE001  # every framework's importer raises its own
        cure = next((c for k, says, c in CURES if k == kind and re.search(says, str(error))), None)
        raise LoadError(f"tvmc cannot load {name} as {kind}: {cure or last_line(error)}") from None
    if kind == "relay" and params:
        lacking = ", ".join(sorted(params)[:3])
        raise LoadError(
            f"{name} lacks its weights ({lacking}, ...): bind them with "
            "relay.build_module.bind_params_by_name before astext()"
        )
    bound = relay.build_module.bind_params_by_name(module["main"], params)
    return as_nchw(tvm.IRModule.from_expr(bound))


def check_tensorflow(name: str) -> None:
    """LoadError if the installed TensorFlow is one that aborts a process that has loaded this TVM."""
    for package in ("tensorflow", "tensorflow-cpu"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) > (2, 15):
            raise LoadError(
                f"{name}: TensorFlow {version} cannot be loaded beside TVM 0.19, which knows Keras 2; "
                "install tensorflow-cpu 2.15, or export the model to ONNX with tf2onnx"
            )
