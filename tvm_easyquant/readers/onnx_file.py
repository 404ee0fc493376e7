"""An ONNX file as it is on disk: read it, check it, fix its input shapes. No TVM here."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from numbers import Integral
from typing import Any

from ..errors import EasyQuantError, LoadError, last_line

OLDEST_OPSET = 7  # before it, broadcasting was an attribute
OWN_DOMAINS = ("", "ai.onnx")
LARGEST = 2**36  # numbers of a tensor: more is a file that is damaged
CUT = "cut the network before it (outputs, --outputs)"
#: bits of an element whose type's name starts so; of all others 8
BITS = {
    "FLOAT16": 16, "BFLOAT16": 16, "FLOAT8": 8, "FLOAT4": 4, "FLOAT": 32, "DOUBLE": 64, "COMPLEX64": 64,
    "COMPLEX128": 128, "UINT16": 16, "INT16": 16, "UINT32": 32, "INT32": 32, "UINT64": 64, "INT64": 64,
    "UINT4": 4, "INT4": 4, "UINT2": 2, "INT2": 2,
}  # fmt: skip


def read_onnx(model) -> tuple[Any, str]:
    """The ``onnx.ModelProto`` of a path (or the one given) and its name; LoadError if it cannot be read.

    Weights in other files are read, too, of the model's own folder only.
    """
    import onnx

    name = "model"
    if not isinstance(model, onnx.ModelProto):
        path = os.fspath(model)
        name = readable(os.path.basename(path))
        with _damaged(name):
            try:
                model = onnx.load(path, load_external_data=False)
            except FileNotFoundError:
                raise LoadError(f"there is no file {path}") from None
            known = model.graph.node and model.opset_import
        if not known:
            raise LoadError(f"{name} is not an ONNX file (it holds no graph)")
        _load_external(model, os.path.dirname(os.path.abspath(path)), name)
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in OWN_DOMAINS and not OLDEST_OPSET <= opset.version <= newest:
            raise LoadError(
                f"{name} has opset {opset.version}; {OLDEST_OPSET} to {newest} can be read: export it with "
                "opset 17, or convert it with onnx.version_converter"
            )
    return model, name


@contextlib.contextmanager
def _damaged(name: str) -> Iterator[None]:
    """What protobuf, onnx and numpy raise on a file that is none, in a line."""
    try:
        yield
    except LoadError:
        raise
    except Exception as error:  # noqa: BLE001  # protobuf has several of its own; a MemoryError is one, too
        why = readable(last_line(error), 200)
        raise LoadError(f"{name} is not an ONNX file, or a damaged one ({why})") from None


@contextlib.contextmanager
def told(what: object) -> Iterator[None]:
    """What is no error of ours as a LoadError that begins with ``what``: a node, or the name of a file."""
    try:
        yield
    except EasyQuantError:
        raise
    except Exception as error:  # whatever onnx, protobuf and numpy raise
        why = readable(f"{type(error).__name__}: {last_line(error)}", 120)
        raise LoadError(f"{what} cannot be read ({why}); {CUT}, or export it again") from error


def readable(text: str, length: int = 80) -> str:
    """Text of a file as a message may show it: in a line, without control characters, not too long."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= length else f"{text[: length - 3]}..."


# -- tensors


def _graphs(graph) -> Iterator[Any]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from _graphs(inner)


def inner_graphs(node) -> Iterator[Any]:
    """The graphs among the attributes of a node."""
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def _nested(graph) -> list[Any]:
    """The nodes of a graph or function and of the graphs inside it."""
    return [node for inner in _graphs(graph) for node in inner.node]


