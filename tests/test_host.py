"""The seam to the compiler: which host is installed, that it has every verb, and when it is asked."""

import inspect

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from tvm_easyquant.errors import ConfigError
from tvm_easyquant.host import HOSTS, Host, installed

pytest.importorskip("tvm")

VERBS = [name for name in vars(Host) if not name.startswith("_")]


@pytest.fixture(params=HOSTS)
def host(request):
    return installed(request.param)


def test_the_first_that_is_installed_is_taken(host):
    assert installed().name == HOSTS[0] and host.name in HOSTS
    assert host.version
    with pytest.raises(ConfigError, match="host is 'torch'; use one of relay"):
        installed("torch")


@pytest.mark.parametrize("verb", VERBS)
def test_a_host_has_the_verb_with_the_same_parameters(host, verb):
    said = getattr(Host, verb)
    if isinstance(said, property):
        assert isinstance(getattr(host, verb), str)
        return
    said, done = (inspect.signature(f).parameters for f in (said, getattr(type(host), verb)))
    rest = [p for p in done.values() if p.kind is p.VAR_KEYWORD]
    for name, parameter in said.items():
        if name in done:
            assert (done[name].kind, done[name].default) == (parameter.kind, parameter.default)
        else:  # handed on as it is
            assert rest and parameter.kind is parameter.KEYWORD_ONLY
    assert len(VERBS) > 20


def test_the_module_is_made_when_it_is_asked_for_and_once(host):
    graph, images = networks.chain()
    asked = []

    class Counting(type(host)):
        def rewrite(self, *arguments):
            asked.append(arguments)
            return super().rewrite(*arguments)

    q = eq.quantize(graph, images, method="minmax", host=Counting())
    assert not asked and q.table and q.coverage == 100
    assert host.is_module(q.module) and q.module is q.module
    assert asked == [(q.graph, q.table)]


def test_a_model_whose_drop_is_judged_is_imported_once(host, tmp_path):
    onnx = pytest.importorskip("onnx")
    onnx.save(networks.small_onnx(), tmp_path / "net.onnx")
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    imported = []

    class Counting(type(host)):
        def float_module(self, *arguments, **options):
            imported.append(arguments)
            return super().float_module(*arguments, **options)

        def load(self, *arguments, **options):
            raise AssertionError("imported a second time")

    q = eq.quantize(
        tmp_path / "net.onnx", images, max_drop=100, evaluation=[(x, 0) for x in images], method="minmax",
        target="llvm", host=Counting(),
    )  # fmt: skip
    assert len(imported) == 1 and q.graph.name == "net" and q.drop.n == 3


def test_a_model_comes_through_the_host_in_every_form(host, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = networks.small_onnx()
    onnx.save(model, tmp_path / "net.onnx")
    module = host.float_module(tmp_path / "net.onnx")
    graphs = [
        host.load(model), host.load(tmp_path / "net.onnx"), host.read(module), host.read(host.float_module(model)),
        host.read(host.float_module(module)),
    ]  # fmt: skip
    assert len({graph.fingerprint for graph in graphs}) == 1
    assert host.is_module(module) and not host.is_module(model)
    assert "onnx" in host.formats()
