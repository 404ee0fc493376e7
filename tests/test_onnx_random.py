"""Random legal ONNX models: our float Graph gives what ONNX Runtime gives; and the generator asks widely and fairly."""

import hashlib
from collections import Counter, defaultdict

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime", minversion="1.22")  # older ones are wrong, or crash, on rare attributes
import onnx_random
from onnx import TensorProto, helper, numpy_helper
from onnx_operators import LISTED
from onnx_random import OPERATORS, apart, differs, random_model, session
from python_process import python

AUTO = {"NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"}
#: (operator, attribute) -> the values that 300 graphs must show
VALUES = {
    ("ArgMax", "keepdims"): {0, 1},
    ("ArgMax", "select_last_index"): {0, 1},
    ("AveragePool", "auto_pad"): AUTO,
    ("AveragePool", "ceil_mode"): {0, 1},
    ("AveragePool", "count_include_pad"): {0, 1},
    ("Cast", "to"): {1, 3, 6, 7, 9, 10, 11},
    ("Conv", "auto_pad"): AUTO,
    ("Conv", "group"): {1, 2, 3},
    ("ConvTranspose", "auto_pad"): AUTO,
    ("DepthToSpace", "mode"): {"DCR", "CRD"},
    ("Gelu", "approximate"): {"none", "tanh"},
    ("Gemm", "transA"): {0, 1},
    ("Gemm", "transB"): {0, 1},
    ("LpNormalization", "p"): {1, 2},
    ("LpPool", "auto_pad"): AUTO,
    ("LpPool", "ceil_mode"): {0, 1},
    ("LpPool", "p"): {1, 2, 3},
    ("MaxPool", "auto_pad"): AUTO,
    ("MaxPool", "ceil_mode"): {0, 1},
    ("MaxPool", "storage_order"): {0, 1},
    ("Pad", "mode"): {"constant", "reflect", "edge", "wrap"},
    ("ReduceSum", "keepdims"): {0, 1},
    ("ReduceMax", "noop_with_empty_axes"): {0, 1},
    ("Reshape", "allowzero"): {0, 1},
    ("Resize", "antialias"): {0, 1},
    ("Resize", "coordinate_transformation_mode"): {
        "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
        "tf_half_pixel_for_nn",
    },
    ("Resize", "exclude_outside"): {0, 1},
    ("Resize", "keep_aspect_ratio_policy"): {"stretch", "not_larger", "not_smaller"},
    ("Resize", "mode"): {"nearest", "linear", "cubic"},
    ("Resize", "nearest_mode"): {"round_prefer_floor", "round_prefer_ceil", "floor", "ceil"},
    ("TopK", "largest"): {0, 1},
    ("Upsample", "mode"): {"nearest", "linear"},
}  # fmt: skip


def wrong(seeds):
    """What our float Graph makes of random models: a line for each that it refuses or runs differently."""
    reader = pytest.importorskip("tvm_easyquant.readers.onnx_float")
    found = []
    for seed in seeds:
        model, feed = random_model(seed)
        theirs = session(model).run(None, feed)
        try:
            ours = reader.load(model).run(feed)
        except Exception as error:  # noqa: BLE001 - whatever gets out is reported with its seed
            found.append(f"seed {seed}: {type(error).__name__}: {error}")
            continue
        if why := differs(model, feed, ours, theirs):
            found.append(f"seed {seed}: {why}")
    return found


@pytest.mark.parametrize("block", range(10))
def test_graphs_equal_onnx_runtime(block):
    assert wrong(range(10 * block, 10 * block + 10)) == []


@pytest.mark.slow
@pytest.mark.parametrize("block", range(1, 20))
def test_many_graphs_equal_onnx_runtime(block):
    assert wrong(range(100 * block, 100 * block + 100)) == []


def test_the_generator_knows_every_operator_of_the_list():
    assert sorted(LISTED) == OPERATORS


