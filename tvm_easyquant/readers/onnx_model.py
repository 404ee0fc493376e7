"""An ONNX model, prepared: every tensor's type known, what is constant computed, control flow gone.

Shapes are inferred node by node, with the constants known so far as data; a node of constants runs in
`onnx.reference`. That dissolves shape arithmetic: what is left depends on the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import prod
from typing import Any

import numpy as np

from ..errors import LoadError, last_line
from ..network.tensors import NUMPY
from . import geometry
from .onnx_file import captured, inner_graphs, readable, told, topological
from .onnx_op import FLOATS, NotConstant, OnnxOp, attributes_of, from_node, plain

#: as data of shape inference: shapes and the like, not weights
SMALL = 4096
#: numbers of a tensor that is no mistake
LARGEST = 1 << 31
#: pools, whose windows onnx's inference counts otherwise than its specification in ceil mode
POOLS = ("MaxPool", "AveragePool", "LpPool")
#: operators whose outputs have shapes that the numbers decide
BY_NUMBERS = ("NonZero", "Unique", "Compress", "NonMaxSuppression")
#: operators that give other numbers in every run; Dropout, too, in training
RANDOM = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)
#: operators that move or name numbers, and make or lose none
KEEP = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
#: operators along axes that they name in attributes
NORMALIZATIONS = ("LayerNormalization", "LpNormalization", "MeanVarianceNormalization")
#: attributes that are sizes, of every axis and of one
POSITIVE = ("strides", "dilations", "kernel_shape")
COUNTS = ("group", "num_outputs", "blocksize", "num_groups")
#: attribute, or operator and attribute, that is a word -> those that mean something
WORDS = {
    "auto_pad": ("", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"),
    "Pad mode": ("constant", "reflect", "edge", "wrap"),
    "Resize mode": ("nearest", "linear", "cubic"),
    "Upsample mode": ("nearest", "linear", "bilinear"),
    "DepthToSpace mode": ("DCR", "CRD"),
    "coordinate_transformation_mode": (
        "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
        "tf_crop_and_resize", "tf_half_pixel_for_nn", "output_half_pixel",
    ),
    "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple"),
    "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
    "approximate": ("none", "tanh"),
}  # fmt: skip
#: the most turns of a loop that is unrolled
TURNS = 1 << 16
CUT = "; cut the network before it with outputs (--outputs on the command line)"


@dataclass(frozen=True)
class Site:
    """A node that depends on an input.

    label: what the model calls it, or its operator and a number; inputs: the tensors it reads, "" for one
    that is left out.
    """

    node: Any  # onnx.NodeProto
    label: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __str__(self):
        return f"node {readable(self.label)} ({readable(self.node.op_type)})"


@dataclass
class Prepared:
    """inputs, outputs: tensors, in the model's order; output_names: what the model calls its outputs.

    sites: in topological order. constants: tensor -> its array. types: tensor -> (numpy dtype's name, NCHW
    shape), as the model has it. branches: an If's output -> the tensor of the branch that it is. notes:
    what is to be told, in lines.
    """

    name: str
    opset: int
    inputs: list[str]
    outputs: list[str]
    output_names: list[str]
    sites: list[Site] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    types: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def handle(self, site: Site, index: int) -> tuple[OnnxOp, list[str]]:
        """What a float node keeps of an output of a site, and the tensors that it reads."""
        constants = {t: self.constants[t] for t in site.inputs if t and t not in self.types}
        outputs = [self.types.get(output, ("float32", ())) for output in site.outputs]
        return from_node(site.node, site.opset, constants, outputs, index)


def prepare(model, shapes: Mapping[str, Sequence[int]], name: str) -> Prepared:
    """A checked ``onnx.ModelProto`` (`onnx_file.read_onnx`) whose inputs have the ``shapes``.

    Raises LoadError, which names the node.
    """
    return _Preparation(model, shapes, name).result


class _Preparation:
    def __init__(self, model, shapes, name):
        self.model, self.name = model, name
        self.imports = list(model.opset_import)
        self.opset = next(o.version for o in self.imports if o.domain in ("", "ai.onnx"))
        self.protos: dict[str, Any] = {}  # tensor -> TypeProto
        self.taken = set(_defined(model.graph)) | {value.name for value in model.graph.input}
        self.labels: dict[str, int] = {}  # operator without a name -> how many
        outputs = [value.name for value in model.graph.output]
        self.result = Prepared(name, self.opset, list(shapes), [], outputs)
        self.renamed = self.result.branches
        self._constants(model.graph)
        self._inputs(model.graph, shapes)
        for node in topological(model, name):
            self._node(node)
        for output in outputs:
            tensor = self.renamed.get(output, output)
            if tensor in self.result.constants or tensor not in self.protos:
                raise LoadError(
                    f"{name}: output {readable(output)} does not depend on any input; "
                    "name others with outputs (--outputs on the command line)"
                )
            self.result.outputs.append(tensor)
        self._say_floats()

    def _say_floats(self):
        kinds = sorted({dtype for dtype, _ in self.result.types.values()} & set(FLOATS))
        kinds += sorted({str(a.dtype) for a in self.result.constants.values()} & set(FLOATS) - set(kinds))
        if kinds:
            self.result.notes.append(f"the model's {' and '.join(kinds)} numbers are computed in float32")

    def _constants(self, graph):
        from onnx import numpy_helper

        for tensor in graph.initializer:
            try:
                self.result.constants[tensor.name] = numpy_helper.to_array(tensor)
            except (ValueError, TypeError) as error:
                why = readable(last_line(error), 120)
                raise LoadError(
                    f"{self.name}: the numbers of {readable(tensor.name)} cannot be read ({why}); "
                    "export it again"
                ) from None

    def _inputs(self, graph, shapes):
        from onnx import helper

        for value in graph.input:
            if value.name in shapes:
                kind = value.type.tensor_type.elem_type
                shape = tuple(shapes[value.name])
                self._know(value.name, helper.make_tensor_type_proto(kind, shape))

    def _know(self, tensor, proto):
        from onnx import helper

        kind = proto.tensor_type
        shape = tuple(d.dim_value for d in kind.shape.dim)
        self.protos[tensor] = proto
        self.result.types[tensor] = (str(helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)

    # -- nodes

    def _label(self, node) -> str:
        """The node's name; without one its operator and how many such came before."""
        if node.name:
            return str(node.name)
        number = self.labels[node.op_type] = self.labels.get(node.op_type, -1) + 1
        return f"{node.op_type}_{number}"

    def _node(self, node):
        site = self._site(node)
        with told(site):
            self._take(site)

    def _take(self, site):
        node = site.node
        if node.op_type == "If":
            return self._branch(site)
        if node.op_type in RANDOM or (node.op_type == "Dropout" and self._trains(site)):
            raise LoadError(
                f"{site} makes random numbers; export the model for inference, or cut it before that node "
                "with outputs (--outputs on the command line)"
            )
        if node.op_type in ("Shape", "Size") and site.inputs[0] in self.protos:
            shape = np.asarray(self.result.types[site.inputs[0]][1], np.int64)
            if node.op_type == "Shape":
                found = shape[site.attributes.get("start") or 0 : site.attributes.get("end")]
            else:
                found = np.asarray(prod(shape.tolist()), np.int64)
            self.result.constants[site.outputs[0]] = found
            return None
        if not any(tensor in self.protos for tensor in (*site.inputs, *captured(node))):
            return self._fold(site)
        if node.op_type in ("Loop", "Scan"):
            raise LoadError(f"{site} is control flow that is not constant{CUT}")
        if node.op_type in BY_NUMBERS:
            raise LoadError(f"{site} makes a tensor whose shape its numbers decide{CUT}")
        for output, proto in self._infer(site).items():
            self._know(output, proto)
        self.result.sites.append(site)
        return None

    def _trains(self, site) -> bool:
        """Whether a Dropout drops anything, as far as is known."""
        ratio, training = (*site.inputs[1:], "", "")[:2]
        if not training or not np.any(self.result.constants.get(training, True)):
            return False
        return not ratio or bool(np.any(self.result.constants.get(ratio, 1.0)))

    def _site(self, node) -> Site:
        if any(name in self.renamed for name in node.input):
            original, node = node, type(node)()
            node.CopyFrom(original)
            for i, name in enumerate(original.input):
                node.input[i] = self.renamed.get(name, name)
        inputs, outputs = (tuple(map(str, names)) for names in (node.input, node.output))
        site = Site(node, self._label(node), self.opset, {}, inputs, outputs)
        if node.domain not in ("", "ai.onnx"):
            raise LoadError(
                f"{site} is of the domain {readable(node.domain)}, which nobody here knows{CUT}"
            )
        self._valid(site)
        for tensor in inputs:
            if tensor and tensor not in self.result.constants and tensor not in self.protos:
                raise LoadError(f"{site} reads {readable(tensor)}, which nothing before it makes{CUT}")
        with told(site):
            return replace(site, attributes=attributes_of(node, self.opset))

    def _valid(self, site):
        """LoadError unless a node has the inputs, outputs and attributes that its operator takes."""
        schema, node = self._schema(site), site.node
        if schema.deprecated:
            raise LoadError(f"{site} is no operator of opset {self.opset} any more; export it again")
        for what, names, least, most in (
            ("inputs", site.inputs, schema.min_input, schema.max_input),
            ("outputs", site.outputs, schema.min_output, schema.max_output),
        ):
            if not least <= len(names) <= most:
                raise LoadError(
                    f"{site} has {len(names)} {what}, its operator has {least} to {most}; export it again"
                )
        given = set()
        for attribute in node.attribute:
            label, known = readable(attribute.name), schema.attributes.get(attribute.name)
            if attribute.ref_attr_name:
                what = f"refers to {readable(attribute.ref_attr_name)} of a function, and is in none"
            elif known is None:
                what = f"is none of opset {self.opset}"
            elif attribute.type != int(known.type):
                what = "is of another type than its operator's"
            elif attribute.name in given:
                what = "is given twice"
            else:
                given.add(attribute.name)
                self._meant(site, attribute)
                continue
            raise LoadError(f"{site}: its attribute {label} {what}; export it again")
        for name, known in schema.attributes.items():
            if known.required and name not in given:
                raise LoadError(f"{site} has no attribute {name}; export it again")

    def _meant(self, site, attribute):
        """LoadError for sizes and words that mean nothing: onnx's inference divides by a stride of 0, which
        ends the process."""
        if attribute.name in POSITIVE and min((*attribute.ints, 1)) < 1:
            what = f"{list(attribute.ints)}, not 1 or more"
        elif attribute.name in COUNTS and attribute.i < 1:
            what = f"{attribute.i}, not 1 or more"
        else:
            words = WORDS.get(attribute.name) or WORDS.get(f"{site.node.op_type} {attribute.name}")
            word = attribute.s.decode(errors="replace")
            if words is None or word in words:
                return
            what = f"{readable(word)!r}, none of {', '.join(filter(None, words))}"
        raise LoadError(f"{site}: its attribute {attribute.name} is {what}; export it again")

    def _schema(self, site):
        from onnx import defs

        try:
            return defs.get_schema(site.node.op_type, self.opset, "")
        except defs.SchemaError:
            raise LoadError(f"{site} is no operator of opset {self.opset}{CUT}") from None

    def _branch(self, site):
        """The branch that a constant condition takes, in place of an If."""
        condition = self.result.constants.get(site.inputs[0])
        if condition is None:
            raise LoadError(f"{site} is control flow whose condition is computed{CUT}")
        taken = self._apart(site.attributes["then_branch" if condition.reshape(-1)[0] else "else_branch"])
        self._constants(taken)
        for node in taken.node:
            self._node(node)
        for made, output in zip(taken.output, site.outputs, strict=True):
            tensor = self.renamed.get(made.name, made.name)
            if tensor in self.result.constants:
                self.result.constants[output] = self.result.constants[tensor]
            else:
                self.renamed[output] = tensor

    def _apart(self, branch):
        """A branch whose tensors have names of their own: another branch may use the same, or hide one."""
        own, names = _defined(branch), {}
        for name in own:
            if name in self.taken:
                number = next(i for i in count(2) if f"{name}_{i}" not in self.taken.union(own))
                names[name] = f"{name}_{number}"
            self.taken.add(names.get(name, name))
        if names:
            original, branch = branch, type(branch)()
            branch.CopyFrom(original)
            _rename(branch, names)
        return branch

    def _fold(self, site):
        """The outputs of a node that reads constants only."""
        reads = (*site.inputs, *sorted(captured(site.node)))
        values = {name: self.result.constants[name] for name in reads if name}
        self._check_size(site, values)
        for output, array in zip(site.outputs, run_node(site, self.imports, values), strict=True):
            if output:
                self._is_tensor(site, array)
                self.result.constants[output] = np.asarray(array)

    def _is_tensor(self, site, array):
        if not isinstance(array, (np.ndarray, np.generic)) or np.asarray(array).dtype.kind in "OUS":
            raise LoadError(f"{site} makes a sequence or strings, not a tensor of numbers{CUT}")

    def _check_size(self, site, values):
        if (
            site.node.op_type == "Loop"
            and site.inputs[0]
            and int(values[site.inputs[0]].reshape(-1)[0]) > TURNS
        ):
            raise LoadError(f"{site} turns more than {TURNS} times{CUT}")
        if site.node.op_type in ("ConstantOfShape", "Expand", "Tile") and site.inputs[-1]:
            count = prod(map(int, values[site.inputs[-1]].reshape(-1)))
            if count > LARGEST:
                raise LoadError(f"{site} makes a tensor of {count} numbers{CUT}")

    def _on_axes(self, site):
        """LoadError for an axis that there is not, of normalizations: onnx's inference passes them."""
        rank, a = len(self.result.types.get(site.inputs[0], ("", ()))[1]), site.attributes
        for axis in [a["axis"]] if "axis" in a else a.get("axes") or []:
            if not -rank <= axis < rank:
                raise LoadError(f"{site} has no axis {axis}: its input has {rank} axes; export it again")

    def _infer(self, site) -> dict:
        """The types of its outputs; LoadError if one has no fixed shape."""
        if site.node.op_type in NORMALIZATIONS:
            self._on_axes(site)
        try:
            found = self._inferred(site)
        except Exception as error:  # noqa: BLE001  # InferenceError, and ValidationError of the checker
            raise LoadError(
                f"{site} is not valid: {readable(last_line(error), 120)}; export it again"
            ) from None
        node = site.node
        wanted: dict[str, Any] = {output: found.get(output) for output in site.outputs if output}
        if any(
            proto is not None and proto.WhichOneof("value") != "tensor_type" for proto in wanted.values()
        ):
            raise LoadError(f"{site} makes a sequence, not a tensor{CUT}")
        if not all(_fixed(proto) for proto in wanted.values()):
            wanted = self._by_running(site)
        if node.op_type in ("Conv", "ConvTranspose"):
            self._weights_fit(site)
        if node.op_type == "Gemm":
            self._matrices_fit(site)
        if node.op_type in (*POOLS, "Conv", "ConvTranspose"):
            self._windows(site, wanted)
        if node.op_type in KEEP:
            self._keeps(site, wanted)
        for output, proto in wanted.items():
            shape = tuple(d.dim_value for d in proto.tensor_type.shape.dim)
            if prod(shape) > LARGEST:
                raise LoadError(f"{site}: its output {readable(output)} has {prod(shape)} numbers{CUT}")
            if min(shape, default=1) <= 0:
                raise LoadError(f"{site}: its output {readable(output)} has the empty shape {shape}{CUT}")
        return wanted

    def _inferred(self, site) -> dict:
        """What onnx's own inference says of the outputs of a node."""
        import onnx
        from onnx import helper, numpy_helper

        types, data = {}, {}
        for tensor in filter(None, site.inputs):
            array = self.result.constants.get(tensor)
            if array is None:
                types[tensor] = self.protos[tensor]
                continue
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            types[tensor] = helper.make_tensor_type_proto(kind, array.shape)
            if array.size <= SMALL:
                data[tensor] = numpy_helper.from_array(array, tensor)
        if "" in site.inputs:  # onnx 1.16 looks that up, too
            return self._of_a_model(site.node, types, data)
        return onnx.shape_inference.infer_node_outputs(
            self._schema(site), site.node, types, data, opset_imports=self.imports
        )

    def _of_a_model(self, node, types, data) -> dict:
        """What inference says of the outputs of a node alone."""
        from onnx import helper, shape_inference

        inputs = [helper.make_value_info(tensor, proto) for tensor, proto in types.items()]
        outputs = [helper.make_empty_tensor_value_info(output) for output in node.output if output]
        graph = helper.make_graph([node], "node", inputs, outputs, list(data.values()))
        model = helper.make_model(graph, opset_imports=self.imports, ir_version=8)
        inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        return {v.name: v.type for v in inferred.graph.output if v.type.HasField("tensor_type")}

    def _keeps(self, site, wanted):
        before, after = self.result.types[site.inputs[0]][1], wanted[site.outputs[0]].tensor_type.shape
        size = tuple(d.dim_value for d in after.dim)
        if prod(before) != prod(size):
            raise LoadError(
                f"{site} makes the shape {size} of {before}, another number of elements; export it again"
            )

    def _weights_fit(self, site):
        """LoadError unless the channels of a convolution are those of its weights and its bias."""
        data, weight = self._size_of(site.inputs[0]), self._size_of(site.inputs[1])
        a, bias = site.attributes, self._size_of(site.inputs[2]) if any(site.inputs[2:]) else None
        groups, kernel = a["group"], a.get("kernel_shape") or weight[2:]
        first, second = weight[:2]
        if site.node.op_type == "Conv":
            made, taken, whole = first, second * groups, first
        else:
            made, taken, whole = second * groups, first, first
        if not len(weight) == len(data) > 2 or tuple(kernel) != weight[2:]:
            what = f"its kernel is {tuple(kernel)}"
        elif taken != data[1] or groups < 1 or whole % groups:
            what = f"{groups} groups of its weights take {taken} channels"
        elif bias is not None and bias != (made,):
            what = f"its bias has the shape {bias}"
        else:
            return
        raise LoadError(f"{site} reads {data} with weights {weight}, and {what}; export it again")

    def _matrices_fit(self, site):
        """LoadError unless the matrices of a Gemm can be multiplied, and its bias be added."""
        first, second = (self._size_of(tensor) for tensor in site.inputs[:2])
        a, added = site.attributes, self._size_of(site.inputs[2]) if any(site.inputs[2:]) else ()
        left, right = first[:: -1 if a["transA"] else 1], second[:: -1 if a["transB"] else 1]
        made = (left[0], right[1])
        fits = all(size in (1, whole) for size, whole in zip(added[::-1], made[::-1], strict=False))
        if left[1] != right[0] or len(added) > 2 or not fits:
            also = f" and adds {added}" if added else ""
            raise LoadError(f"{site} multiplies {left} by {right}{also}, which do not fit; export it again")

    def _windows(self, site, wanted):
        """The places of a pool or a convolution, counted by the specification."""
        from onnx import helper

        op, a, size = site.node.op_type, site.attributes, self._size_of(site.inputs[0])[2:]
        kernel = a["kernel_shape"] if op in POOLS else self._size_of(site.inputs[1])[2:]
        strides = a.get("strides") or (1,) * len(size)
        dilations = a.get("dilations") or (1,) * len(size)
        if op == "ConvTranspose":
            _, counts = geometry.transposed(a, size, kernel, strides, dilations)
        else:
            padding = geometry.pads(a, size, kernel, strides, dilations)
            if min(padding) < 0:
                raise LoadError(f"{site} has negative padding {padding}; export it with a Slice instead")
            ceil = bool(a.get("ceil_mode")) and a.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
            counts = geometry.outputs(size, kernel, strides, dilations, padding, ceil)
        if min(counts) < 1:
            raise LoadError(f"{site}: no window of {tuple(kernel)} has a place on {size}; export it again")
        for output, proto in wanted.items():
            batch, channels = self._size_of(site.inputs[0])[:2]
            if op == "Conv":
                channels = self._size_of(site.inputs[1])[0]
            elif op == "ConvTranspose":
                channels = self._size_of(site.inputs[1])[1] * a["group"]
            kind = proto.tensor_type.elem_type
            wanted[output] = helper.make_tensor_type_proto(kind, (batch, channels, *counts))

    def _size_of(self, tensor):
        array = self.result.constants.get(tensor)
        return self.result.types[tensor][1] if array is None else array.shape

    def _by_running(self, site) -> dict:
        """The types of the outputs of a node that inference knows nothing of, from a run on zeros."""
        from onnx import helper

        constants = {t: self.result.constants[t] for t in site.inputs if t in self.result.constants}
        types = {t: self.result.types[t] for t in site.inputs if t and t not in constants}
        zeros = {t: np.zeros(shape, dtype) for t, (dtype, shape) in types.items()}
        try:
            op, tensors = from_node(site.node, self.opset, constants, [("float32", ())] * len(site.outputs))
            made = op.outputs(NUMPY, [plain(zeros[t]) for t in tensors])
        except NotConstant:
            made = run_node(site, self.imports, constants | zeros)
        for output, array in zip(site.outputs, made, strict=False):
            if output:
                self._is_tensor(site, array)
        return {
            output: helper.make_tensor_type_proto(
                helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype), np.shape(array)
            )
            for output, array in zip(site.outputs, made, strict=False)
            if output
        }


