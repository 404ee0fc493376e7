"""Networks of torch's: a module, and what torch.export makes of one, with its DataLoader as calibration.

Skipped where torch is not installed: ``pip install torch``; a plain one brings gigabytes of GPU libraries,
the wheel ``torch==2.13.0+cpu`` 750 MB.
"""

import importlib.util
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch: its networks are not tried")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
    ),
]
import tvm_easyquant as eq
from tvm_easyquant.errors import CalibrationError, EvaluationError, LoadError, TVMMissing
from tvm_easyquant.readers import torch_model
from tvm_easyquant.samples import labelled
from tvm_easyquant.scales.integer import run_integer

nn = torch.nn
needs_onnxscript = pytest.mark.skipif(
    importlib.util.find_spec("onnxscript") is None, reason="torch needs onnxscript here"
)


class Block(nn.Module):
    def __init__(self, before, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.down = None
        if stride > 1:
            self.down = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        beside = x if self.down is None else self.down(x)
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + beside)


class ResNet(nn.Module):
    """A ResNet as torchvision's, of 8 layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = Block(8, 8, 1), Block(8, 16, 2)
        self.gap, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2)
        self.fc = nn.Linear(16, 10)

    def forward(self, image):
        x = self.layer2(self.layer1(self.pool(self.stem(image))))
        return self.fc(self.drop(torch.flatten(self.gap(x), 1)))


@pytest.fixture(scope="module")
def net():
    """In training, as its user left it, with statistics of batch normalization and one part frozen."""
    torch.manual_seed(0)
    made = ResNet()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2)
    made.train()
    made.stem[1].eval()
    return made


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(1)
    return torch.randn(12, 3, 16, 16)


@pytest.fixture(scope="module")
def loader(images):
    data = torch.utils.data.TensorDataset(images, torch.arange(12) % 10)
    return torch.utils.data.DataLoader(data, batch_size=5)


@pytest.fixture(scope="module")
def by_onnx(net, images):
    """What a user had to do before: export it, and give the file."""
    file = io.BytesIO()
    module = ResNet()  # another: net keeps the modes that it has
    module.load_state_dict(net.state_dict())
    torch.onnx.export(
        module.eval(), (images[:1],), file, opset_version=17, input_names=["image"], dynamo=False
    )
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(file.getvalue())
    return eq.quantize(model, [images.numpy()], method="minmax")


def test_a_network_and_a_loader_are_quantized_as_by_its_onnx_file(net, loader, images, by_onnx):
    modes = [part.training for part in net.modules()]
    q = eq.quantize(net, loader, method="minmax")
    assert [part.training for part in net.modules()] == modes
    assert q.coverage == 100 and q.table.to_json() == by_onnx.table.to_json()
    names = [row["layer"] for row in q.layers]
    assert names[:2] == ["/stem/stem.0/Conv", "/layer1/conv1/Conv"] and len(names) == 7
    feed = {"image": images[:1].numpy()}
    want = run_integer(q.graph, q.table, feed)
    (output,) = q.graph.outputs
    np.testing.assert_array_equal(want[output], run_integer(by_onnx.graph, by_onnx.table, feed)[output])
    if importlib.util.find_spec("tvm") is not None:
        np.testing.assert_array_equal(q.build("llvm")(feed)[0], want[output])


@needs_onnxscript
def test_an_exported_program_is_the_same_network(net, images, by_onnx):
    module = ResNet()
    module.load_state_dict(net.state_dict())
    exported = torch.export.export(module.eval(), (images[:1],))
    q = eq.quantize(exported, [images], method="minmax")
    assert q.coverage == 100 and q.graph.inputs == ("image",)
    for mine, other in zip(q.graph.compute_nodes, by_onnx.graph.compute_nodes, strict=True):
        np.testing.assert_allclose(mine.weight, other.weight, rtol=1e-6, atol=1e-7)
    for mine, other in zip(integers(q, images), integers(by_onnx, images), strict=True):
        assert (
            np.abs(mine - other).max() <= 0.02 * np.abs(other).max()
        )  # weights are folded otherwise: a step


def integers(q, images):
    return [run_integer(q.graph, q.table, {"image": x[None].numpy()})[q.graph.outputs[0]] for x in images]


def test_what_torch_makes_of_a_relax_module_is_read_as_well(net, images, by_onnx):
    pytest.importorskip("tvm_easyquant.relax.framework", exc_type=TVMMissing)
    from tvm.relax.frontend.torch import from_exported_program

    module = ResNet()
    module.load_state_dict(net.state_dict())
    made = from_exported_program(torch.export.export(module.eval(), (images[:1],)))
    q = eq.quantize(made, [images], method="minmax")
    assert q.coverage == 100 and not q.graph.notes
    with torch.no_grad():
        want = module(images[:1]).numpy()
    feed = {q.graph.inputs[0]: images[:1].numpy()}
    found = q.graph.run(feed)[q.graph.output_names[0]]
    assert np.abs(found - want).max() <= 2e-6 * np.abs(want).max()
    exact = run_integer(q.graph, q.table, feed)[q.graph.outputs[0]]
    np.testing.assert_array_equal(q.build("llvm")(feed)[0], exact)
    assert sorted(node.op for node in q.graph) == sorted(node.op for node in by_onnx.graph)


def test_a_loader_of_labelled_images_gives_pairs(loader, images):
    found = labelled.load(loader)
    assert len(found) == 12
    first, *_, last = found
    np.testing.assert_array_equal(first[0], images[:1].numpy())
    assert first[1] == 0 and last[1] == 1 and last[0].shape == (1, 3, 16, 16)
    assert len(list(found)) == 12  # as often as asked


def test_loaders_of_any_make_and_tensors_on_the_tape_are_read(net, images, by_onnx):
    """A loader without batches, of an iterable, of images alone; tensors that need a gradient."""
    data = torch.utils.data

    class Stream(data.IterableDataset):
        def __iter__(self):
            return iter(zip(images, range(12), strict=True))

    for made, count in (
        (data.DataLoader(Stream(), batch_size=5), 0),
        (data.DataLoader(data.TensorDataset(images, torch.arange(12)), batch_size=None), 12),
    ):
        found = labelled.load(made)
        assert len(found) == count and [int(label) for _, label in found] == list(range(12))
    alone = data.DataLoader(data.TensorDataset(images), batch_size=4)
    with pytest.raises(EvaluationError, match="sample 0 is no pair"):
        list(labelled.load(alone))
    for samples in (alone, [images.clone().requires_grad_()], data.DataLoader(Stream(), batch_size=5)):
        q = eq.quantize(by_onnx.graph, samples, method="minmax")
        assert q.table.to_json() == by_onnx.table.to_json()


def test_load_takes_the_shape_and_an_output_to_cut_at(net):
    graph = eq.load(net, {"image": (2, 3, 16, 16)})
    assert graph["image"].shape == (2, 16, 16, 3)
    cut = eq.load(net, {"image": (1, 3, 16, 16)}, outputs=["/layer1/Relu_1"])
    assert cut[cut.outputs[0]].shape == (1, 8, 8, 8)


def test_any_calibration_shows_the_shape(net, images):
    for data in (images.numpy(), {"image": images.numpy()}, (x[None] for x in images), [(images, None)]):
        q = eq.quantize(net, data, method="minmax")
        assert q.graph["image"].shape == (1, 16, 16, 3) and q.table.data["samples"] == 12
    two = eq.quantize(net, [images], method="minmax", batch=2)
    assert two.graph["image"].shape == (2, 16, 16, 3) and two.table.data["samples"] == 6


def test_saved_networks_are_opened_and_what_is_code_is_not(net, images, by_onnx, tmp_path):
    """A .pt was handed to a host that reads none; a state_dict was called a TorchScript that cannot be read."""
    module = ResNet()
    module.load_state_dict(net.state_dict())
    module.eval()
    loads = importlib.util.find_spec("tvm.relay") is not None if importlib.util.find_spec("tvm") else False
    for kind, script in (
        ("trace", torch.jit.trace(module, images[:1])),
        ("script", torch.jit.script(module)),
    ):
        file = tmp_path / f"{kind}.pt"
        script.save(str(file))
        opened = torch_model.opened(file, None, lambda: False)
        q = eq.quantize(opened, images.numpy(), method="minmax")
        assert q.coverage == 100 and q.graph.inputs == ("image",)
        for mine, other in zip(integers(q, images), integers(by_onnx, images), strict=True):
            np.testing.assert_array_equal(mine, other)
        if not loads:
            q = eq.quantize(file, images.numpy(), method="minmax")
            assert q.graph.inputs == ("image",)
        assert torch_model.opened(file, None, lambda: True) is file  # the host's importer reads it
    torch.save(module, tmp_path / "module.pt")
    torch.save(module.state_dict(), tmp_path / "state.pth")
    torch.save(images, tmp_path / "images.pt")
    (tmp_path / "text.pt").write_text("no network")
    for name, message in (
        ("module.pt", "is a pickled torch.nn.Module, which is code and is not run here"),
        ("state.pth", r"holds weights only \(a state_dict\), no network: make the torch.nn.Module"),
        ("images.pt", "holds a Tensor, no network"),
        ("text.pt", "is a pickled|cannot read"),
    ):
        with pytest.raises(LoadError, match=message) as raised:
            torch_model.opened(tmp_path / name, None, lambda: False)
        assert "\n" not in str(raised.value)
    torch.export.save(torch.export.export(module, (images[:1],)), tmp_path / "net.pt2")
    if importlib.util.find_spec("onnxscript") is None:
        with pytest.raises(LoadError, match="pip install onnxscript"):
            eq.load(tmp_path / "net.pt2")
    else:
        assert eq.load(tmp_path / "net.pt2").inputs == ("image",)


class Jumps(nn.Module):
    """It takes another way on other data, which a trace does not see."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) if x.abs().sum() == 0 else 2 * self.conv(x)


