"""What moves numbers and what joins two maps, as ONNX says it: read as operators, equal to ONNX Runtime."""

import pickle

import networks
import numpy as np
import pytest

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import tvm_easyquant as eq
from tvm_easyquant import load_onnx
from tvm_easyquant.network import builder
from tvm_easyquant.scales.calibrate import calibrate, start_table
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.scales.partition import plan
from tvm_easyquant.writers.qdq import to_qdq

INT, F = np.int64, np.float32
RATIOS = {"sizes": INT([1, 3, 9, 4])}, {"scales": F([1, 1, 0.5, 1.5])}, {"scales": F([1, 1, 0.6, 2.3])}
WAYS = ("align_corners", "half_pixel", "pytorch_half_pixel", "asymmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def resizes():
    """Those of align_corners by size: of a scale the specification takes the size before it is rounded, ONNX
    Runtime the rounded one."""
    for numbers in RATIOS:
        inputs = ["", "scales"] if "scales" in numbers else ["", "", "sizes"]
        for way in WAYS if "sizes" in numbers else WAYS[1:]:
            for rounding in ROUNDINGS:
                if (way, rounding) != ("align_corners", "x"):
                    attributes = dict(
                        mode="nearest", coordinate_transformation_mode=way, nearest_mode=rounding
                    )
                    yield "Resize", numbers, inputs, attributes


def others():
    around = {"around": INT([0, 0, 2, 1, 0, 0, 1, 3])}
    yield "Pad", around, ["around"], dict(mode="reflect")
    yield "Pad", around, ["around"], dict(mode="edge")
    yield "Pad", around, ["around"], dict(mode="wrap")
    yield "Pad", {"around": INT([0, 1, -1, 0, 0, 2, 0, 1])}, ["around"], dict(mode="edge")
    yield "Tile", {"times": INT([1, 2, 1, 3])}, ["times"], {}
    yield "Gather", {"places": INT([-1, 0, 0, 2])}, ["places"], dict(axis=1)
    yield "Gather", {"places": INT([4, 1, -2])}, ["places"], dict(axis=-2)
    bounds = {"begin": INT([-1, 4]), "end": INT([-99, 0]), "axes": INT([1, 3]), "by": INT([-1, -2])}
    yield "Slice", bounds, list(bounds), {}


def one(op, constants, inputs, attributes, shape=(1, 3, 6, 5), opset=19):
    x = np.random.default_rng(0).standard_normal(shape).astype(F)
    node = (op, ["x", *inputs], ["y"], "node", attributes)
    rank = len(shape) - ("place" in constants)
    made = {"y": [f"d{i}" for i in range(rank)]}
    model = networks.onnx_model([node], {"x": list(shape)}, made, constants, opset)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    (want,) = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})
    return load_onnx(model), x, want


def same(graph, x, want, *ops):
    assert tuple(node.op for node in graph) == ("input", *ops)
    np.testing.assert_array_equal(graph.run({"x": x})["y"], want)


def test_nearest_resizes_take_places_of_each_axis():
    for case in resizes():
        graph, x, want = one(*case)
        same(graph, x, want, "gather")


def test_pads_tiles_and_gathers_take_places_of_each_axis():
    for case in others():
        graph, x, want = one(*case)
        same(graph, x, want, "gather")


