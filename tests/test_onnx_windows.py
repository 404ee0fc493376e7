"""Operators that move numbers, and those with windows, against ONNX Runtime over random legal attributes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime", minversion="1.22")  # older ones are wrong, or crash, on rare attributes

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state
from strict_tensors import STRICT, hidden, shown

from tvm_easyquant.network.tensors import NUMPY
from tvm_easyquant.readers import geometry
from tvm_easyquant.readers.onnx_op import OnnxOp

REFUSED = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.NotImplemented,
    state.RuntimeException,
)


def _value(attribute):
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return tuple(value) if hasattr(value, "__len__") and not isinstance(value, str) else value


class Case:
    """One node; inputs: arrays, None where one is left out; computed: the places that are no constants."""

    def __init__(self, op, opset, inputs, computed=(0,), outputs=1, **attributes):
        self.opset, self.inputs, self.computed = opset, inputs, computed
        names = [f"i{i}" if x is not None else "" for i, x in enumerate(inputs)]
        attributes = {name: v for name, v in attributes.items() if v is not None}
        self.node = helper.make_node(op, names, [f"o{i}" for i in range(outputs)], **attributes)

    def __str__(self):
        given = [x if x is None or x.size < 20 else x.shape for x in self.inputs]
        attributes = {a.name: _value(a) for a in self.node.attribute}
        return f"{self.node.op_type}-{self.opset} {attributes} {given}"

    def by_ort(self):
        """What ONNX Runtime makes of it, all outputs; None if it refuses."""

        def info(name, x=None):
            if x is None:
                return helper.make_empty_tensor_value_info(name)
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)

        present = {f"i{i}": x for i, x in enumerate(self.inputs) if x is not None}
        feeds = {f"i{i}": self.inputs[i] for i in self.computed}
        constants = [numpy_helper.from_array(x, name) for name, x in present.items() if name not in feeds]
        graph = helper.make_graph(
            [self.node],
            "node",
            [info(name, x) for name, x in feeds.items()],
            [info(name) for name in self.node.output],
            constants,
        )
        opset = helper.make_opsetid("", self.opset)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
            return session.run(None, feeds)
        except REFUSED as error:
            self.refused = str(error)
            return None

    def by_us(self, shapes, dtypes):
        schema = onnx.defs.get_schema(self.node.op_type, self.opset)
        attributes = {
            n: _value(a.default_value) for n, a in schema.attributes.items() if a.default_value.type
        }
        attributes |= {a.name: _value(a) for a in self.node.attribute}
        constants = {i: x for i, x in enumerate(self.inputs) if x is not None and i not in self.computed}
        tensors = {place: i for i, place in enumerate(self.computed)}
        inputs = [hidden(self.inputs[i]) for i in self.computed]
        made = []
        for index in range(len(self.node.output)):
            op = OnnxOp(self.node, self.opset, attributes, constants, tensors, index, shapes, dtypes)
            made.append(shown(op.emit(STRICT, inputs)))
        return made

    def check(self, tolerance=1e-4) -> bool:
        """Whether ONNX Runtime takes it; then ours are its outputs, to a part of their largest number."""
        wanted = self.by_ort()
        if wanted is None:
            return False
        made = self.by_us(tuple(x.shape for x in wanted), tuple(str(x.dtype) for x in wanted))
        for ours, theirs in zip(made, wanted, strict=True):
            assert ours.dtype == theirs.dtype, self
            assert ours.shape == theirs.shape, self
            if theirs.dtype.kind == "f":
                limit = tolerance * np.abs(theirs).max(initial=0)
                assert np.abs(ours - theirs).max(initial=0) <= limit, self
            else:
                assert np.array_equal(ours, theirs), self
        return True


def _floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def _any(rng, *shape):
    """Floats, now and then integers or truths."""
    kind = rng.choice(["float32", "float32", "float32", "int64", "int32", "uint8", "bool"])
    return rng.integers(0, 2 if kind == "bool" else 200, shape).astype(kind)


def _ints(rng, low, high, count):
    return [int(n) for n in rng.integers(low, high, count)]


def _window(rng, rank):
    """Random padding, strides, dilations of a window of ``rank`` axes, and its kernel."""
    kernel = _ints(rng, 1, 4, rank)
    auto = str(rng.choice(["NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    pads = (
        [int(rng.integers(0, k)) for k in kernel * 2] if auto == "NOTSET" and rng.random() < 0.7 else None
    )
    strides = _ints(rng, 1, 4, rank) if rng.random() < 0.7 else None
    dilations = _ints(rng, 1, 3, rank) if rng.random() < 0.4 and not auto.startswith("SAME") else None
    return kernel, {"auto_pad": auto, "pads": pads, "strides": strides, "dilations": dilations}


def conv(rng):
    rank, groups = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3]))
    depth, per = _ints(rng, 1, 4, 2)
    kernel, window = _window(rng, rank)
    x = _floats(rng, int(rng.integers(1, 3)), groups * depth, *_ints(rng, 5, 9, rank))
    weight = _floats(rng, groups * per, depth, *kernel)
    bias = _floats(rng, groups * per) if rng.random() < 0.5 else None
    inputs = [x, weight] + ([] if bias is None else [bias])
    computed = tuple(range(len(inputs))) if rng.random() < 0.2 else (0,)
    return Case("Conv", int(rng.choice([7, 11, 13])), inputs, computed, group=groups, **window)


def conv_transpose(rng):
    rank, groups = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3]))
    depth, per = _ints(rng, 1, 4, 2)
    kernel, window = _window(rng, rank)
    x = _floats(rng, int(rng.integers(1, 3)), groups * depth, *_ints(rng, 3, 6, rank))
    weight = _floats(rng, groups * depth, per, *kernel)
    inputs = [x, weight] + ([_floats(rng, groups * per)] if rng.random() < 0.5 else [])
    strides = window["strides"] or [1] * rank
    dilations = window["dilations"] or [1] * rank
    room = [max(s, d) for s, d in zip(strides, dilations, strict=True)]
    if window["auto_pad"].startswith("SAME"):  # what is smaller than SAME asks for is undefined
        strides = window["strides"] = [min(s, k) for s, k in zip(strides, kernel, strict=True)]
    elif rng.random() < 0.4:
        window["output_padding"] = [int(rng.integers(0, n)) for n in room]
    if window["auto_pad"] != "VALID" and rng.random() < 0.3:
        more = window.get("output_padding") or [0] * rank
        reach = geometry.reach(kernel, dilations)
        natural = [
            s * (n - 1) + m + r for n, s, m, r in zip(x.shape[2:], strides, more, reach, strict=True)
        ]
        window["output_shape"] = [max(1, n - int(rng.integers(0, 3))) for n in natural]
        window["pads"] = None
    return Case("ConvTranspose", 11, inputs, group=groups, **window)


def pool(rng, op=None):
    op = op or str(rng.choice(["MaxPool", "AveragePool", "LpPool"]))
    rank, opset = int(rng.integers(1, 4)), int(rng.choice([7, 10, 11, 12, 18, 19, 22]))
    kernel, window = _window(rng, rank)
    dilated = {"MaxPool": 10, "AveragePool": 19, "LpPool": 18}[op]
    if opset < dilated:
        window["dilations"] = None
    if opset >= (18 if op == "LpPool" else 10) and window["auto_pad"] == "NOTSET":
        window["ceil_mode"] = int(rng.integers(0, 2))
    if window["auto_pad"].startswith("SAME"):  # of a larger stride ONNX Runtime moves the windows
        window["strides"] = kernel
    outputs = 1
    if op == "AveragePool":
        window["count_include_pad"] = int(rng.integers(0, 2))
    if op == "LpPool":
        window["p"] = int(rng.integers(1, 4))
    x = _floats(rng, int(rng.integers(1, 3)), int(rng.integers(1, 4)), *_ints(rng, 5, 10, rank))
    if op == "MaxPool":
        if opset >= 8:
            window["storage_order"], outputs = int(rng.integers(0, 2)), int(rng.integers(1, 3))
        if opset >= 12 and rng.random() < 0.3:
            x = rng.integers(0, 4, x.shape).astype(rng.choice(["uint8", "int8"]))
    return Case(op, opset, [x], outputs=outputs, kernel_shape=kernel, **window)


MODES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")


def resize(rng):
    opset = int(rng.choice([10, 11, 13, 18, 19]))
    mode = str(rng.choice(["nearest", "linear", "cubic"][: 2 if opset == 10 else 3]))
    x = _floats(rng, 1, int(rng.integers(1, 3)), *_ints(rng, 3, 8, 2))
    factors = [float(f) for f in rng.choice([0.4, 0.5, 0.7, 1.0, 1.3, 2.0, 2.5, 3.0], 2)]
    # of a scale that makes no further place ONNX Runtime copies
    factors = [f if int(f * n) != n else 1.0 for f, n in zip(factors, x.shape[2:], strict=True)]
    whole = [1.0, 1.0, *factors]
    if opset == 10:
        return Case("Resize", 10, [x, np.array(whole, np.float32)], mode=mode)
    attributes = {"mode": mode}
    modes = [*MODES[:4], *(["tf_half_pixel_for_nn"] if opset == 11 else [])]
    if opset >= 19 and mode != "nearest":  # which of its halves is the nearest is ONNX Runtime's secret
        modes.append(MODES[4])
    attributes["coordinate_transformation_mode"] = change = str(rng.choice([*modes, "tf_crop_and_resize"]))
    if mode == "nearest":
        attributes["nearest_mode"] = str(
            rng.choice(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
        )
    if mode == "cubic":
        attributes["cubic_coeff_a"] = float(rng.choice([-0.5, -0.75]))
        attributes["exclude_outside"] = int(rng.integers(0, 2))
    roi = np.zeros(0, np.float32)
    scales, sizes = np.array(whole, np.float32), None
    if change == "tf_crop_and_resize":
        begin, end = rng.uniform(-0.2, 0.4, 2), rng.uniform(0.6, 1.2, 2)
        roi = np.array([0, 0, *begin, 1, 1, *end], np.float32)
        attributes["extrapolation_value"] = 1.5
    if opset >= 18 and mode != "nearest" and change == "half_pixel":
        attributes["antialias"] = int(rng.integers(0, 2))
    # where a scale makes a fraction of a place, ONNX and its runtime disagree
    fraction = change in ("align_corners", "tf_crop_and_resize") or attributes.get("antialias")
    if fraction or rng.random() < 0.5:
        size = [max(1, int(f * n)) for f, n in zip(factors, x.shape[2:], strict=True)]
        if change == "tf_crop_and_resize":  # ONNX Runtime leaves an axis of the same size alone
            size = [made + (made == n) for made, n in zip(size, x.shape[2:], strict=True)]
        sizes = np.array([1, x.shape[1], *size], np.int64)
        scales = np.zeros(0, np.float32) if opset < 13 else None
    if opset >= 18 and rng.random() < 0.5:
        attributes["axes"] = [2, 3] if rng.random() < 0.5 else [-2, -1]
        scales, sizes = (None if a is None else a[2:] for a in (scales, sizes))
        roi = roi[[2, 3, 6, 7]] if roi.size else roi
        if sizes is not None and attributes["axes"] == [2, 3] and not fraction:
            attributes["keep_aspect_ratio_policy"] = str(rng.choice(["not_larger", "not_smaller"]))
    inputs = [x, roi, scales] + ([] if sizes is None else [sizes])
    return Case("Resize", opset, inputs, **attributes)


def upsample(rng):
    x = _floats(rng, 1, 2, *_ints(rng, 3, 6, 2))
    scales = [1.0, 1.0, *(float(f) for f in rng.choice([1.0, 1.5, 2.0, 3.0], 2))]
    mode = str(rng.choice(["nearest", "linear"]))
    if rng.random() < 0.5:
        return Case("Upsample", 7, [x], scales=scales, mode=mode)
    return Case("Upsample", 9, [x, np.array(scales, np.float32)], mode=mode)


def pad(rng):
    opset, rank = int(rng.choice([2, 11, 13, 18, 19])), int(rng.integers(1, 5))
    mode = str(rng.choice(["constant", "constant", "reflect", "edge", *(["wrap"] if opset >= 19 else [])]))
    x = _any(rng, *_ints(rng, 4, 7, rank)) if opset >= 13 else _floats(rng, *_ints(rng, 4, 7, rank))
    axes = None
    if opset >= 18 and rng.random() < 0.5:
        axes = rng.permutation(rank)[: int(rng.integers(1, rank + 1))]
        axes = np.where(rng.random(len(axes)) < 0.5, axes - rank, axes).astype(np.int64)
    count = rank if axes is None else len(axes)
    # what is reflected or wrapped after something was taken away is nowhere said
    pads = _ints(rng, -1 if mode == "constant" else 0, 4 if mode != "wrap" else 3, 2 * count)
    if opset == 2:
        return Case("Pad", 2, [x], mode=mode, pads=pads, value=0.5)
    value = np.array(1, x.dtype) if rng.random() < 0.5 else None
    inputs = [x, np.array(pads, np.int64), value] + ([] if axes is None else [axes])
    return Case("Pad", opset, inputs[: 4 if axes is not None else 3 if value is not None else 2], mode=mode)


def take_slice(rng):
    opset, rank = int(rng.choice([9, 10, 11, 13])), int(rng.integers(1, 5))
    x = _any(rng, *_ints(rng, 3, 7, rank))
    axes = rng.permutation(rank)[: int(rng.integers(1, rank + 1))]
    if rng.random() < 0.2:
        axes = np.arange(rank)
    starts, ends = (rng.integers(-8, 9, len(axes)) for _ in range(2))
    steps = rng.choice([-3, -2, -1, 1, 2, 3], len(axes))
    if opset == 9:
        steps = np.ones_like(steps)
    huge = rng.random(len(axes)) < 0.5
    ends = np.where(huge & (steps > 0), 2**63 - 1, np.where(huge, -(2**63), ends))
    starts = np.where(huge & (steps > 0), rng.integers(-3, 3), np.where(huge, 9, starts))
    if opset == 9:
        return Case("Slice", 9, [x], starts=starts.tolist(), ends=ends.tolist(), axes=axes.tolist())
    axes = np.where((rng.random(len(axes)) < 0.5) & (opset > 10), axes - rank, axes)
    inputs = [x, *(a.astype(np.int64) for a in (starts, ends, axes, steps))]
    return Case("Slice", opset, inputs)


def split(rng):
    opset, rank = int(rng.choice([7, 11, 13, 18])), int(rng.integers(1, 4))
    x = _any(rng, *_ints(rng, 5, 9, rank))
    axis = int(rng.integers(-rank if opset >= 11 else 0, rank))
    size, pieces = x.shape[axis], int(rng.integers(1, 4))
    cuts = np.sort(rng.choice(size - 1, pieces - 1, replace=False)) + 1
    lengths = np.diff([0, *cuts, size]).astype(np.int64)
    if opset < 13:
        return Case("Split", opset, [x], outputs=pieces, axis=axis, split=lengths.tolist())
    if opset == 18 and rng.random() < 0.5:
        return Case("Split", opset, [x], outputs=pieces, axis=axis, num_outputs=pieces)
    return Case("Split", opset, [x, lengths], outputs=pieces, axis=axis)


def gather(rng):
    rank = int(rng.integers(1, 4))
    x = _any(rng, *_ints(rng, 2, 6, rank))
    axis = int(rng.integers(-rank, rank))
    size = x.shape[axis]
    kind = rng.choice(["int32", "int64"])
    indices = np.asarray(rng.integers(-size, size, _ints(rng, 1, 4, int(rng.integers(0, 3))))).astype(kind)
    computed = (0, 1) if rng.random() < 0.5 else (0,)
    return Case("Gather", int(rng.choice([11, 13])), [x, indices], computed, axis=axis)


def move(rng):
    op = str(rng.choice(["Tile", "Expand", "CenterCropPad", "DepthToSpace", "SpaceToDepth", "Concat", "Flatten",
                         "Transpose", "Shrink", "Col2Im", "Squeeze", "Unsqueeze"]))  # fmt: skip
    rank = int(rng.integers(1, 5))
    x = _any(rng, *_ints(rng, 1, 6, rank))
    if op == "Tile":
        return Case(op, 13, [x, rng.integers(1, 4, rank)])
    if op == "Expand":
        shape = [int(n if n > 1 or rng.random() < 0.4 else 3) for n in x.shape]
        shape = [int(s if rng.random() < 0.7 else 1) for s in shape]
        return Case(op, 13, [x, np.array([2] * int(rng.integers(0, 3)) + shape, np.int64)])
    if op == "CenterCropPad":
        axes = [int(a) for a in rng.permutation(rank)[: int(rng.integers(1, rank + 1))]]
        return Case(op, 18, [_floats(rng, *x.shape), rng.integers(1, 8, len(axes))], axes=axes)
    if op in ("DepthToSpace", "SpaceToDepth"):
        block = int(rng.integers(2, 4))
        x = _floats(rng, 2, 2 * block**2, 2 * block, 3 * block)
        mode = {"mode": str(rng.choice(["DCR", "CRD"]))} if op[0] == "D" else {}
        return Case(op, 13, [x], blocksize=block, **mode)
    axis = int(rng.integers(-rank, rank))
    if op == "Concat":
        return Case(op, 13, [x, x[..., :1] if axis in (-1, rank - 1) else x, x], (0, 2), axis=axis)
    if op == "Flatten":
        return Case(op, 13, [x], axis=int(rng.integers(-rank, rank + 1)))
    if op == "Transpose":
        return Case(
            op, 13, [x], perm=[int(a) for a in rng.permutation(rank)] if rng.random() < 0.7 else None
        )
    if op == "Shrink":
        return Case(
            op, 9, [3 * _floats(rng, *x.shape)], lambd=float(rng.random()), bias=float(rng.random())
        )
    if op == "Squeeze":
        return Case(op, 13, [x[..., None], np.array([-1])])
    if op == "Unsqueeze":
        return Case(op, 13, [x, np.array([0, -1])])
    n = int(rng.integers(1, 4))
    kernel, window = _window(rng, n)
    image = _ints(rng, 5, 9, n)
    window.pop("auto_pad")
    if n != 2:  # ONNX Runtime's dilation is right of pictures only
        window["dilations"] = None
    strides, dilations = (window[name] or [1] * n for name in ("strides", "dilations"))
    blocks = geometry.outputs(image, kernel, strides, dilations, window["pads"] or [0] * 2 * n)
    x = _floats(rng, 2, 2 * int(np.prod(kernel)), int(np.prod(blocks)))
    return Case(op, 18, [x, np.array(image), np.array(kernel)], **window)


#: generator -> of how many cases ONNX Runtime must take how many
GENERATORS = {conv: (40, 35), conv_transpose: (40, 30), pool: (60, 45), resize: (60, 35), upsample: (10, 6),
              pad: (40, 30), take_slice: (30, 28), split: (15, 13), gather: (15, 15), move: (40, 35)}  # fmt: skip


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda g: g.__name__)
def test_random_legal_attributes_mean_what_they_do_in_onnx_runtime(generator):
    cases, least = GENERATORS[generator]
    taken = sum(generator(np.random.default_rng(seed)).check() for seed in range(cases))
    assert taken >= least, "ONNX Runtime refused too many of them"


@pytest.mark.parametrize("change", ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"])
def test_the_nearest_is_chosen_as_onnx_runtime_rounds(change):
    """At halves in float32: 7 places made 2 take the fourth or, as 1 / (2 / 7) is 3.4999998, the third."""
    for mode in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
        for size in range(2, 12):
            x = np.arange(size, dtype=np.float32).reshape(1, 1, 1, size)
            for made in {1, 2, 3, 4, 5, 7, 9, 14, 15, 20, 22, 33} - {size}:
                sizes = np.array([1, 1, 1, made], np.int64)
                case = Case("Resize", 13, [x, None, None, sizes], mode="nearest", nearest_mode=mode,
                            coordinate_transformation_mode=change)  # fmt: skip
                assert case.check(), case


def _ours(case, *shapes):
    return case.by_us(shapes, ("float32",) * len(shapes))[0]


def test_same_of_a_stride_larger_than_the_window_pads_nothing():
    """ONNX Runtime's pools move such windows instead (a padding of -1); its convolutions do not."""
    x = np.arange(9, dtype=np.float32).reshape(1, 1, 9)
    for op in ("MaxPool", "AveragePool"):
        for mode in ("SAME_UPPER", "SAME_LOWER"):
            case = Case(op, 11, [x], kernel_shape=[1], strides=[3], auto_pad=mode)
            assert _ours(case, (1, 1, 3)).ravel().tolist() == [0, 3, 6]


