"""Images in: a network that takes bytes computes what it computes of the same pixels preprocessed in numpy."""

import importlib
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from tvm_easyquant import package
from tvm_easyquant.errors import ConfigError, DeployError, GraphError, TableError, UserError
from tvm_easyquant.host import installed
from tvm_easyquant.images import Preprocess
from tvm_easyquant.scales.image_input import ImageInput, first_nodes, image_input
from tvm_easyquant.scales.integer import run_integer

IMAGENET = dict(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PREPROCESS = {
    "RGB": Preprocess(**IMAGENET),
    "BGR": Preprocess(color="BGR", mean=(103.94, 116.78, 123.68), std=(57.4, 58.2, 61.0)),
    "one number for all": Preprocess(scale=1 / 127.5, mean=1),
    "GRAY": Preprocess(color="GRAY", scale=1 / 255, mean=0.13, std=0.3),
}
#: each byte in each channel, and more of them
SIZE = 20


def pictures(channels=3, count=3, seed=0):
    """uint8 (1, SIZE, SIZE, channels); the first holds all 256 bytes in each channel."""
    rng = np.random.default_rng(seed)
    every = [rng.permutation(np.arange(SIZE * SIZE) % 256) for _ in range(channels)]
    first = np.stack(every, -1).astype(np.uint8).reshape(1, SIZE, SIZE, channels)
    return [first, *rng.integers(0, 256, (count - 1, 1, SIZE, SIZE, channels), np.uint8)]


def quantized(preprocess, network, bits=7, **options):
    """(Quantized, pictures, what the network takes without the fold), by pictures."""
    graph, _ = network(size=SIZE, channels=preprocess.channels)
    shots = pictures(preprocess.channels)
    feeds = [preprocess.normalized(shot.astype(np.float32)) for shot in shots]
    q = eq.quantize(graph, feeds, method="minmax", bits=bits, preprocess=preprocess, **options)
    return q, shots, feeds


def chain(size, channels):
    b = networks.Builder(size=size, channels=channels)
    b.conv("second", b.relu("first.relu", b.conv("first", "image", 8)), 3, kernel=1)
    return b.graph("second"), ()


def same(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


# -- without a compiler


def test_what_the_network_takes_is_what_preprocess_makes_of_the_picture():
    for color in ("RGB", "BGR"):
        for layout in ("NCHW", "NHWC"):
            preprocess = Preprocess(**IMAGENET, color=color, layout=layout)
            shot = pictures()[1]
            for given in ("NCHW", "NHWC"):
                array = shot if given == "NHWC" else shot.transpose(0, 3, 1, 2)
                image = ImageInput("image", given, array.shape, preprocess)
                same([image.unfolded(array)], [preprocess(shot[0])])


def test_the_values_are_those_of_the_networks_channels():
    image = ImageInput("image", "NHWC", (1, 4, 4, 3), PREPROCESS["BGR"])
    values = image.values
    assert values.shape == (3, 256) and values.dtype == np.float32
    assert values[0, 7] == (np.float32(7) - np.float32(103.94)) / np.float32(57.4)  # blue comes first


def test_what_has_no_such_input_is_told_in_a_line():
    q, _, _ = quantized(PREPROCESS["RGB"], chain)
    graph, table = q.graph, q.table
    other = replace(table, data={})
    grey = replace(table, data={"preprocess": {"color": "GRAY"}})
    tiny = replace(table, data={"preprocess": {"std": 1e-44}})
    two = eq.quantize(*flat_network(), method="minmax")
    cases = [
        ((graph, table, None, "int8"), ConfigError, "input_dtype is 'int8'; use uint8, or leave it out"),
        ((graph, table, None, np.uint8), ConfigError, "input_dtype is <class 'numpy.uint8'>; use uint8"),
        ((graph, table, "HWC", "uint8"), ConfigError, "input_layout is 'HWC'; use one of NHWC, NCHW"),
        ((graph, table, "NHWC", None), ConfigError, "input_layout NHWC is that of bytes; give input_dtype uint8"),
        ((graph, other, "NHWC", "uint8"), TableError, "has none: quantize with --scale, --mean, --std"),
        ((graph, grey, "NHWC", "uint8"), GraphError, r"makes 1 channels \(GRAY, NCHW\), input image \(1, 3, 20, 20\)"),
        ((graph, tiny, "NHWC", "uint8"), GraphError, "bytes numbers that are not finite"),
        ((two.graph, two.table, None, "uint8"), GraphError, r"input image has shape \(1, 4\); an image has four"),
    ]  # fmt: skip
    for arguments, error, message in cases:
        with pytest.raises(error, match=message) as told:
            image_input(*arguments)
        assert "\n" not in str(told.value)
    assert image_input(graph, other) is None


def flat_network():
    """(graph of an input with two dimensions, its samples)"""
    from tvm_easyquant.network.graph import Graph
    from tvm_easyquant.network.node import Node

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1, 1, 4, 2)).astype(np.float32)
    nodes = [
        Node("image", "input", (), (1, 4)),
        Node("out", "dense", ("image",), (1, 2), {}, weight, np.zeros(2, np.float32)),
    ]
    return Graph(nodes, ["out"]), [rng.standard_normal((1, 4)).astype(np.float32) for _ in range(3)]