def test_what_is_a_slice_or_nothing_is_no_gather():
    for op, constants, inputs, attributes, made in [
        ("Gather", {"places": INT([1, 2])}, ["places"], dict(axis=1), ["slice"]),
        ("Gather", {"place": INT(-2)}, ["place"], dict(axis=3), ["slice", "reshape"]),
        ("Resize", {"scales": F([1, 1, 0.5, 1])}, ["", "scales"],
         dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"), ["slice"]),
        ("SpaceToDepth", {}, [], dict(blocksize=2), ["reshape", "transpose", "reshape"]),
    ]:  # fmt: skip
        same(*one(op, constants, inputs, attributes, (1, 3, 6, 4)), *made)
    graph, *_ = one("Expand", {"shape": INT([1, 3, 6, 5])}, ["shape"], {})
    assert [node.op for node in graph] == ["input"]
    same(*one("Expand", {"shape": INT([1, 3, 6, 5])}, ["shape"], {}, (1, 1, 6, 1)), "gather")
    same(
        *one("Slice", {"b": INT([1]), "e": INT([4]), "a": INT([2])}, ["b", "e", "a"], {}, (2, 3, 5)),
        "slice",
    )


@pytest.mark.parametrize(
    "case",
    [
        ("Gather", {"places": INT([[0, 1], [2, 0]])}, ["places"], dict(axis=1)),
        ("Gather", {"places": INT([0, 0])}, ["places"], dict(axis=0)),
        ("Tile", {"times": INT([2, 1, 1, 1])}, ["times"], {}),
        ("Expand", {"shape": INT([2, 3, 6, 5])}, ["shape"], {}),
        ("Slice", {"b": INT([-1]), "e": INT([-9]), "a": INT([0]), "s": INT([-1])}, ["b", "e", "a", "s"], {}, (2, 3)),
    ],
    ids=["two axes of places", "gather of the batch", "tile of the batch", "expand", "slice of the batch"],
)  # fmt: skip
def test_what_is_no_such_move_stays_float(case):
    graph, x, want = one(*case)
    same(graph, x, want, "float")


#: how an operator is not covered -> (operator, inputs, attributes, axes of what it makes)
SAID = {
    "with weights or a bias that are computed; they must be constants": ("Conv", ["x", "x"], {}, 4),
    "over the batch (axis 0); over other axes it is": ("ReduceMax", ["x"], dict(axes=[0]), 4),
    "of (2, 3, 4, 4) and a constant of shape (3, 1, 1); one number is": ("Max", ["x", "levels"], {}, 4),
    "where perm=[1, 0, 2, 3] moves the batch and an operator reads that":
        ("Transpose", ["x"], dict(perm=[1, 0, 2, 3]), 4),
    "from (2, 3, 4, 4) to (96,); between two axes or more it is": ("Reshape", ["x", "line"], {}, 1),
    "along the batch (axis 0); along other axes it is": ("Gather", ["x", "one"], dict(axis=0), 4),
    "of indices of 2 axes; of one axis or one number it is": ("Gather", ["x", "square"], dict(axis=1), 5),
    "from (2, 3, 4, 4) to (4, 3, 4, 4): it repeats the batch (axis 0)": ("Tile", ["x", "twice"], {}, 4),
    "with the fill 0.5; with 0 it is": ("Pad", ["x", "around", "half"], {}, 4),
    "with limits that are computed; constants are": ("Clip", ["x", "s"], {}, 4),
    "of two tensors; of a tensor and a constant it is": ("Div", ["x", "p"], {}, 4),
    "of (2, 3, 4, 4) and a constant of shape (4, 4); one number, or one a channel (axis 1), is":
        ("Add", ["x", "matrix"], {}, 4),
    "of (2, 3, 4, 4) and a constant of shape (4, 1); one number is, or one a channel (axis 1) behind a layer":
        ("PRelu", ["x", "slopes"], {}, 4),
}  # fmt: skip


@pytest.mark.parametrize("how", SAID)
def test_what_is_not_covered_says_what_about_it(how):
    """Story: "Resize is not covered" was said of a cubic one, and "Transpose is not covered" of one that moves the
    batch; both are, with other attributes."""
    op, inputs, attributes, rank = SAID[how]
    constants = {"line": INT([-1]), "one": INT([1, 0]), "square": INT([[0, 1], [2, 0]]), "half": F(0.5),
                 "twice": INT([2, 1, 1, 1]), "around": INT([0, 0, 1, 1, 0, 0, 1, 1]),
                 "matrix": np.ones((4, 4), F), "slopes": np.ones((4, 1), F), "levels": np.ones((3, 1, 1), F)}  # fmt: skip
    nodes = [
        ("MaxPool", ["x"], ["p"], "pool", dict(kernel_shape=[1, 1])),
        ("ReduceSum", ["x"], ["s"], "sum", dict(keepdims=0)),
        (op, inputs, ["y"], "node", attributes | (dict(keepdims=1) if op.startswith("Reduce") else {})),
    ]
    outputs = {"y": [f"d{i}" for i in range(rank)]}
    graph = load_onnx(networks.onnx_model(nodes, {"x": [2, 3, 4, 4]}, outputs, constants, 12))
    assert graph["node"].operator.refusal(graph["node"]) == f"{op} is not covered {how}"
    assert graph.former is None or graph.former()["node"].attrs["handle"].uncovered == ""


TURN = ("Transpose", ["x"], ["t"], "turn", dict(perm=[2, 0, 3, 1, 4]))
ASIDE = {
    "read by a float operator": ([TURN, ("Softmax", ["t"], ["y"], "soft", {})], ["float", "float"]),
    "an output": ([TURN, ("Identity", ["t"], ["y"], "same", {})], ["float"]),
    "cut and read": (
        [TURN, ("Slice", ["t", "one", "two", "zero"], ["s"], "cut", {}), ("Softmax", ["s"], ["y"], "soft", {})],
        ["float", "float", "float"],
    ),
    "cut along the batch": (
        [TURN, ("Slice", ["t", "one", "two", "one"], ["y"], "cut", {})], ["float", "float"],
    ),
    "taken and read": (
        [TURN, ("Gather", ["t", "here"], ["q"], "take", dict(axis=0)), ("Softmax", ["t"], ["s"], "soft", {}),
         ("Gather", ["s", "here"], ["v"], "late", dict(axis=0)), ("Mul", ["q", "v"], ["y"], "gate", {})],
        ["transpose", "slice", "reshape", "float", "float", "float", "mul"],
    ),
    "turned back": (
        [TURN, ("Transpose", ["t"], ["y"], "back", dict(perm=[1, 3, 0, 2, 4]))], ["transpose", "transpose"],
    ),
    "places of another axis": (
        [TURN, ("Gather", ["t", "some"], ["g"], "take", dict(axis=3)),
         ("Transpose", ["g"], ["y"], "back", dict(perm=[1, 0, 3, 2, 4]))],
        ["transpose", "gather", "transpose"],
    ),
    "another shape": (
        [TURN, ("Reshape", ["t", "flat"], ["y"], "flat", {})], ["float", "float"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ASIDE)
def test_the_batch_may_move_and_come_back(case):
    """What is made where the batch is not the first axis is made with it first; where an operator needs it as it
    is, the transposition is the float one that it was."""
    nodes, ops = ASIDE[case]
    rank = {"taken and read": 4, "another shape": 2}.get(case, 5)
    numbers = {"one": INT([1]), "two": INT([2]), "zero": INT([0]), "here": INT(1), "some": INT([3, 0, 0]),
               "flat": INT([6, -1])}  # fmt: skip
    model = networks.onnx_model(
        nodes, {"x": [2, 5, 3, 2, 4]}, {"y": [f"d{i}" for i in range(rank)]}, numbers, 13
    )
    graph, x = load_onnx(model), np.random.default_rng(0).standard_normal((2, 5, 3, 2, 4)).astype(F)
    (want,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    assert [node.op for node in graph][1:] == ops
    named = {n[3] for n in nodes} | ({"turn_2"} if case == "taken and read" else set())
    assert all(node.name in named for node in graph if node.op in ("float", "transpose", "gather"))
    np.testing.assert_allclose(graph.run({"x": x})["y"], want, rtol=0, atol=1e-6)


def test_places_that_the_data_decide_stay_float_by_name():
    nodes = [
        ("Conv", ["x", "w"], ["a"], "first", {}),
        ("GlobalAveragePool", ["a"], ["p"], "mean", {}),
        ("Reshape", ["p", "flat"], ["f"], "flat", {}),
        ("TopK", ["f", "two"], ["v", "i"], "best", {}),
        ("Reshape", ["i", "flat"], ["j"], "line", {}),
        ("Gather", ["a", "j"], ["g"], "chosen", dict(axis=1)),
        ("Conv", ["g", "w2"], ["y"], "last", {}),
    ]
    constants = {"w": np.ones((4, 3, 1, 1), F), "flat": INT([-1]), "two": INT([2]),
                 "w2": np.ones((3, 2, 1, 1), F)}  # fmt: skip
    model = networks.onnx_model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 3, 4, 4]}, constants, 13)
    assert plan(load_onnx(model)).floats["chosen"] == "it reads line, which is int64"


def test_maps_that_repeat_each_other_stay_float_by_name():
    """Each of the two is repeated along another axis: no norm says it. A mean of one axis is an operator."""
    nodes = [
        ("ReduceMean", ["x"], ["h"], "down", dict(axes=[2], keepdims=1)),
        ("ReduceMean", ["x"], ["w"], "across", dict(axes=[3], keepdims=1)),
        ("Mul", ["h", "w"], ["m"], "outer", {}),
        ("Max", ["h", "w"], ["n"], "most", {}),
        ("Add", ["m", "n"], ["y"], "sum", {}),
    ]
    model = networks.onnx_model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 3, 4, 4]}, {}, 13)
    assert {node.name: node.op for node in load_onnx(model)} == {
        "x": "input", "down": "reduce_mean", "across": "reduce_mean", "outer": "float", "most": "float", "sum": "add",
    }  # fmt: skip


