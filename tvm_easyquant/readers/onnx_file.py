"""An ONNX file as it is on disk: read it, check it, fix its input shapes. No TVM here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import LoadError, last_line

OLDEST_OPSET = 7  # before it, broadcasting was an attribute


def read_onnx(model) -> tuple[Any, str]:
    """The ``onnx.ModelProto`` of a path (or the one given) and its name; LoadError if it cannot be read."""
    import onnx

    name = "model"
    if not isinstance(model, onnx.ModelProto):
        name = os.path.basename(os.fspath(model))
        try:
            model = onnx.load(os.fspath(model))
            known = model.graph.node and model.opset_import
        except FileNotFoundError:
            raise LoadError(f"there is no file {os.fspath(model)}") from None
        except onnx.checker.ValidationError as error:  # external data
            raise LoadError(f"the weights of {name} cannot be read: {last_line(error)}") from None
        except Exception as error:  # noqa: BLE001  # protobuf has several of its own
            raise LoadError(f"{name} is not an ONNX file, or a damaged one ({last_line(error)})") from None
        if not known:
            raise LoadError(f"{name} is not an ONNX file (it holds no graph)")
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and not OLDEST_OPSET <= opset.version <= newest:
            raise LoadError(
                f"{name} has opset {opset.version}; {OLDEST_OPSET} to {newest} can be read: export it with "
                "opset 17, or convert it with onnx.version_converter"
            )
    return model, name


def check_onnx(path: str | os.PathLike, fixed: bool = False) -> None:
    """LoadError if the file is no readable ONNX model, or, unless ``fixed``, has a dynamic shape."""
    model, name = read_onnx(path)
    if not fixed:
        fixed_shapes(model, {}, 1, name)


def fixed_shapes(
    model, given: Mapping[str, Sequence[int]], batch: int, name: str
) -> dict[str, Sequence[int]]:
    """The shape of every input of a ModelProto: {input name: NCHW shape}.

    given: those of inputs whose file leaves a dimension open; ``batch`` is used for an open first one.
    Raises LoadError naming an input that stays open, or that does not fit.
    """
    if batch < 1:
        raise LoadError(f"batch is {batch}; use 1 or more")
    given = dict(given)
    constants = {t.name for t in model.graph.initializer}
    shapes: dict[str, Sequence[int]] = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if value.name in given:
            shape = [int(d) for d in given.pop(value.name)]
            fixed = all(d in (0, s) for d, s in zip(dims[1:], shape[1:], strict=False))
            if (dims and len(dims) != len(shape)) or not fixed or min(shape, default=1) < 1:
                raise LoadError(
                    f"{name}: input {value.name} was given shape {tuple(shape)}, the model says "
                    f"{tuple(d or '?' for d in dims)}"
                )
        else:
            shape = [batch, *dims[1:]] if dims and dims[0] <= 0 else dims
            if not shape or any(d <= 0 for d in shape):
                raise LoadError(
                    f"{name}: input {value.name} has the dynamic shape "
                    f"{tuple(d or '?' for d in dims)}; fix it with input_shapes "
                    f"(--input-shapes on the command line), for example {value.name}:[1,3,224,224]"
                )
        shapes[value.name] = shape
    if given:
        raise LoadError(f"{name}: input_shapes names {sorted(given)}, its inputs are {sorted(shapes)}")
    if not shapes:
        raise LoadError(f"{name} has no input")
    return shapes


def why_not(model, error: BaseException) -> str:
    """Why an importer gave up on a ModelProto, in a line: a bare KeyError of its own says too little."""
    import onnx

    if isinstance(error, KeyError):
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError as found:
            return " ".join(str(found).split("==>")[0].split())
        except Exception:  # noqa: BLE001, S110  # the checker itself gave up
            pass
    kinds = {
        value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        for value in model.graph.input
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT
    }
    if kinds:
        which = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
        return f"input {which}; export the model with float32 inputs"
    return last_line(error)


def stem(model) -> str:
    """What a graph of a path (or of a ModelProto) is called."""
    if not isinstance(model, (str, os.PathLike)):
        return "model"
    return os.path.splitext(os.path.basename(os.fspath(model)))[0]
