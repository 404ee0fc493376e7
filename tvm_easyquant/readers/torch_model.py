"""torch -> ONNX, by torch's own exporters: a ``torch.nn.Module``, or an ``ExportedProgram``.

Of files (``.pt``, ``.pth``, ``.pt2``) TorchScript and exported programs are opened; pickled modules, which
are code, and mere weights are refused.

A module is traced (``dynamo=False``): its ONNX nodes are named by its submodules, and nothing but torch is
needed. What cannot be traced, and an ``ExportedProgram``, goes through ``torch.export``, for which torch
wants onnxscript. What was read is compared with torch itself on the first sample.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import io
import linecache
import os
import pickle
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ..errors import LoadError, last_line
from ..samples.loader import Arrays, arrays, holds_tensors
from ..scales.calibrate import items

#: of files that torch writes
ENDINGS = (".pt", ".pth", ".pt2")
#: the first with a layer normalization; of what torch.export makes
OPSET, EXPORTED = 17, 18
ONNXSCRIPT = "pip install onnxscript"
NO_NETWORK = "no network: make the torch.nn.Module, load_state_dict, and give that"
WEIGHTS = f"weights only (a state_dict), {NO_NETWORK}"


def is_torch(model: object) -> bool:
    """Whether it is a network of torch's; who has none has not imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and (isinstance(model, torch.nn.Module) or _is_exported(model))


def _is_exported(model) -> bool:
    return type(model).__name__ == "ExportedProgram"


def _is_script(model) -> bool:
    torch = sys.modules["torch"]
    return isinstance(model, torch.jit.ScriptModule)


def opened(model: object, model_format: str | None, host_reads: Callable[[], bool]) -> Any:
    """The network of torch's in a file; what is no file of torch's, or is the host's to read, as it is.

    model_format: of `workflow.load`; host_reads: whether the host has an importer of TorchScript, which
    then reads all but exported programs. Raises LoadError, and never unpickles.
    """
    if isinstance(model, Mapping):
        raise LoadError(f"the model holds {WEIGHTS}")
    if isinstance(model, type) and hasattr(model, "state_dict"):
        raise LoadError(
            f"the model is the class {model.__name__}: give a torch.nn.Module that is made of it"
        )
    if is_torch(model):
        return getattr(model, "_orig_mod", model)  # what torch.compile was given
    if not isinstance(model, (str, os.PathLike)) or model_format not in (None, "pytorch"):
        return model
    path = os.fspath(model)
    if (model_format is None and not path.lower().endswith(ENDINGS)) or not os.path.exists(path):
        return model
    kind = _kind(path)
    if kind != "exported" and host_reads():
        return model
    try:
        import torch
    except ImportError:
        raise LoadError(f"{path} is torch's, without which it cannot be read: pip install torch") from None
    try:
        if kind == "exported":
            return torch.export.load(path)
        if kind == "script":
            return torch.jit.load(path, map_location="cpu")
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise LoadError(
            f"{path} is a pickled torch.nn.Module, which is code and is not run here: give the module "
            "itself, or save torch.export.export(module, example) by torch.export.save"
        ) from None
    except Exception as error:  # torch raises types of its own
        raise LoadError(f"torch cannot read {path} ({last_line(error)})") from error
    held = WEIGHTS if isinstance(weights, Mapping) else f"a {type(weights).__name__}, {NO_NETWORK}"
    raise LoadError(f"{path} holds {held}")


def _kind(path: str) -> str:
    """What torch wrote into a file: "script", "exported", or "pickled"."""
    try:
        with zipfile.ZipFile(path) as file:
            names = [name.partition("/")[2] or name for name in file.namelist()]
    except (zipfile.BadZipFile, OSError):
        return "pickled"
    if any(name in ("models/model.json", "serialized_exported_program.json") for name in names):
        return "exported"
    return "script" if "constants.pkl" in names and any(n.startswith("code/") for n in names) else "pickled"


def inputs_of(model) -> list[str]:
    """Their names: of the parameters of ``forward``, or of an exported program."""
    if _is_exported(model):
        return list(model.graph_signature.user_inputs)
    if _is_script(model):
        return [argument.name for argument in model.forward.schema.arguments[1:]]
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not names:
        raise LoadError(
            f"the forward of {type(model).__name__} names no input: give a torch.nn.Module whose does, "
            "such as the one that this calls"
        )
    return names


def seen(
    model, data, input_shapes: Mapping[str, Sequence[int]] | None, batch: int | None
) -> tuple[Any, dict[str, Sequence[int]]]:
    """(calibration data, in which torch's tensors are arrays, the shapes of the inputs by its first item).

    data: as `calibrate.samples` takes it, but each item has an axis of samples in front, of which ``batch``
    (None: 1) are an input's.
    """
    left = items(data)
    first = next(left, None)
    if first is None:
        return data, dict(input_shapes or {})
    found, names = arrays(first), inputs_of(model)
    by_name = found[0] if isinstance(found, list) and found else found
    if not isinstance(by_name, Mapping):
        by_name = {names[0]: by_name}
    shapes = {name: (batch or 1, *np.shape(array)[1:]) for name, array in by_name.items()}
    if isinstance(data, Iterator) or hasattr(data, "get_next"):  # it is read once
        data = map(arrays, chain([first], left))
    elif holds_tensors(first):
        data = Arrays(data, items)
    return data, {**shapes, **(input_shapes or {})}