def normalized():
    """A LayerNorm of channels first in pieces, a mean of squares, and a mean that nothing subtracts."""
    nodes = [
        ("Conv", ["x", "w"], ["a"], "first", {}),
        ("ReduceMean", ["a"], ["m"], "mean", dict(axes=[1])),
        ("Sub", ["a", "m"], ["c"], "centred", {}),
        ("Mul", ["c", "c"], ["s"], "square", {}),
        ("ReduceMean", ["s"], ["v"], "variance", dict(axes=[1])),
        ("Sqrt", ["v"], ["d"], "deviation", {}),
        ("Div", ["c", "d"], ["n"], "normal", {}),
        ("Conv", ["n", "w2"], ["b"], "second", {}),
        ("Mul", ["b", "b"], ["s2"], "energies", {}),
        ("ReduceMean", ["s2"], ["e"], "energy", dict(axes=[1])),
        ("ReduceMean", ["b"], ["l"], "level", dict(axes=[1])),
        ("Mul", ["b", "e"], ["g"], "gate", {}),
        ("Mul", ["g", "l"], ["h"], "gate2", {}),
        ("Conv", ["h", "w2"], ["y"], "last", {}),
    ]
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((4, 3, 1, 1)).astype(F),
                 "w2": rng.standard_normal((4, 4, 1, 1)).astype(F)}  # fmt: skip
    return networks.onnx_model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 4, 4, 4]}, constants, 13)