def test_several_inputs_or_one_that_is_no_float_are_refused():
    from tvm_easyquant.network.graph import Graph
    from tvm_easyquant.network.node import Node

    q, _, _ = quantized(PREPROCESS["RGB"], chain)
    nodes = [Node("a", "input", (), (1, 4, 4, 3)), Node("b", "input", (), (1, 4, 4, 3))]
    both = Graph([*nodes, Node("sum", "add", ("a", "b"), (1, 4, 4, 3))], ["sum"])
    with pytest.raises(GraphError, match=r"one image; the network's inputs are \['a', 'b'\]"):
        image_input(both, q.table, None, "uint8")
    own = Graph([Node("a", "input", (), (1, 4, 4, 3), dtype="uint8")], ["a"])
    with pytest.raises(GraphError, match="input a is uint8 in the model itself; leave input_dtype out"):
        image_input(own, q.table, None, "uint8")


@pytest.mark.parametrize(
    "inputs", [None, {"x": {"shape": [1, "a"], "dtype": "uint8", "layout": "NHWC"}}, [1]]
)
def test_a_record_without_its_inputs_is_read_and_a_damaged_one_is_not(inputs):
    taken = {"x": package.Input((1, 4, 4, 3), "uint8", "NHWC")}
    variant = package.Variant(
        "generic", package.Needs("generic", "x86_64", ()), "llvm", "0.19.0", inputs=taken
    )
    record = package.Record("1.0", {}, (variant,))
    path = Path("net.tar")
    assert package._parsed(record.to_json().encode(), path) == record
    content = json.loads(record.to_json())
    row = content["content"]["variants"][0]
    del row["inputs"]
    if inputs is not None:
        row["inputs"] = inputs
    content["sha256"] = package._digest(content["content"])
    text = json.dumps(content).encode()
    if inputs is None:
        assert package._parsed(text, path).variants[0].inputs == {}
    else:
        with pytest.raises(DeployError, match=r"net\.tar: its easyquant\.json is damaged"):
            package._parsed(text, path)


# -- compiled


def run_both(q, shots, feeds, layout, **options):
    """(Built, its outputs for the pictures in a layout, those of the norm for the feeds)."""
    built = q.build(input_layout=layout, input_dtype="uint8", **options)
    arrays = [
        shot if layout == "NHWC" else np.ascontiguousarray(shot.transpose(0, 3, 1, 2)) for shot in shots
    ]
    assert built.inputs == {"image": (arrays[0].shape, "uint8")} and built.layouts == {"image": layout}
    got = [built({"image": array})[0] for array in arrays]
    want = [run_integer(q.graph, q.table, {"image": feed})[q.graph.outputs[0]] for feed in feeds]
    return built, got, want