def test_a_region_moves_an_axis_that_keeps_its_size():
    """ONNX Runtime leaves it as it is; ONNX's reference does not."""
    x = np.arange(5, dtype=np.float32).reshape(1, 5)
    roi = np.array([0, 0.5, 1, 1], np.float32)
    case = Case("Resize", 13, [x, roi, None, np.array([1, 5])], mode="linear",
                coordinate_transformation_mode="tf_crop_and_resize")  # fmt: skip
    assert _ours(case, (1, 5)).ravel().tolist() == [2, 2.5, 3, 3.5, 4]


def test_a_scale_that_makes_a_fraction_of_a_place_stands_between_its_corners():
    """ONNX's node test resize_downsample_scales_linear_align_corners; ONNX Runtime aligns the whole places."""
    x = np.arange(1, 9, dtype=np.float32).reshape(1, 1, 2, 4)
    case = Case("Resize", 13, [x, None, np.array([1, 1, 0.6, 0.6], np.float32)], mode="linear",
                coordinate_transformation_mode="align_corners")  # fmt: skip
    assert np.allclose(_ours(case, (1, 1, 1, 2)).ravel(), [1, 3.142857])


def test_dilated_blocks_of_one_axis_are_added_where_they_lie():
    """ONNX Runtime is right of two axes only."""
    x = np.array([[[1, 2], [10, 20], [100, 200]]], np.float32)  # three places, two blocks
    case = Case("Col2Im", 18, [x, np.array([6]), np.array([3])], dilations=[2])
    assert _ours(case, (1, 1, 6)).ravel().tolist() == [1, 2, 10, 20, 100, 200]