def test_a_mean_of_channels_is_integer_but_not_that_of_a_normalization():
    """8 bits for a mean that is subtracted from what it is of, and for squares, would cost accuracy."""
    found = plan(load_onnx(normalized()))
    assert {"level"} <= found.integer and {"mean", "variance", "energy", "centred"} <= set(found.floats)
    assert found.floats["mean"].startswith("a normalization subtracts it from what it is the mean of")
    assert found.floats["energy"] == "it is a mean of squares, for which 8 bits are too few"


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_a_normalization_of_what_lies_in_another_shape_is_one(square):
    """Story: of ConvNeXt's, whose channels are the last axis, what is subtracted from is a map and the mean is not:
    both ran in 8 bits."""
    nodes = [
        ("Conv", ["x", "w"], ["a"], "first", {}),
        ("Transpose", ["a"], ["t"], "turn", dict(perm=[0, 2, 3, 1])),
        ("ReduceMean", ["t"], ["m"], "mean", dict(axes=[-1])),
        ("Sub", ["t", "m"], ["c"], "centred", {}),
        (square, ["c", "two" if square == "Pow" else "c"], ["s"], "square", {}),
        ("ReduceMean", ["s"], ["v"], "variance", dict(axes=[-1])),
        ("Sqrt", ["v"], ["d"], "deviation", {}),
        ("Div", ["c", "d"], ["n"], "normal", {}),
        ("MatMul", ["n", "k"], ["y"], "last", {}),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((4, 3, 1, 1)).astype(F),
        "k": rng.standard_normal((4, 4)).astype(F),
    }
    constants |= {"two": F(2)} if square == "Pow" else {}
    model = networks.onnx_model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 4, 4, 4]}, constants, 13)
    found = plan(load_onnx(model), functions=True)
    assert {"first", "last"} <= found.integer and {"mean", "variance", "normal"} <= set(found.floats)
    assert found.floats["mean"].startswith("a normalization subtracts it from what it is the mean of")
    assert found.floats["variance"] == "it is a mean of squares, for which 8 bits are too few"