def run_node(site: Site, imports, values: Mapping[str, np.ndarray]) -> list:
    """The outputs of one node by `onnx.reference`; values: by the names of ``site.inputs``."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    feed = {name: values[name] for name in (*site.inputs, *sorted(captured(site.node))) if name}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feed.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in site.outputs if name]
    graph = helper.make_graph([site.node], "node", inputs, outputs)
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    try:
        with np.errstate(all="ignore"):
            made = iter(ReferenceEvaluator(model).run(None, feed))
    except Exception as error:  # noqa: BLE001  # every operator of it raises its own
        raise LoadError(f"{site} cannot be computed: {readable(last_line(error), 120)}{CUT}") from None
    return [next(made) if name else None for name in site.outputs]


def _defined(graph) -> list[str]:
    """The tensors that a graph makes or holds."""
    made = [output for node in graph.node for output in node.output if output]
    return [*(tensor.name for tensor in graph.initializer), *made]


def _rename(graph, names: Mapping[str, str]) -> None:
    """Give tensors of a graph other names, in the graphs inside it, too, where those do not hide them."""
    for tensor in (*graph.initializer, *graph.output):
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for read in (node.input, node.output):
            read[:] = [names.get(name, name) for name in read]
        for inner in inner_graphs(node):
            hidden = {*_defined(inner), *(value.name for value in inner.input)}
            _rename(inner, {name: new for name, new in names.items() if name not in hidden})


def _fixed(proto) -> bool:
    if proto is None or not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return False
    return all(d.HasField("dim_value") for d in proto.tensor_type.shape.dim)


__all__ = ["Prepared", "Site", "prepare"]
