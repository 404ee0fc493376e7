"""Coverage says what runs in integers, of all that multiplies: a float convolution is not left out."""

import json

import networks
import numpy as np
import pytest

from tvm_easyquant.scales.partition import Coverage, plan

pytest.importorskip("tvm")
import tvm_easyquant as eq
from tvm_easyquant.relay import float_op
from tvm_easyquant.relay.framework import tvm

CONV = 8 * 8 * 4 * 9 * 3  # multiply-accumulates of the convolution that every network begins with


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def behind(*nodes, shape=None, rank=4, inputs=(), **constants):
    """conv2d of ``x`` (1, 3, 8, 8) to ``a`` (1, 4, 8, 8), as ``r`` of another ``shape``, then the nodes to ``y``."""
    constants = {"w": normal(4, 3, 3, 3), **constants}
    first = [("Conv", ["x", "w"], ["a"], "conv", dict(kernel_shape=[3, 3], pads=[1] * 4))]
    if shape is not None:
        constants["shape"] = np.int64(shape)
        first.append(("Reshape", ["a", "shape"], ["r"], "reshape", {}))
    inputs, outputs = {"x": [1, 3, 8, 8], **dict(inputs)}, {"y": [f"y{i}" for i in range(rank)]}
    return networks.onnx_model([*first, *nodes], inputs, outputs, constants)


#: name -> (model, the multiply-accumulates of what stays float; None: nobody knows)
FLOATS = {
    "conv3d": (
        behind(
            ("Conv", ["r", "v"], ["y"], "c3", dict(kernel_shape=[1, 2, 2])),
            shape=[1, 2, 2, 8, 8], rank=5, v=normal(3, 2, 1, 2, 2),
        ),
        2 * 7 * 7 * 3 * 2 * 4,
    ),
    "transposed convolution, unequal strides": (
        behind(
            ("ConvTranspose", ["a", "v"], ["y"], "up", dict(kernel_shape=[2, 2], strides=[2, 1])),
            v=normal(4, 3, 2, 2),
        ),
        8 * 8 * 4 * 3 * 4,
    ),
    "computed weights": (
        behind(("Conv", ["a", "k"], ["y"], "cross", dict(kernel_shape=[3, 3])), inputs={"k": [2, 4, 3, 3]}),
        6 * 6 * 2 * 4 * 9,
    ),
    "product with what all of the batch share": (
        behind(
            ("Transpose", ["r"], ["t"], "turn", dict(perm=[0, 2, 1])),
            ("ReduceMax", ["t"], ["one"], "max", dict(axes=[0])), ("MatMul", ["r", "one"], ["y"], "mm", {}),
            shape=[2, 8, 16], rank=3,
        ),
        2 * 8 * 8 * 16,
    ),
    "softmax": (behind(("Softmax", ["a"], ["y"], "softmax", dict(axis=1))), 0),
    "reduction": (behind(("ReduceMin", ["a"], ["y"], "min", dict(axes=[1]))), 0),
    "resize": (
        behind(("Resize", ["a", "", "s"], ["y"], "up", dict(mode="cubic")), s=np.float32([1, 1, 2, 2])), 0,
    ),
    "einsum": (
        behind(("Einsum", ["a", "a"], ["y"], "sum", dict(equation="nchw,nchw->nhw")), rank=3), 4 * 8 * 8
    ),
    "lstm": (
        behind(
            ("LSTM", ["r", "v", "u"], ["y"], "lstm", dict(hidden_size=4)),
            shape=[8, 1, 32], v=normal(1, 16, 32), u=normal(1, 16, 4),
        ),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOATS)
def test_what_stays_float_counts(name):
    """Story: a network of one Conv2d and many others was said to run 100 % in integers."""
    model, macs = FLOATS[name]
    graph = eq.load_onnx(model)
    assert sum(node.op == "float" for node in graph) >= 1
    coverage = plan(graph).coverage(graph)
    assert coverage.at_most == (macs is None)
    assert coverage.percent == pytest.approx(100 * CONV / (CONV + (macs or 0)))
    assert graph.macs == CONV + (macs or 0)
    assert str(coverage).startswith("at most 100.0 %" if macs is None else f"{coverage.percent:.1f} %")


def test_the_text():
    assert str(Coverage(92.345, False)) == "92.3 % of the multiply-accumulates"
    assert str(Coverage(92.345, True)) == "at most 92.3 % of the multiply-accumulates"


def test_what_is_known_to_have_no_products_is_known_to_relay():
    known = set(tvm.ir.Op.list_op_names())
    assert known >= float_op.NO_PRODUCTS and known >= set(float_op.MACS)
    assert not float_op.NO_PRODUCTS & set(float_op.MACS)


@pytest.mark.parametrize("name, text", [("lstm", "at most 100.0 %"), ("conv3d", "74.6 %")])
def test_every_place_prints_it(name, text, tmp_path, capsys, monkeypatch):
    """The dry run, the summary and what reads a table; JSON says whether it is an upper bound."""
    from tvm_easyquant import cli

    def printed(*arguments):
        monkeypatch.setattr("sys.argv", ["tvmc-easyquant", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return capsys.readouterr().out

    model, table, images = tmp_path / "net.onnx", tmp_path / "net.json", tmp_path / "images.npz"
    model.write_bytes(FLOATS[name][0].SerializeToString())
    np.savez(images, x=normal(4, 3, 8, 8))
    search = ["quantize", model, "--calibration", images, "--method", "minmax", "-o", table]
    for arguments in (["quantize", model, "--dry-run"], search):
        assert f"{text} of the multiply-accumulates" in printed(*arguments)
        facts = json.loads(printed(*arguments, "--json"))
        assert facts["coverage_is_upper_bound"] == (name == "lstm")
        assert f"{facts['coverage_percent']:.1f} %" in text
    ncnn, back = tmp_path / "net.table", tmp_path / "back.json"
    printed("export-ncnn", model, "--table", table, "-o", ncnn)
    assert f"{text} of the multiply-accumulates" in printed(
        "import-ncnn", model, "--ncnn", ncnn, "-o", back
    )