@pytest.mark.parametrize("which", ["scale", "shift"])
@pytest.mark.parametrize("shape", [(5, 1), (4, 1, 1), (4, 5, 5), (1, 1, 5), (5,)], ids=str)
def test_a_layer_norm_is_one_of_numbers_along_its_own_axis_only(shape, which):
    """Story: of a square map the scales of its rows were taken for those of its columns, as many as they are, and
    no word; of other maps they were refused, though ONNX repeats them."""
    rng = np.random.default_rng(0)
    numbers = {
        "scale": rng.standard_normal(5),
        "shift": rng.standard_normal(5),
        which: rng.standard_normal(shape),
    }
    numbers = {name: value.astype(F) for name, value in numbers.items()}
    x = rng.standard_normal((1, 4, 5, 5)).astype(F)
    node = ("LayerNormalization", ["x", "scale", "shift"], ["y"], "node", {})
    graph = load_onnx(networks.onnx_model([node], {"x": x.shape}, {"y": x.shape}, numbers, 19))
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    want = normal * numbers["scale"] + numbers["shift"]  # ONNX Runtime 1.19 takes only those along the axis
    np.testing.assert_allclose(graph.run({"x": x})["y"], want, rtol=0, atol=1e-5)
    known = max(shape) == shape[-1] == np.prod(shape)
    assert ("layer_norm" in [node.op for node in graph]) == known
    assert known or "by numbers of shape" in graph["node"].attrs["handle"].uncovered