@pytest.mark.parametrize(("name", "bits"), [("RGB", 7), ("BGR", 8), ("one number for all", 7), ("GRAY", 8)])
def test_the_integers_are_the_same_and_so_are_the_kernels(name, bits):
    pytest.importorskip("tvm")
    q, shots, feeds = quantized(PREPROCESS[name], chain, bits)
    plain = q.build()
    for layout in ("NHWC", "NCHW"):
        built, got, want = run_both(q, shots, feeds, layout)
        same(got, want)
        same(got, [plain({"image": feed})[0] for feed in feeds])
        kernels = [
            [(layer.name, layer.spec, layer.choice.kernel.name) for layer in b.layers]
            for b in (built, plain)
        ]
        assert kernels[0] == kernels[1]  # whose tuning records serve both


def both(size, channels):
    """The image is read by two layers, of which one may stay float."""
    b = networks.Builder(size=size, channels=channels)
    b.join("sum", b.conv("integer", "image", 4), b.conv("float", "image", 4))
    b.conv("last", b.relu("sum.relu", "sum"), 3, kernel=1)
    return b.graph("last"), ()


@pytest.mark.parametrize("skip", [["integer", "float"], ["float"]])
def test_a_first_node_that_is_float_reads_a_float_table(skip):
    pytest.importorskip("tvm")
    q, shots, feeds = quantized(PREPROCESS["BGR"], both, skip=skip)
    assert set(skip) <= set(q.plan.floats)
    plain = q.build()
    for layout in ("NHWC", "NCHW"):
        _, got, _ = run_both(q, shots, feeds, layout)
        same(got, [plain({"image": feed})[0] for feed in feeds])


def test_a_model_whose_own_input_is_nhwc(tmp_path):
    """Its channels are last already: nothing is transposed for bytes in that order."""
    pytest.importorskip("tvm")
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    nodes = [
        ("Transpose", ["x"], ["t"], "turn", dict(perm=[0, 3, 1, 2])),
        ("Conv", ["t", "w"], ["y"], "conv", dict(kernel_shape=[3, 3])),
    ]
    weight = rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    model = networks.onnx_model(
        nodes, {"x": (1, SIZE, SIZE, 3)}, {"y": (1, 8, SIZE - 2, SIZE - 2)}, {"w": weight}
    )
    onnx.save(model, tmp_path / "net.onnx")
    preprocess = replace(PREPROCESS["RGB"], layout="NHWC")
    shots = pictures()
    feeds = [preprocess(shot[0]) for shot in shots]
    q = eq.quantize(tmp_path / "net.onnx", feeds, method="minmax", preprocess=preprocess)
    want = [run_integer(q.graph, q.table, {"x": feed}) for feed in feeds]
    for layout in (None, "NCHW"):
        built = q.build(input_layout=layout, input_dtype="uint8")
        arrays = [shot if layout is None else shot.transpose(0, 3, 1, 2) for shot in shots]
        assert built.layouts == {"x": layout or "NHWC"} and built.inputs["x"] == (arrays[0].shape, "uint8")
        same([built({"x": array})[0] for array in arrays], [next(iter(made.values())) for made in want])


@pytest.mark.linker
def test_the_program_that_ships_says_what_it_takes(tmp_path):
    pytest.importorskip("tvm")
    from tvm_easyquant.deploy import Program

    q, shots, feeds = quantized(PREPROCESS["RGB"], chain)
    built, _, want = run_both(q, shots, feeds, "NHWC")
    built.export(tmp_path / "net.tar")
    with tarfile.open(tmp_path / "net.tar") as tar:
        record = json.load(tar.extractfile("easyquant.json"))
    (variant,) = record["content"]["variants"]
    assert variant["inputs"] == {"image": {"shape": [1, SIZE, SIZE, 3], "dtype": "uint8", "layout": "NHWC"}}
    built.export_library(tmp_path / "net.so")
    for file in ("net.so", "net.tar"):
        program = Program(tmp_path / file)
        assert program.inputs == {"image": ((1, SIZE, SIZE, 3), np.uint8)}
        assert program.layouts == {"image": "NHWC"}
        same([program({"image": shot})[0] for shot in shots], want)
    for wrong in (feeds[0], shots[0].transpose(0, 3, 1, 2), shots[0].astype(np.int8)):
        message = rf"input image is {wrong.dtype} .*takes uint8 \(1, {SIZE}, {SIZE}, 3\), NHWC"
        for run, error in ((program, DeployError), (built, GraphError)):
            with pytest.raises(error, match=message):
                run({"image": wrong})


