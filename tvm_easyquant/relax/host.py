"""Today's apache-tvm with Relax, as a `tvm_easyquant.host.Host`.

Each verb imports the file that does the work: importing this one says whether there is such a TVM, no more.
What the host does not do yet raises HostError, in one line that says so.
"""

from __future__ import annotations

import contextlib
import os

from ..errors import HostError, LoadError
from ..host import Host
from .framework import ffi_crashes, tvm


class Relax:
    """The verbs of `tvm_easyquant.host.Host`, which says what each means."""

    name = "relax"
    version = str(tvm.__version__)
    floats = "float32 (our kernels)"

    # -- float networks

    def formats(self):
        return ("onnx",)

    def load(self, model, *, model_format=None, input_shapes=None, batch=None):
        if model_format == "onnx" or (model_format is None and os.fspath(model).lower().endswith(".onnx")):
            from ..readers.onnx_float import load

            return load(model, input_shapes, batch)
        raise LoadError(
            f"{model}: the relax host loads no models but ONNX yet; export it to ONNX, or load it with TVM "
            "0.19: pip install 'tvm_easyquant[relay]' in another environment"
        )

    def original(self, model, *, model_format=None, input_shapes=None, batch=None):
        graph = self.load(model, model_format=model_format, input_shapes=input_shapes, batch=batch)
        return self.build_float(self.float_module(graph))

    def float_module(self, graph):
        from .rewrite import float_module

        return float_module(graph)

    def is_module(self, model):
        return isinstance(model, tvm.IRModule)

    def read(self, module, params=None, name="model"):
        from .read import from_relax

        return from_relax(module, params, name)

    # -- integer networks

    def rewrite(self, graph, table, taps=(), sample=None, image=None):
        from .rewrite import rewrite

        return rewrite(graph, table, taps, image)

    def lower(self, module, target=None):
        from topi_ext.relax.lower import lower

        return lower(module, self.target(target))[0]

    def save_module(self, module):
        if (found := ffi_crashes()) is not None:
            raise HostError(
                f"apache-tvm-ffi {found} crashes where a module is saved: pip install "
                "'apache-tvm-ffi<0.1.15'"
            )
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
        from tvm.support import cc

        from ..linking import check_compiler

        if name is None:
            return cc.get_cc()
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
        return contextlib.nullcontext()

    # -- measuring and tuning

    def describe(self):
        from .doctor import describe_host

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

    def profile(self, chosen, feed):
        """The `Call` of each kernel of a package (`package.choose`), timed on these inputs."""
        from .profile import calls

        return calls(chosen, feed)

    def tune(self, module, log, target=None, *, device=None, progress=None, **settings):
        from .tune import tune

        return tune(module, log, target, device=device, progress=progress, **settings)

    def history(self, log, target):
        from topi_ext.records import applied

        from .tune import records_for

        return applied(records_for(log, self.target(target))) if log else contextlib.nullcontext()

    def untuned(self, layers, target=None):
        from .tune import untuned

        return untuned(layers, target)


HOST: Host = Relax()