def newer(size=6):
    nodes = [
        ("Conv", ["x", "w"], ["a"], "first", dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
        ("Pad", ["a", "around"], ["m"], "mirror", dict(mode="reflect")),
        ("Conv", ["m", "w2"], ["b"], "second", dict(kernel_shape=[3, 3])),
        ("Sub", ["a", "b"], ["c"], "sub", {}),
        ("Conv", ["c", "w2"], ["y"], "last", dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
    ]
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((4, 3, 3, 3)).astype(F),
                 "w2": rng.standard_normal((4, 4, 3, 3)).astype(F),
                 "around": INT([0, 0, 1, 1, 0, 0, 1, 1])}  # fmt: skip
    return networks.onnx_model(nodes, {"x": [1, 3, size, size]}, {"y": [1, 4, size, size]}, constants, 13)


@pytest.mark.parametrize("equalize", [False, True])
def test_an_earlier_table_keeps_float_what_it_kept_float(equalize):
    """A table says which network it is of by a fingerprint, which is another where a float node became an
    operator: its reader makes the earlier network again."""
    graph = load_onnx(newer())
    assert {"gather", "sub"} <= {node.op for node in graph} and graph.former is not None
    before = graph.former()
    assert before.former is None and before.fingerprint != graph.fingerprint
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 3, 6, 6)).astype(F)} for i in range(2)]
    config = eq.QuantConfig(method="minmax", equalize=equalize)
    for mine in (before, graph):
        ready = eq.ScaleTable("", config, {}, {}).prepared(mine) if equalize else mine
        plan_ = plan(ready)
        assert (set(plan_.floats) == {"mirror", "sub"}) == (mine is before)
        table = start_table(ready, plan_, calibrate(ready, plan_, feeds, config), config)
        assert table.prepared(graph).fingerprint == table.model
        want = run_integer(mine, table, feeds[0])["y" if "y" in mine.outputs else mine.outputs[0]]
        np.testing.assert_array_equal(next(iter(run_integer(graph, table, feeds[0]).values())), want)
    wide = load_onnx(newer(10))  # at another size
    if not equalize:
        assert table.at_shapes(graph, wide).nodes.keys() == wide.nodes.keys()
    old = eq.QuantConfig(method="minmax")
    old = start_table(before, plan(before), calibrate(before, plan(before), feeds, old), old)
    assert {"mirror", "sub"} == set(old.check(old.at_shapes(before, wide)).floats)
    with pytest.raises(eq.errors.TableError, match="made for another model"):
        eq.ScaleTable("0" * 64, config, table.activations, table.weights).check(graph)
    assert pickle.loads(pickle.dumps(graph)).former is None


def editions():
    """A sum of two maps, which became an operator first, and what became one later."""
    nodes = [
        ("Conv", ["x", "w"], ["a"], "first", dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
        ("AveragePool", ["a"], ["p"], "pool", dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
        ("Sub", ["a", "p"], ["s"], "sub", {}),
        ("Transpose", ["s"], ["t"], "turn", dict(perm=[0, 2, 3, 1])),
        ("LayerNormalization", ["t", "gain"], ["n"], "norm", {}),
        ("Reshape", ["n", "rows"], ["r"], "rows", {}),
        ("ReduceMean", ["r"], ["m"], "mean", dict(axes=[2])),
        ("MatMul", ["r", "k"], ["q"], "product", {}),
        ("Mul", ["q", "m"], ["y"], "gate", {}),
    ]
    constants = {"w": np.arange(108, dtype=F).reshape(4, 3, 3, 3) % 7 - 3, "gain": F([1, 2, 3, 4]),
                 "rows": INT([6, 6, 4]), "k": np.arange(16, dtype=F).reshape(4, 4) - 8}  # fmt: skip
    return networks.onnx_model(nodes, {"x": [1, 3, 6, 6]}, {"y": [6, 6, 4]}, constants, 17)


#: the starts of the fingerprints that `editions` had when tables were made by edition 1, and by none
FINGERPRINTS = ["3044f439d590", "40bbe95c6e9f"]


def test_the_tables_of_every_edition_are_of_a_graph_that_is_read_still():
    """Story: only the graph of the first tables was read again, so that the tables of a network with a layer
    normalization, made the day before that became an operator, fitted none."""
    graph = made = load_onnx(editions())
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 3, 6, 6)).astype(F)} for i in range(2)]
    config, found = eq.QuantConfig(method="minmax"), []
    while made is not None:
        plan_ = plan(made)
        table = start_table(made, plan_, calibrate(made, plan_, feeds, config), config)
        assert table.prepared(graph).fingerprint == table.model == made.fingerprint
        (want,), (mine,) = (run_integer(each, table, feeds[0]).values() for each in (made, graph))
        np.testing.assert_array_equal(mine, want)
        found.append(made.fingerprint[:12])
        made = made.former() if made.former is not None else None
    assert found[1:] == FINGERPRINTS and len(found) == len(builder.EDITIONS) + 1


