"""Which way round a module's convolutions are: ours are in NCHW, those of TFLite and Keras in NHWC."""

from __future__ import annotations

from .framework import relay, tvm

#: a convolution's layout that ours are in: data, weights
LAYOUTS = {"nn.conv2d": ["NCHW", "OIHW"], "nn.conv2d_transpose": ["NCHW", "IOHW"]}


def as_nchw(module):
    """The module with its convolutions in NCHW."""
    passes = [relay.transform.InferType(), relay.transform.ConvertLayout(LAYOUTS)]
    with tvm.transform.PassContext(opt_level=3):
        return tvm.transform.Sequential(passes)(module)


def has_nhwc(module) -> bool:
    """Whether a convolution of the module is in another layout than NCHW."""
    found = []

    def visit(expr):
        if isinstance(expr, relay.Call) and str(getattr(expr.op, "name", "")) in LAYOUTS:
            found.append(str(expr.attrs.data_layout) != "NCHW")

    relay.analysis.post_order_visit(module["main"], visit)
    return any(found)
