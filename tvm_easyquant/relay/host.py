"""TVM 0.19 with Relay, AutoTVM and tvmc, as a `tvm_easyquant.host.Host`.

Each verb imports the file that does the work: importing this one says whether there is a TVM, no more.
"""

from __future__ import annotations

from ..host import Host
from .framework import quiet, tvm


class Relay:
    """The verbs of `tvm_easyquant.host.Host`, which says what each means."""

    name = "relay"
    version = str(tvm.__version__)
    floats = "TVM float32"

    # -- float networks

    def formats(self):
        from . import tvmc

        return tvmc.formats()

    def load(self, model, *, model_format=None, input_shapes=None, batch=None):
        from .formats import load_model

        return load_model(model, model_format, input_shapes, batch)

    def original(self, model, *, model_format=None, input_shapes=None, batch=None):
        from . import formats, tvmc
        from .build import build_float

        module = formats.load(model, tvmc.frontend(model, model_format) or "", input_shapes)
        return build_float(module)

    def float_module(self, graph):
        from .rewrite import float_module

        return float_module(graph)

    def is_module(self, model):
        return isinstance(model, tvm.IRModule)

    def read(self, module, params=None, name="model"):
        from .read import from_relay

        return from_relay(module, params, name)

    # -- integer networks

    def rewrite(self, graph, table, taps=(), sample=None, image=None):
        from .rewrite import rewrite

        return rewrite(graph, table, taps, sample, image)

    def lower(self, module, target=None):
        from topi_ext.lower import LowerInteger

        return LowerInteger(self.target(target))(module)

    def save_module(self, module):
        return tvm.ir.save_json(module)

    def layer_choices(self, graph, table, target=None):
        from .tune import layer_choices

        return layer_choices(graph, table, target)

    def layer_times(self, graph, table, target=None):
        from .tune import layer_times

        return layer_times(graph, table, target)

    # -- building and running

    def this_cpu(self):
        from .build import host_target

        return host_target()

    def target(self, text=None):
        from .build import cpu_target

        return cpu_target(text)

    def row(self, target):
        from topi_ext.emit import target_isa

        return target_isa(self.target(target))

    def check_cpu(self, target):
        from .build import check_cpu

        check_cpu(target)

    def linker(self, name=None):
        from tvm.contrib.cc import get_cc

        from ..linking import check_compiler

        if name is None:
            return get_cc()
        check_compiler(name)
        return name

    def build(self, module, target=None, *, lower=True, outputs=()):
        from .build import build, build_fleet

        make = build_fleet if isinstance(target, (list, tuple)) else build
        return make(module, target, lower=lower, outputs=outputs)

    def build_float(self, module, target=None):
        from .build import build_float

        return build_float(module, target)

    def threads(self, count):
        from .profile import threads

        threads(count)

    def quiet(self):
        return quiet()

    # -- measuring and tuning

    def describe(self):
        from .profile import describe_host

        return describe_host()

    def examine(self):
        from .doctor import examine

        return examine()

    def benchmark(self, graph, floats, integers, **options):
        from .profile import benchmark

        return benchmark(graph, floats, integers, **options)

    def keep_if_faster(self, graph, floats, config, target=None, *, progress=None):
        from .profile import keep_if_faster

        return keep_if_faster(graph, floats, config, target, progress=progress)

    def tune(self, module, log, target=None, *, device=None, progress=None, **settings):
        from tvm import autotvm

        from .tune import tune

        runner = None
        if device is not None:
            host, port, key = device
            runner = autotvm.RPCRunner(key, host, port, number=4, repeat=3, min_repeat_ms=20)
        return tune(module, log, target, runner=runner, progress=progress, **settings)

    def history(self, log, target):
        from .tune import history

        return history(log, target)

    def untuned(self, layers, target=None):
        from .tune import untuned

        return untuned(layers, target)


HOST: Host = Relay()