def test_what_was_read_is_compared_with_torch_itself(images):
    with pytest.raises(LoadError, match="output .* is not what the model's own framework computes"):
        eq.quantize(Jumps(), [images], method="minmax")


def test_what_cannot_be_read_is_said_in_a_line(net, images, monkeypatch):
    def said(error, *arguments, **options):
        with pytest.raises(error) as found:
            eq.quantize(*arguments, method="minmax", **options)
        assert "\n" not in str(found.value)
        return str(found.value)

    with pytest.raises(
        LoadError, match=r"ResNet does not say the shape of its input image; give it: input_shapes"
    ):
        eq.load(net)
    assert "ResNet has no input picture; forward takes image" in said(
        LoadError, net, [images], input_shapes={"picture": (1, 3, 16, 16)}
    )
    assert "give it: input_shapes" in said(LoadError, net, [])
    assert "holds NaN or infinity" in said(CalibrationError, net, [images * torch.nan])
    exported = torch.export.export(nn.Conv2d(3, 4, 1), (images[:1],))
    monkeypatch.setattr(torch_model.importlib.util, "find_spec", lambda name: None)
    assert "pip install onnxscript, or give the torch.nn.Module itself" in said(
        LoadError, exported, [images]
    )

    class Strange(nn.Module):
        def forward(self, x):
            raise RuntimeError("no\nway")

    assert "torch cannot run Strange on x (1, 3, 16, 16) (way)" in said(LoadError, Strange(), [images])
    assert "weights only (a state_dict), no network: make the torch.nn.Module" in said(
        LoadError, net.state_dict(), [images]
    )
    assert "is the class ResNet: give a torch.nn.Module that" in said(LoadError, ResNet, [images])
    assert "cannot run ResNet on image (1, 3, 5) (" in said(LoadError, net, [images[:, :, :5, 0]])
    assert "missing 1 required positional argument: 'input2')" in said(
        LoadError, nn.Bilinear(16, 16, 4), [images]
    )
    assert "the forward of DataParallel names no input" in said(LoadError, nn.DataParallel(net), [images])