def test_large_maps_are_asked_in_groups_of_axes(monkeypatch):
    """float32 counts to 2**24: beyond it places of a map could not be told apart."""
    assert builder.COUNTED == 2**24
    monkeypatch.setattr(builder, "COUNTED", 60)
    for size in ((1, 4, 5, 12), (1, 4, 16, 3), (1, 64, 2, 2)):
        b = builder.Builder({"in": 1, "out": 1}, str)
        b.input("in", "in", size)
        flip = tuple(range(size[3]))[::-1]
        assert b.moved("out", "in", size, lambda x, flip=flip: x[..., flip])
        assert b.node("out").attrs["indices"] == (None, None, None, flip)


def test_a_quantized_model_with_them_is_taken_over():
    pytest.importorskip("tvm")
    graph, images = networks.joined()
    config, plan_ = eq.QuantConfig(method="minmax", bits=8), plan(graph)
    table = start_table(graph, plan_, calibrate(graph, plan_, images, config), config)
    taken = eq.import_quantized(to_qdq(graph, table))
    assert {"sub", "max", "min", "mul", "gather", "reduce_mean", "reduce_max"} <= {
        taken.graph[name].op for name in taken.plan.integer
    }
    (want,), (mine,) = (
        run_integer(*each, images[0]).values() for each in ((graph, table), (taken.graph, taken.table))
    )
    np.testing.assert_array_equal(mine, want)


def turned(after, *outputs):
    """A map that is read beside what an exporter of channels-last code makes of it."""
    first = ("Conv", ["x", "w"], ["m"], "first", {}), ("Relu", ["m"], ["r"], "beside", {})
    last = ("Transpose", ["m"], ["t"], "turn", dict(perm=[0, 2, 3, 1]))
    return [*first, last, *after], ["r", *outputs]


SHARED = {
    "a gate of channels": turned([("Mul", ["t", "v"], ["u"], "scale", {})], "u"),
    "turned back": turned(
        [("Transpose", ["t"], ["b"], "back", dict(perm=[0, 3, 1, 2])), ("Add", ["b", "c"], ["u"], "bias", {})],
        "u",
    ),
    "a sum of three": (
        [("Conv", ["x", "w"], ["m"], "first", {}),
         ("ReduceMean", ["x"], ["y"], "mean", dict(axes=[1, 2, 3], keepdims=0)),
         ("Sum", ["m", "c", "y"], ["u"], "sum", {})],
        ["u"],
    ),
    "slopes of a map of rows": (
        [("MatMul", ["x", "k"], ["m"], "rows", {}), ("PRelu", ["m", "c"], ["u"], "slopes", {})], ["u"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARED)
def test_what_one_reader_makes_of_a_map_no_other_reader_sees(case):
    """Story: behind a Transpose to channels last the constants of one reader were folded into the layer that
    others read, too; a Sum that stayed float after its constant was folded added it twice; slopes of the axis
    that a MatMul leaves in place became those of its columns. Each was a wrong number without a word."""
    nodes, outputs = SHARED[case]
    rng = np.random.default_rng(0)
    v, w, k = (rng.standard_normal(shape).astype(F) for shape in ((4,), (4, 4, 1, 1), (5, 4)))
    made = {name: [f"{name}{i}" for i in range(4)] for name in outputs}
    constants = {"v": v, "c": v.reshape(4, 1, 1), "w": w, "k": k}
    used = {name for _, inputs, *_ in nodes for name in inputs}
    constants = {name: value for name, value in constants.items() if name in used}
    model = networks.onnx_model(nodes, {"x": [1, 4, 6, 5]}, made, constants, 17)
    x = rng.standard_normal((1, 4, 6, 5)).astype(F)
    wanted = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    graph = load_onnx(model)
    for each in (graph, graph.former() if graph.former else graph):
        found = each.run({"x": x})
        for name, want in zip(outputs, wanted, strict=True):
            np.testing.assert_allclose(found[name], want, rtol=0, atol=1e-5)