@pytest.mark.ci
def test_300_graphs_use_every_operator_and_most_values_of_attributes():
    used, values, opsets, ranks, features = Counter(), defaultdict(set), Counter(), Counter(), Counter()
    for seed in range(300):
        model, feed = random_model(seed)
        graph = model.graph
        opsets[model.opset_import[0].version] += 1
        ranks.update(a.ndim for a in feed.values())
        assert 0 < len(graph.node) <= 30
        for node in graph.node:
            used[node.op_type] += 1
            for a in node.attribute:
                value = helper.get_attribute_value(a)
                if isinstance(value, (int, bytes)):
                    values[node.op_type, a.name].add(value.decode() if isinstance(value, bytes) else value)
            features["empty input"] += "" in node.input
            features["unnamed"] += not node.name
        weights = {t.name for t in graph.initializer}
        features["several inputs"] += len(feed) > 1
        features["several outputs"] += len(graph.output) > 1
        features["initializer that is an input"] += any(i.name in weights for i in graph.input)
        features["integer input"] += any(a.dtype.kind in "iu" for a in feed.values())
        features["integer output"] += any(
            o.type.tensor_type.elem_type != TensorProto.FLOAT for o in graph.output
        )
        features["shape that folds"] += any(n.op_type == "Shape" for n in graph.node)
    assert {op: used[op] for op in OPERATORS if used[op] < 5} == {}
    missing = {
        key: sorted(map(str, want - values[key])) for key, want in VALUES.items() if want - values[key]
    }
    assert missing == {}
    assert set(opsets) == set(onnx_random.OPSETS) and set(ranks) >= {1, 2, 3, 4, 5}
    assert {name: n for name, n in features.items() if n < 20} == {}


def digest(seeds):
    found = hashlib.sha256()
    for seed in seeds:
        model, feed = random_model(seed)
        found.update(model.SerializeToString(deterministic=True))
        for name, array in feed.items():
            found.update(name.encode() + array.tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_gives_the_same_bytes_in_another_process(hash_seed):
    code = "import test_onnx_random; print(test_onnx_random.digest(range(5)))"
    other = python(code, PYTHONHASHSEED=hash_seed)
    assert other.stdout.split() == [digest(range(5))], other.stderr


def misread(node):
    """Whether onnx's own shape inference (1.16 to 1.23) may misread it: constants in value_ints, a function's body,
    windows of a ceil-mode pool that start behind the input, an output_shape."""
    names = {a.name for a in node.attribute}
    return node.op_type == "MeanVarianceNormalization" or bool(
        names & {"value_ints", "ceil_mode", "output_shape"}
    )


def test_models_pass_the_strict_checker():
    strict = 0
    for seed in range(40):
        model, _ = random_model(seed, nodes=15)
        if not any(map(misread, model.graph.node)):
            onnx.checker.check_model(model, full_check=True)
            strict += 1
    assert strict > 15


def one_node(op, x, *constants, **attributes):
    names = [f"c{i}" for i in range(len(constants))]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], **attributes)], "g", [onnx_random.value_info("x", x)],
        [onnx.ValueInfoProto(name="y")], [numpy_helper.from_array(c, n) for c, n in zip(constants, names, strict=False)],
    )  # fmt: skip
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_difference_is_told():
    x = np.array([1.0, 2.0], np.float32)
    model = one_node("Relu", x)
    assert differs(model, {"x": x}, {"y": x}, [x]) is None
    assert "0.5 apart, of 2" in differs(model, {"x": x}, {"y": x + np.float32(0.5)}, [x])
    assert "float32(1,)" in differs(model, {"x": x}, {"y": x[:1]}, [x])
    assert "outputs ['z']" in differs(model, {"x": x}, {"z": x}, [x])


def test_at_a_step_double_decides():
    """Floor(0.5 / 0.1): float32 rounds the quotient up to 5.0, double says 4.99...: ours may say 4, not 6."""
    x = np.array([0.5], np.float32)
    model = one_node("Div", x, np.array([0.1], np.float32))
    model.graph.node[0].output[0] = "q"
    model.graph.node.append(helper.make_node("Floor", ["q"], ["y"]))
    theirs = session(model).run(None, {"x": x})
    truth = np.floor(x.astype(float) / np.float64(np.float32(0.1))).astype(np.float32)
    assert theirs[0] != truth
    assert differs(model, {"x": x}, {"y": truth}, theirs) is None
    assert differs(model, {"x": x}, {"y": truth + 2}, theirs) is not None


def test_integers_and_booleans_must_be_equal():
    a = np.array([1, 2], np.int64)
    assert (
        apart(a, a) is None and apart(a, a + 1) and apart(a > 1, a > 0) and apart(a, a.astype(np.float32))
    )
    assert apart(np.array([np.nan], np.float32), np.ones(1, np.float32))
