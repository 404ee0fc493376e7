"""A toy host, as CONTRIBUTING's walk has it: every verb of `tvm_easyquant.host.Host` in numpy. No TVM.

Its module is a graph and its table, or none while it is float; its target is called ``numpy``; what it builds
runs by `run_integer`. It reads the toy format of `json_reader`, and has no kernels to plan, time or tune.
"""

import contextlib
import hashlib
import time
from dataclasses import dataclass

import json_reader
import numpy as np

from tvm_easyquant.errors import LoadError, TargetError, TuneError
from tvm_easyquant.files import write_text
from tvm_easyquant.network.graph import Graph, run
from tvm_easyquant.network.node import model_shape
from tvm_easyquant.scales.image_input import ImageInput
from tvm_easyquant.scales.integer import Sample, Scales, run_integer
from tvm_easyquant.scales.table import ScaleTable


@dataclass(frozen=True)
class Network:
    """The module. taps: stored tensors that it returns behind its outputs; image: its input, of bytes."""

    graph: Graph
    table: ScaleTable | None = None
    taps: tuple[str, ...] = ()
    image: ImageInput | None = None


class Built:
    """A network that runs; see `tvm_easyquant.host.Built`."""

    layers = ()

    def __init__(self, network: Network):
        self.network, graph = network, network.graph
        self.inputs = {name: (model_shape(graph[name]), graph[name].dtype) for name in graph.inputs}
        if network.image is not None:
            self.inputs = {network.image.name: (network.image.shape, "uint8")}
        self._feed: dict = {}

    def __call__(self, feed):
        graph, table = self.network.graph, self.network.table
        self._feed, image = feed, self.network.image
        feed = feed if image is None else {image.name: image.unfolded(feed[image.name])}
        found = run(graph, feed) if table is None else run_integer(graph, table, feed)
        return [*(found[name] for name in graph.outputs), *self._tapped(feed)]

    def _tapped(self, feed):
        graph, table, taps = self.network.graph, self.network.table, self.network.taps
        if not taps:
            return []
        scales, sample = Scales.of_table(graph, table.check(graph), table), Sample(feed)
        for node in graph:
            sample.advance(node, scales)
        return [sample.stored_value(tensor, scales) for tensor in taps]

    def milliseconds(self, repeat=10, number=1):
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            for _ in range(number):
                self(self._feed)
            times.append(1e3 * (time.perf_counter() - start) / number)
        return times

    def layer_times(self, feed, repeat=10):
        return {}

    def _text(self):
        table = self.network.table
        return self.network.graph.fingerprint + ("" if table is None else table.to_json())

    def export_library(self, file_name, **options):
        self.export(file_name)

    def export(self, path, compiler=None):
        write_text(path, self._text())

    def parts(self, compiler=None):
        return []  # it has a format of its own

    @property
    def size(self):
        return len(self._text())

    @property
    def digest(self):
        return hashlib.sha256(self._text().encode()).hexdigest()


class Numpy:
    """The verbs of `tvm_easyquant.host.Host`, which says what each means."""

    name = "numpy"
    version = np.__version__
    floats = "numpy's float32"

    # -- float networks

    def formats(self):
        return ["json"]

    def load(self, model, *, model_format=None, input_shapes=None, batch=None):
        if model_format not in (None, "json"):
            raise LoadError(f"the format {model_format} is not one of json")
        return json_reader.load(model)

    def original(self, model, *, model_format=None, input_shapes=None, batch=None):
        return Built(Network(self.load(model, model_format=model_format)))

    def float_module(self, graph):
        return Network(graph)

    def is_module(self, model):
        return isinstance(model, Network)

    def read(self, module, params=None, name="model"):
        module.graph.name = name
        return module.graph

    # -- integer networks

    def rewrite(self, graph, table, taps=(), sample=None, image=None):
        table.check(graph)
        return Network(graph, table, tuple(taps), image)

    def lower(self, module, target=None):
        return module

    def save_module(self, module):
        return Built(module)._text()

    def layer_choices(self, graph, table, target=None):
        return []

    def layer_times(self, graph, table, target=None):
        raise TuneError("numpy has no stored costs of kernels")

    # -- building and running

    def this_cpu(self):
        return "numpy"

    def target(self, text=None):
        if text not in (None, "numpy"):
            raise TargetError(f"target {text!r} is not numpy")
        return "numpy"

    def row(self, target):
        return "generic"

    def check_cpu(self, target):
        pass

    def linker(self, name=None):
        return None

    def build(self, module, target=None, *, lower=True, outputs=()):
        self.target(target)
        return Built(module)

    def build_float(self, module, target=None):
        return self.build(module, target)

    def threads(self, count):
        pass

    def quiet(self):
        return contextlib.nullcontext()

    # -- measuring and tuning

    def describe(self):
        return {"numpy": self.version}

    def examine(self):
        return {"target": "numpy", "rows": {}}

    def benchmark(self, graph, floats, integers, *, bits=None, threads=1, rounds=15, progress=None):
        raise TuneError("numpy has no layers to time")

    def keep_if_faster(self, graph, floats, config, target=None, *, progress=None):
        raise TuneError("numpy has no layers to time")

    def tune(self, module, log, target=None, *, device=None, progress=None, **settings):
        raise TuneError("numpy has no kernels to tune")

    def history(self, log, target):
        return contextlib.nullcontext()

    def untuned(self, layers, target=None):
        return (0, len(layers))


HOST = Numpy()
