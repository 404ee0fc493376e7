"""Models that are not ONNX, through tvmc's own importers: TFLite, TorchScript, Keras, Relay, ...

tvmc's errors are put into a line with the cure, and what it would do wrong without a word is refused: it
fills the weights that a Relay text lacks with random numbers, and it loads a TensorFlow whose LLVM and
TVM's abort the process.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping, Sequence

from ..errors import LoadError
from .framework import relay, tvm

#: a convolution's layout that ours are in: data, weights
LAYOUTS = {"nn.conv2d": ["NCHW", "OIHW"], "nn.conv2d_transpose": ["NCHW", "IOHW"]}
#: (format, what its importer's error says, what to do)
CURES = (
    ("pytorch", "PytorchStreamReader|constants.pkl",
     "it takes TorchScript, as torch.jit.trace(model, example).save(FILE) writes it, not a state_dict"),
    ("keras", "batch_shape|Unrecognized keyword",
     "Keras 3 wrote it, which TVM's importer does not know; save it with Keras 2, or as ONNX with tf2onnx"),
    ("tflite", "not a constant scalar", "it is quantized; quantize takes float models"),
    ("relay", "version information", "it takes what module.astext() returns, with its #[version]"),
)  # fmt: skip


def load(path: str | os.PathLike, kind: str, input_shapes: Mapping[str, Sequence[int]] | None = None):
    """The float Relay module (NCHW, weights bound) of a model file in tvmc's format ``kind``.

    Raises LoadError.
    """
    from tvm.driver.tvmc import TVMCImportError, frontends

    name = os.path.basename(os.fspath(path))
    if not os.path.exists(path):
        raise LoadError(f"there is no file {os.fspath(path)}")
    shapes = {key: [int(d) for d in shape] for key, shape in (input_shapes or {}).items()} or None
    if kind in ("keras", "pb"):
        check_tensorflow(name)
    if kind == "relay" and shapes is None:
        raise LoadError(f"{name}: a Relay text needs --input-shapes, which tells inputs from weights")
    try:
        loaded = frontends.load_model(os.fspath(path), kind, shapes)
    except (ImportError, TVMCImportError) as error:
        package = (getattr(error, "name", None) or str(error)).split(".")[0]
        raise LoadError(f"{name}: the format {kind} needs the package {package}; install it") from None
    except Exception as error:  # every framework's importer raises its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[-1] if lines else type(error).__name__
        cure = next((c for k, says, c in CURES if k == kind and re.search(says, str(error))), None)
        raise LoadError(f"tvmc cannot load {name} as {kind}: {cure or text}") from None
    if kind == "relay" and loaded.params:
        lacking = ", ".join(sorted(loaded.params)[:3])
        raise LoadError(
            f"{name} lacks its weights ({lacking}, ...): bind them with "
            "relay.build_module.bind_params_by_name before astext()"
        )
    module = relay.build_module.bind_params_by_name(loaded.mod["main"], loaded.params or {})
    return as_nchw(tvm.IRModule.from_expr(module))


def as_nchw(module):
    """The module with its convolutions in NCHW."""
    passes = [relay.transform.InferType(), relay.transform.ConvertLayout(LAYOUTS)]
    with tvm.transform.PassContext(opt_level=3):
        return tvm.transform.Sequential(passes)(module)


def has_nhwc(module) -> bool:
    """Whether a convolution of the module is in another layout than NCHW."""
    found = []

    def visit(expr):
        if isinstance(expr, relay.Call) and str(getattr(expr.op, "name", "")) in LAYOUTS:
            found.append(str(expr.attrs.data_layout) != "NCHW")

    relay.analysis.post_order_visit(module["main"], visit)
    return any(found)


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