def test_only_the_asked_policy_and_axes_tell_the_size():
    """With negative axes ONNX Runtime forgets to resize."""
    x = np.arange(8, dtype=np.float32).reshape(1, 2, 4)
    case = Case("Resize", 18, [x, None, None, np.array([1, 1])], axes=[-2, -1], mode="nearest",
                keep_aspect_ratio_policy="not_smaller")  # fmt: skip
    assert _ours(case, (1, 1, 2)).shape == (1, 1, 2)


@pytest.mark.parametrize("size", [5, 6, 7, 10])
def test_windows_are_as_many_and_as_whole_as_geometry_says(size):
    """Ceil mode: size 5, window 2, stride 3, end padding 1: a third window would start in the padding."""
    for kernel, stride, dilation, begin, end, ceil in np.ndindex(4, 4, 3, 2, 4, 2):
        kernel, stride, dilation = [kernel + 1], [stride + 1], [dilation + 1]
        if geometry.reach(kernel, dilation)[0] > size:
            continue
        (count,) = geometry.outputs([size], kernel, stride, dilation, (begin, end), bool(ceil))
        whole = geometry.whole_windows([size], kernel, stride, dilation, (begin, end), [count])
        if not ceil:
            assert whole[1] <= end or whole == (begin, end)
        assert geometry.outputs([size], kernel, stride, dilation, whole) == (count,)
        x = np.zeros((1, 1, size), np.float32)
        assert NUMPY.pool("sum", x, kernel, stride, whole, dilation).shape[2] == count
    assert geometry.outputs([5], [2], [3], [1], (0, 1), True) == (2,)


@pytest.mark.ci
@pytest.mark.parametrize("generator", GENERATORS, ids=lambda g: g.__name__)
def test_many_more_of_them(generator):
    for seed in range(1000, 1500):
        generator(np.random.default_rng(seed)).check()