def to_onnx(model, input_shapes: Mapping[str, Sequence[int]] | None, batch: int | None):
    """The network as an ``onnx.ModelProto``, in inference, with float32 inputs of these NCHW shapes.

    An exported program has shapes of its own. Raises LoadError.
    """
    name = model.original_name if _is_script(model) else type(model).__name__
    if _is_exported(model):
        made = _by_export(model, (), name)
    else:
        arguments = _arguments(model, input_shapes, batch)
        made = _traced(_inference(model), arguments, name)
    made.graph.name = name
    return made


def _arguments(model, input_shapes, batch) -> tuple:
    import torch

    names = inputs_of(model)
    shapes = dict(input_shapes or {})
    if unknown := [key for key in shapes if key not in names]:
        raise LoadError(
            f"{type(model).__name__} has no input {unknown[0]}; forward takes {', '.join(names)}"
        )
    given = [key for key in names if key in shapes]
    if not given or given != names[: len(given)]:
        missing = next((key for key in names if key not in shapes), "x")
        raise LoadError(
            f"{type(model).__name__} does not say the shape of its input {missing}; give it: "
            f"input_shapes={{{missing!r}: (1, 3, 224, 224)}}"
        )
    sizes = [(batch or shapes[key][0], *shapes[key][1:]) for key in given]
    return tuple(torch.zeros(*map(int, size)) for size in sizes)


def _traced(model, arguments, name: str):
    """By the exporter that traces; by the other where that one cannot."""
    import onnx
    import torch

    file, names = io.BytesIO(), inputs_of(model)[: len(arguments)]
    options: dict = dict(input_names=names, opset_version=OPSET, dynamo=False)
    try:
        with _quiet(), _data_remarks() as remarks:
            torch.onnx.export(model, arguments, file, **options)
    except Exception as error:  # torch raises types of its own
        _run(model, arguments, name)
        if importlib.util.find_spec("onnxscript") is None:
            raise LoadError(
                f"torch cannot trace {name} ({_cause(error)}); {ONNXSCRIPT}, with which torch.export is "
                "tried, too"
            ) from error
        return _by_export(model, arguments, name)
    if remarks:
        _check_branches(model, arguments, name, remarks)
    return onnx.load_from_string(file.getvalue())


def _by_export(model, arguments, name: str):
    import torch

    if importlib.util.find_spec("onnxscript") is None:
        raise LoadError(
            f"torch needs onnxscript to write what torch.export made: {ONNXSCRIPT}, or give the "
            "torch.nn.Module itself"
        )
    try:
        with _quiet():
            made = torch.onnx.export(
                model, arguments, dynamo=True, verbose=False, opset_version=EXPORTED,
                **({} if _is_exported(model) else {"input_names": inputs_of(model)[: len(arguments)]}),
            )  # fmt: skip
    except Exception as error:
        raise LoadError(f"torch cannot export {name} ({_cause(error)}); give an ONNX model") from error
    return made.model_proto


def _run(model, arguments, name: str) -> None:
    """LoadError, with torch's own reason, if it does not even run on these inputs."""
    import torch

    try:
        with _quiet(), torch.no_grad():
            model(*arguments)
    except Exception as error:
        shapes = ", ".join(f"{key} {tuple(a.shape)}" for key, a in zip(inputs_of(model), arguments))  # noqa: B905
        raise LoadError(f"torch cannot run {name} on {shapes} ({_cause(error)})") from error


def _cause(error: BaseException) -> str:
    """What torch says of the first error of those that led to this one."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("(Refer")]
    return lines[-1].strip() if lines else type(error).__name__


@contextlib.contextmanager
def _data_remarks() -> Iterator[list[warnings.WarningMessage]]:
    """The tracer's remarks that it takes a number for a constant, at lines that are not torch's."""
    import torch

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=torch.jit.TracerWarning)
        torch.jit.TracerWarning.ignore_lib_warnings()
        yield found


def _check_branches(model, arguments, name: str, remarks: Sequence[warnings.WarningMessage]) -> None:
    """LoadError for a number that depends on the data where the trace holds a constant: it is wrong for
    other data. Numbers of shapes, which tensors without data have as well, are constants."""
    import torch
    from torch._subclasses import FakeTensorMode

    try:
        with _quiet(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model(*map(mode.from_tensor, arguments))
    except Exception as error:
        at = {(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)}
        guilty = next((r for r in remarks if (r.filename, r.lineno) in at), remarks[0])
        line = linecache.getline(guilty.filename, guilty.lineno).strip()
        raise LoadError(
            f"{name} decides by its data, which a graph cannot, at {os.path.basename(guilty.filename)}:"
            f"{guilty.lineno}{f' ({line})' if line else ''}: compute both and choose by torch.where, or "
            "leave it out"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks about its own exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _inference(model):
    """A copy of a module, in inference and in float32: the user's keeps its modes."""
    return copy.deepcopy(model).cpu().float().eval()


def original(model) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    """The network as torch runs it: {input: array} -> outputs."""
    import torch

    network = model.module() if _is_exported(model) else _inference(model)
    names = inputs_of(model)

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            made = network(*(torch.from_numpy(feed[name]) for name in names if name in feed))
        return [arrays(leaf) for leaf in torch.utils._pytree.tree_leaves(made)]

    return run