class Signs(nn.Module):
    """How a network may depend on its data behind torch's tracer, and on shapes, which it may."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 4, 3), how

    def forward(self, x):
        y = self.conv(x)
        if x.shape[2] > 8 and y.size(1) != 3:  # a tensor, to the tracer
            y = y[:, :, : int(y.shape[2]) // 2]
        return self.how(x, y)


@pytest.mark.parametrize(
    "how",
    [
        lambda x, y: y if x.sum() > 0 else -y,
        lambda x, y: y * float(x.max()),
        lambda x, y: y * x.mean().item(),
    ],
    ids=["branch", "number", "item"],
)
def test_a_network_that_decides_by_its_data_is_refused(how, images):
    """The trace held the sign of the sample that it was made with: silently wrong for others."""
    with pytest.raises(LoadError) as error:
        eq.quantize(Signs(how), [images], method="minmax")
    assert "Signs decides by its data, which a graph cannot, at test_torch.py:" in str(error.value)
    assert "lambda x, y" in str(error.value) and "torch.where" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_that_decides_by_its_shapes_is_taken(images):
    q = eq.quantize(Signs(lambda x, y: y), [images], method="minmax")
    assert q.graph[q.graph.outputs[0]].shape == (1, 7, 14, 4)


def test_what_torch_compiled_is_the_same_network(net, images, by_onnx):
    q = eq.quantize(torch.compile(net), [images], method="minmax")
    assert q.table.to_json() == by_onnx.table.to_json()