def _tensors(model) -> Iterator[Any]:
    """Every ``onnx.TensorProto`` of a model, but those of sparse tensors."""
    for graph in _graphs(model.graph):
        yield from graph.initializer
    for node in (node for of in (model.graph, *model.functions) for node in _nested(of)):
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def _load_external(model, folder: str, name: str) -> None:
    """Read the weights that lie in other files."""
    import onnx
    from onnx import external_data_helper

    home = os.path.realpath(folder)
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        with _damaged(name):
            label = readable(tensor.name)
            location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        what, where = f"the weights of {name} cannot be read: tensor {label}", readable(location)
        path = os.path.realpath(os.path.join(home, location)) if "\0" not in location else ""
        inside = path.startswith(os.path.join(home, ""))
        if not location or os.path.isabs(location) or not inside:
            raise LoadError(f"{what} is in {where!r}; put that file into the folder of {name}")
        if not os.path.isfile(path):
            raise LoadError(f"{what} is in {where}, and there is no such file beside {name}")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, folder)
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        except Exception as error:  # noqa: BLE001  # onnx has some of its own
            raise LoadError(f"{what}: {readable(last_line(error), 200)}") from None


def _check_tensor(tensor, what: str) -> None:
    """LoadError unless a tensor holds as many numbers as its shape says."""
    import onnx

    kinds, dims = onnx.TensorProto, list(tensor.dims)
    if tensor.data_type not in kinds.DataType.values() or tensor.data_type == kinds.UNDEFINED:
        raise LoadError(
            f"{what} has the element type {tensor.data_type}, which the installed onnx does not know; "
            "upgrade onnx, or export it again"
        )
    if tensor.data_location == kinds.EXTERNAL:
        raise LoadError(
            f"{what} lies in another file; give the path of the model, or load it with onnx.load"
        )
    if tensor.data_type == kinds.STRING:
        return
    count, raw = prod(dims), len(tensor.raw_data)
    text = readable(str(tuple(dims)))
    if min(dims, default=0) < 0 or count > LARGEST:
        raise LoadError(f"{what} has the shape {text}; the file is damaged: export it again")
    kind = kinds.DataType.Name(tensor.data_type)
    if tensor.HasField("raw_data"):
        bits = next((size for start, size in BITS.items() if kind.startswith(start)), 8)
        good = raw == -(-count * bits // 8)
    else:
        fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        held = sum(len(getattr(tensor, field)) for field in fields)
        least = -(-count // 2) if kind in ("INT4", "UINT4", "FLOAT4E2M1") else count
        good = held in (least, 2 * count if "COMPLEX" in kind else least)
    if not good:
        raise LoadError(
            f"{what} has the shape {text} and another number of values; the file is damaged: "
            "export it again"
        )


# -- what a model must be


def check(model, name: str, domains: Iterable[str] | None = None) -> None:
    """LoadError, which names the node or tensor and the cure, unless a ModelProto can be read as a graph.

    That is: tensors in and out, each made once and before it is needed, or at least not in a circle; every
    constant whole. domains: beside ONNX's own and that of local functions; None is all.
    """
    with _damaged(name):
        _check(model, name, None if domains is None else {*OWN_DOMAINS, *domains})


def _check(model, name, domains):
    graph = model.graph
    if not any(opset.domain in OWN_DOMAINS for opset in model.opset_import):
        raise LoadError(f"{name} does not say its opset; export it again")
    if not graph.output:
        raise LoadError(f"{name} has no output; name one with outputs (--outputs), or export it again")
    for what, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            _check_type(value, what, name)
    for tensor in _tensors(model):
        _check_tensor(tensor, f"{name}: tensor {readable(tensor.name) or 'without a name'}")
    for inner in _graphs(graph):
        for sparse in inner.sparse_initializer:
            label = readable(sparse.values.name)
            raise LoadError(f"{name}: tensor {label} is sparse; export it as a dense initializer")
    if domains is not None:
        own = {(function.domain, function.name) for function in model.functions}
        for node in (node for inner in _graphs(graph) for node in inner.node):
            if node.domain not in domains and (node.domain, node.op_type) not in own:
                domain = readable(node.domain)
                raise LoadError(
                    f"{name}: {called(node)} is of the domain {domain}, none of ONNX's own operators; {CUT}"
                )
    makers = _makers(graph, name)
    for value in graph.output:
        if value.name not in makers:
            raise LoadError(f"{name}: no node makes the output {readable(value.name)}; {CUT}")
    topological(model, name)


def _check_type(value, what, name):
    from onnx import TensorProto

    kind = value.type.WhichOneof("value")
    where = f"{name}: {what} {readable(value.name)}"
    if kind not in (None, "tensor_type"):
        raise LoadError(f"{where} is no tensor but of the kind {kind.removesuffix('_type')}; {CUT}")
    element = value.type.tensor_type.elem_type
    known = element in TensorProto.DataType.values()
    text = TensorProto.DataType.Name(element) if known else str(element)
    if not known or text == "STRING" or text.startswith("COMPLEX"):
        raise LoadError(f"{where} is {text}; a network takes and returns numbers: {CUT}")
    if what == "input" and text == "UNDEFINED":
        raise LoadError(f"{where} has no element type; export it again")


def _makers(graph, name) -> dict[str, Any]:
    """tensor -> its node; None of inputs and constants. LoadError if two make one."""
    constants = [tensor.name for tensor in graph.initializer]
    inputs, outputs = ([value.name for value in values] for values in (graph.input, graph.output))
    for what, names in (("constants", constants), ("inputs", inputs), ("outputs", outputs)):
        twice = next((label for label, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise LoadError(f"{name}: two {what} are named {readable(twice)}; rename one of them")
    made: dict[str, Any] = dict.fromkeys([*constants, *(value.name for value in graph.input)])
    for node in graph.node:
        for output in node.output:
            if output and output in made:
                other = "an input or constant" if made[output] is None else called(made[output])
                raise LoadError(
                    f"{name}: {called(node)} makes {readable(output)}, which {other} is already; rename it"
                )
            made[output] = node
    made.pop("", None)
    return made


def captured(node) -> set[str]:
    """The tensors of the graph around a node that its inner graphs read."""
    found: set[str] = set()
    for inner in inner_graphs(node):
        own = {v.name for v in (*inner.input, *inner.initializer)}
        own |= {output for n in inner.node for output in n.output}
        read = {tensor for n in inner.node for tensor in _reads(n)} | {v.name for v in inner.output}
        found |= read - own
    return found


def _reads(node) -> set[str]:
    """The tensors that a node reads, those its inner graphs take from outside included."""
    return (set(node.input) - {""}) | captured(node)


def topological(model, name: str = "model") -> list[Any]:
    """The nodes of a ModelProto, each behind those whose tensors it reads, else in the file's own order.

    LoadError for a tensor that nothing makes, and for a circle.
    """
    makers = _makers(model.graph, name)
    nodes, ready = list(model.graph.node), {tensor for tensor, node in makers.items() if node is None}
    ordered: list[Any] = []
    waiting = [(node, _reads(node)) for node in nodes]
    for node, reads in waiting:
        for tensor in sorted(reads - set(makers)):
            raise LoadError(f"{name}: {called(node)} reads {readable(tensor)}, which no node makes; {CUT}")
    while waiting:
        left = []
        for node, reads in waiting:
            if reads <= ready:
                ordered.append(node)
                ready.update(node.output)
            else:
                left.append((node, reads))
        if len(left) == len(waiting):
            tensor, seen = min(left[0][1] - ready), set()
            while tensor not in seen:  # back to a node of the circle itself
                seen.add(tensor)
                tensor = min(_reads(makers[tensor]) - ready)
            raise LoadError(f"{name}: {called(makers[tensor])} waits for its own output; export it again")
        waiting = left
    return ordered


def called(node) -> str:
    """A node in a message: its name, or its output's, and its operator."""
    label = node.name or next((output for output in node.output if output), "")
    return f"node {readable(label)} ({readable(node.op_type)})"


# -- what is made of a model


def inline(model, name: str = "model") -> Any:
    """The model with the nodes of its own functions where those were called. Raises LoadError."""
    if not model.functions:
        return model
    from onnx import inliner

    with _damaged(name):
        _check_calls(model, name)
    try:
        return inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:  # noqa: BLE001  # onnx raises types of its own
        why = readable(last_line(error), 200)
        raise LoadError(f"{name}: its functions cannot be inlined ({why}); export it without") from None


def _check_calls(model, name) -> None:
    """LoadError if a function of the model calls itself, or one of its nodes lacks what it takes."""
    functions = {(function.domain, function.name): function for function in model.functions}
    done: set[tuple[str, str]] = set()

    def visit(key, callers):
        if key in callers:
            raise LoadError(f"{name}: the function {readable(key[1])} calls itself; export it without it")
        if key not in done:
            for node in _nested(functions[key]):
                called_there = (node.domain, node.op_type)
                if called_there in functions:
                    visit(called_there, (*callers, key))
            done.add(key)

    for key in functions:
        visit(key, ())


def cut(model, outputs: Sequence[str], name: str = "model") -> Any:
    """A ``ModelProto`` that ends at ``outputs``: what only others needed is gone.

    outputs: names of tensors, or of nodes (the first output of one); one alone may be a str. Inputs and
    constants that nobody reads any more go, too. Raises LoadError with near names for one that is neither.
    """
    import onnx

    outputs = [outputs] if isinstance(outputs, str) else outputs
    makers = {output: node for node in model.graph.node for output in node.output if output}
    by_node = {node.name: next(iter(node.output), "") for node in model.graph.node if node.name}
    wanted = []
    for asked in outputs:
        tensor = asked if asked in makers else by_node.get(asked, "")
        if not tensor:
            near = difflib.get_close_matches(asked, [*makers, *by_node], 3)
            last = [value.name for value in model.graph.output]
            hint = "did you mean" if near else "its outputs are"
            listed = ", ".join(readable(n) for n in near or last)
            given = {v.name for v in (*model.graph.input, *model.graph.initializer)}
            if asked in given:
                raise LoadError(
                    f"{name}: {readable(asked)} is an input or constant, no output; {hint} {listed}"
                )
            raise LoadError(
                f"{name} has no tensor and no node {readable(asked)!r}; {hint} {listed}{'?' * bool(near)}"
            )
        wanted.append(tensor)
    if not wanted:
        raise LoadError("outputs is empty; name a tensor or a node")
    wanted = list(dict.fromkeys(wanted))
    needed, waiting, kept = set(), list(wanted), set()
    while waiting:
        tensor = waiting.pop()
        if tensor in needed:
            continue
        needed.add(tensor)
        if tensor in makers:
            kept.update(makers[tensor].output)
            waiting += _reads(makers[tensor])
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    nodes = [node for node in model.graph.node if any(o and o in kept for o in node.output)]
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    for field in ("initializer", "input", "value_info"):
        values = [v for v in getattr(model.graph, field) if v.name in needed | kept]
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    graph.output.extend(_infos(model, result, wanted))
    return result


def _infos(model, result, wanted) -> list[Any]:
    """What is known of the tensors ``wanted``: as the file has it, or by inference on what is left."""
    import onnx

    known = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    if any(tensor not in known for tensor in wanted):
        try:
            inferred = onnx.shape_inference.infer_shapes(result, data_prop=True).graph.value_info
        except Exception:  # noqa: BLE001  # it has types of its own, and gives up on more than 2 GB
            inferred = []
        known = {v.name: v for v in inferred} | known
    return [
        known[tensor] if tensor in known else onnx.helper.make_empty_tensor_value_info(tensor)
        for tensor in wanted
    ]


def check_onnx(path: str | os.PathLike, fixed: bool = False) -> None:
    """LoadError if the file is no readable ONNX model, or, unless ``fixed``, has a dynamic shape."""
    model, name = read_onnx(path)
    if not fixed:
        fixed_shapes(model, {}, None, name)


def fixed_shapes(
    model, given: Mapping[str, Sequence[int]], batch: int | None, name: str
) -> dict[str, Sequence[int]]:
    """The shape of every input of a ModelProto: {input name: NCHW shape}.

    given: those of inputs whose file leaves a dimension open; ``batch`` is used for an open first one
    (None: 1). Raises LoadError naming an input that stays open, does not fit, or has another batch.
    """
    check_batch(batch)
    if not isinstance(given, Mapping):
        raise LoadError(f"input_shapes is a {type(given).__name__}; give {{input name: shape}}")
    given = dict(given)
    constants = {t.name for t in model.graph.initializer}
    shapes: dict[str, Sequence[int]] = {}
    names = [value.name for value in model.graph.input if value.name not in constants]
    if unknown := sorted(set(given) - set(names), key=str):  # before what it leaves open is missed
        raise LoadError(f"{name}: input_shapes names {unknown}, its inputs are {sorted(names)}")
    for value in model.graph.input:
        if value.name in constants:
            continue
        label, kind = readable(value.name), value.type.tensor_type
        dims = [d.dim_value for d in kind.shape.dim]
        if value.name in given:
            asked = given.pop(value.name)
            if not isinstance(asked, Iterable) or not all(map(_whole, asked)):
                shown = asked
                if isinstance(asked, Sequence) and not isinstance(asked, str):  # tvmc has Any for 0 and -1
                    shown = [d if isinstance(d, (int, float, str)) else "?" for d in asked]
                raise LoadError(
                    f"input_shapes gives {label} {shown!r}; give its sizes, whole numbers of 1 or more"
                )
            shape = [int(d) for d in asked]
            fixed = all(d in (0, s) for d, s in zip(dims[1:], shape[1:], strict=False))
            known = kind.HasField("shape")
            if (known and len(dims) != len(shape)) or not fixed or min(shape, default=1) < 1:
                raise LoadError(
                    f"{name}: input {label} was given shape {tuple(shape)}, the model says "
                    f"{tuple(d or '?' for d in dims)}"
                )
        else:
            shape = [batch or 1, *dims[1:]] if dims and dims[0] <= 0 else dims
            if not kind.HasField("shape") or any(d <= 0 for d in shape):
                raise LoadError(f"{name}: input {label} {_open(kind, shape, label)}")
        if prod(shape) > LARGEST:
            raise LoadError(
                f"{name}: input {label} has the shape {tuple(shape)}; the file is damaged: export it again"
            )
        shapes[value.name] = shape
    if not shapes:
        raise LoadError(f"{name} has no input")
    check_batch(batch, shapes, name)
    return shapes


def check_batch(
    batch: int | None, shapes: Mapping[str, Sequence[int]] | None = None, name: str = ""
) -> None:
    """LoadError if ``batch`` is no number of samples, or one that no input has. shapes: {input: shape}."""
    if batch is None:
        return
    if not _whole(batch) or batch < 1:
        raise LoadError(f"batch is {batch!r}; use 1 or more")
    if shapes and all(tuple(shape)[:1] != (batch,) for shape in shapes.values()):
        first, shape = next(iter(shapes.items()))
        label, whole = readable(first), ",".join(map(str, (batch, *shape[1:])))
        raise LoadError(
            f"{name}: input {label} has the shape {tuple(shape)}, the batch is to be {batch}; give the "
            f"whole shape with input_shapes (--input-shapes on the command line), {label}:[{whole}]"
        )


def _whole(number) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def _open(kind, shape, label) -> str:
    """Which dimension of an input is open, and the option that fixes it."""
    cure = "fix it with input_shapes (--input-shapes on the command line), for example"
    if not kind.HasField("shape"):
        return f"has a dynamic rank, the model gives no shape; {cure} {label}:[1,3,224,224]"
    at = next(i for i, size in enumerate(shape) if size <= 0)
    text = tuple(d if d > 0 else "?" for d in shape)
    usual = [1, 3, 224, 224] if len(shape) == 4 else [1] * len(shape)
    example = ",".join(str(d if d > 0 else u) for d, u in zip(shape, usual, strict=True))
    name = readable(kind.shape.dim[at].dim_param, 30)
    which = f"dimension {at} ({name})" if name else f"dimension {at}"
    return f"has the dynamic shape {text}: {which} is open; {cure} {label}:[{example}]"


def stem(model) -> str:
    """What a graph of a path (or of a ModelProto) is called."""
    if not isinstance(model, (str, os.PathLike)):
        return "model"
    return os.path.splitext(os.path.basename(os.fspath(model)))[0]