@pytest.mark.relay
def test_tvmc_does_not_cut_wider_integers_to_bytes():
    """It took uint16 for uint8, as both are integers without a sign: 256 became 0."""
    pytest.importorskip("tvm")
    from tvm_easyquant.relay.tvmc import check_inputs

    taken = {"image": (1, 4, 4, 3)}, {"image": "uint8"}
    check_inputs(*taken, {"image": np.zeros((1, 4, 4, 3), np.uint8)})
    with pytest.raises(UserError, match=r"image is uint16 \(1, 4, 4, 3\), the network takes uint8"):
        check_inputs(*taken, {"image": np.zeros((1, 4, 4, 3), np.uint16)})


def test_a_fleet_takes_bytes_too(tmp_path):
    pytest.importorskip("tvm")
    from topi_ext import isa

    q, shots, feeds = quantized(PREPROCESS["RGB"], chain)
    rows = list(dict.fromkeys(["generic", isa.of_host()[-1]]))
    fleet = q.build(isa=rows, input_layout="NHWC", input_dtype="uint8")
    want = [run_integer(q.graph, q.table, {"image": feed})["second"] for feed in feeds]
    for built in fleet.variants.values():
        assert built.layouts == {"image": "NHWC"}
        same([built({"image": shot})[0] for shot in shots], want)


@pytest.mark.relay
def test_a_table_of_bytes_that_is_not_the_preprocessing_is_never_built(monkeypatch):
    """Every byte in every channel is looked up by the operators that are compiled, before they are."""
    pytest.importorskip("tvm")
    q, _, _ = quantized(PREPROCESS["BGR"], chain)
    values = ImageInput.values.fget

    def one_wrong(self):
        table = values(self)
        table[2, 255] = table[2, 0]
        return table

    with monkeypatch.context() as patch:
        patch.setattr(ImageInput, "values", property(one_wrong))
        with pytest.raises(GraphError, match="input image: its table of bytes is not its preprocessing"):
            q.build(input_dtype="uint8")
    monkeypatch.setattr(ImageInput, "reverses", False)  # the channels in the wrong order
    with pytest.raises(GraphError, match="its table of bytes is not its preprocessing"):
        q.build(input_dtype="uint8")


# -- models whose own input is bytes


MEAN, STD = np.float32([123.7, 116.3, 103.5]), np.float32([58.4, 57.1, 57.4])
CAST, TURN = ("Cast", [], dict(to=1)), ("Transpose", [], dict(perm=[0, 3, 1, 2]))
#: name -> (first nodes: operator, constants, attributes; layout; constants; what is folded, or ())
OWN = {
    "a scale for all": ([CAST, ("Sub", ["a"], {}), ("Div", ["a"], {}), TURN], "NHWC", dict(a=np.float32(127.5)),
                        ["n0", "n2", "n3"]),  # two of them are one node
    "by channel": ([CAST, ("Sub", ["a"], {}), ("Div", ["b"], {}), TURN], "NHWC", dict(a=MEAN, b=STD), ["n0", "n1", "n2", "n3"]),
    "channels first": ([CAST, ("Div", ["a"], {})], "NCHW", dict(a=np.float32(255)), ["n0", "n1"]),
    "BGR by Gather": ([("Gather", ["i"], dict(axis=3)), CAST, TURN, ("Div", ["a"], {})], "NHWC",
                      dict(i=np.int64([2, 1, 0]), a=np.float32(255)), ["n0", "n1", "n2", "n3"]),
    "BGR by Slice": ([CAST, ("Slice", ["s", "e", "along", "s"], {}), ("Div", ["b"], {}), TURN], "NHWC",
                     dict(s=np.int64([-1]), e=np.int64([-9]), along=np.int64([3]), b=STD), ["n0", "n1", "n2", "n3"]),
    "turned first": ([TURN, CAST], "NHWC", {}, ["n0", "n1"]),
    "clipped": ([CAST, ("Clip", ["a", "b"], {}), TURN], "NHWC", dict(a=np.float32(16), b=np.float32(235)), ["n0", "n1", "n2"]),
    "not by a constant picture": ([CAST, ("Sub", ["a"], {}), TURN], "NHWC",
                                  dict(a=np.arange(SIZE * SIZE * 3, dtype=np.float32).reshape(SIZE, SIZE, 3)), ()),
    "not by a constant row": ([CAST, ("Sub", ["a"], {}), TURN], "NHWC",
                              dict(a=np.arange(SIZE, dtype=np.float32).reshape(SIZE, 1)), ()),
    "not in another order": ([("Gather", ["i"], dict(axis=3)), CAST, TURN], "NHWC", dict(i=np.int64([1, 2, 0])), ()),
    "not from right to left": ([CAST, ("Slice", ["s", "e", "along", "s"], {}), TURN], "NHWC",
                               dict(s=np.int64([-1]), e=np.int64([-99]), along=np.int64([2])), ()),
    "not by its neighbours": ([CAST, ("Softmax", [], dict(axis=3)), TURN], "NHWC", {}, ()),
}  # fmt: skip


def own_bytes(name, dtype="uint8"):
    """(the model, its pictures): nodes n0, n1, ..., then two convolutions."""
    onnx = pytest.importorskip("onnx")
    first, layout, constants, _ = OWN[name]
    rng = np.random.default_rng(0)
    shape = (1, SIZE, SIZE, 3) if layout == "NHWC" else (1, 3, SIZE, SIZE)
    last, nodes = "x", []
    for i, (op, more, attributes) in enumerate(first):
        nodes.append((op, [last, *more], [f"t{i}"], f"n{i}", attributes))
        last = f"t{i}"
    nodes += [("Conv", [last, "w1"], ["c"], "conv1", dict(pads=[1] * 4)), ("Relu", ["c"], ["r"], "relu", {}),
              ("Conv", ["r", "w2"], ["y"], "conv2", {})]  # fmt: skip
    weights = {
        n: rng.standard_normal(s).astype(np.float32)
        for n, s in (("w1", (8, 3, 3, 3)), ("w2", (4, 8, 1, 1)))
    }
    kinds = {"uint8": onnx.TensorProto.UINT8, "int8": onnx.TensorProto.INT8}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, i, o, n, **a) for op, i, o, n, a in nodes], "bytes",
        [onnx.helper.make_tensor_value_info("x", kinds[dtype], shape)],
        [onnx.helper.make_tensor_value_info("y", 1, (1, 4, SIZE, SIZE))],
        [onnx.numpy_helper.from_array(v, k) for k, v in (weights | constants).items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    shots = [
        shot if layout == "NHWC" else np.ascontiguousarray(shot.transpose(0, 3, 1, 2))
        for shot in pictures()
    ]
    return model, [shot.view(dtype) for shot in shots]


def of_host():
    """The module that writes the installed host's modules."""
    pytest.importorskip("tvm")
    return importlib.import_module(f"tvm_easyquant.{installed().name}.rewrite")


@pytest.mark.parametrize("name", OWN)
def test_the_first_nodes_of_a_model_of_bytes_are_a_table_where_they_are_one(name):
    model, shots = own_bytes(name)
    q = eq.quantize(model, shots, method="minmax")
    found, want = first_nodes(q.graph, q.plan), OWN[name][3]
    assert sorted(found.covered if found else ()) == sorted(want)
    if found:
        assert found.values.shape == (3, 256) and found.tensor in q.plan.site_of
        for shot in shots:
            same([found.looked_up(shot)], [found.unfolded(shot)])


@pytest.mark.parametrize(("name", "dtype"), [
    ("by channel", "uint8"),
    ("BGR by Gather", "int8"),
    *(pytest.param(*case, marks=pytest.mark.ci) for case in (
        ("by channel", "int8"), ("BGR by Slice", "uint8"), ("channels first", "int8"),
        ("not by a constant row", "uint8"), ("clipped", "uint8"),
    )),
])  # fmt: skip
def test_such_a_model_computes_what_it_did(name, dtype, monkeypatch):
    """Its first nodes stayed float: a Cast, a Sub, a Div and a quantize of every pixel."""
    rewriter = of_host()
    model, shots = own_bytes(name, dtype)
    q = eq.quantize(model, shots, method="minmax")
    built = q.build()
    assert built.inputs == {"x": (shots[0].shape, dtype)} and built.layouts == {}
    assert ("divide" in str(q.module)) == (not OWN[name][3] and "Div" in str(OWN[name][0]))
    got = [built({"x": shot})[0] for shot in shots]
    same(got, [run_integer(q.graph, q.table, {"x": shot})["conv2"] for shot in shots])
    monkeypatch.setattr(rewriter, "first_nodes", lambda *_: None)
    plain = eq.Quantized(q.table, q.graph, q.plan).build()
    same(got, [plain({"x": shot})[0] for shot in shots])
    kernels = [
        [(layer.name, layer.spec, layer.choice.kernel.name) for layer in b.layers] for b in (built, plain)
    ]
    assert kernels[0] == kernels[1]


def test_first_nodes_that_others_read_too_stay():
    model, shots = own_bytes("by channel")
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[1].name = "t1"
    del model.graph.output[1].type.tensor_type.shape.dim[:]
    for size in (1, SIZE, SIZE, 3):
        model.graph.output[1].type.tensor_type.shape.dim.add().dim_value = size
    q = eq.quantize(model, shots, method="minmax")
    assert first_nodes(q.graph, q.plan) is None


def test_a_table_that_is_not_the_first_nodes_is_never_built(monkeypatch):
    rewriter = of_host()
    model, shots = own_bytes("by channel")
    q = eq.quantize(model, shots, method="minmax")
    found = first_nodes(q.graph, q.plan)
    found.values[1, 200] += 1
    monkeypatch.setattr(rewriter, "first_nodes", lambda *_: found)
    with pytest.raises(GraphError, match="input x: its table of bytes is not"):
        q.build()


@pytest.mark.relay
def test_the_rewritten_module_in_numpy():
    pytest.importorskip("tvm")
    from tvm_easyquant.relay.reference import execute
    from tvm_easyquant.relay.rewrite import rewrite

    for preprocess in PREPROCESS.values():
        q, shots, feeds = quantized(preprocess, chain)
        image = image_input(q.graph, q.table, "NHWC", "uint8")
        module = rewrite(q.graph, q.table, ["image"], image=image)
        plain = rewrite(q.graph, q.table, ["image"])
        for shot, feed in zip(shots, feeds, strict=True):
            same(execute(module, {"image": shot}), execute(plain, {"image": feed}))


@pytest.mark.linker
def test_the_command_line(tmp_path):
    pytest.importorskip("tvm")
    onnx = pytest.importorskip("onnx")
    from python_process import tvmc

    from tvm_easyquant.deploy import Program

    onnx.save(networks.small_onnx(), tmp_path / "net.onnx")
    shots = [shot[:, :8, :8] for shot in pictures()]
    preprocess = PREPROCESS["BGR"]
    np.savez(tmp_path / "images.npz", x=np.concatenate([preprocess(shot[0]) for shot in shots]))
    words = ["--mean", "103.94,116.78,123.68", "--std", "57.4,58.2,61", "--channel-order", "BGR"]
    made = ["--calibration", "images.npz", "--method", "minmax", "-o", "table.json", *words]
    assert tvmc("quantize", "net.onnx", *made, cwd=tmp_path).returncode == 0
    compiled = ["compile", "net.onnx", "--target", "easyquant -table=table.json, llvm", "-o", "net.tar"]
    image = ["--input-dtype", "uint8", "--input-layout=nhwc"]
    told = tvmc(*compiled, *image, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    program = Program(tmp_path / "net.tar")
    assert program.inputs == {"x": ((1, 8, 8, 3), np.uint8)} and program.layouts == {"x": "NHWC"}
    graph, table = eq.load(tmp_path / "net.onnx"), eq.ScaleTable.load(tmp_path / "table.json")
    want = [run_integer(table.prepared(graph), table, {"x": preprocess(shot[0])}) for shot in shots]
    same([program({"x": shot})[0] for shot in shots], [next(iter(each.values())) for each in want])
