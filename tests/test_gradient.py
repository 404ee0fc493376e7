"""The backward rules against finite differences, and the effects made of them. No TVM."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf

import networks
import numpy as np
import pytest

from tvm_easyquant.network.gradient import RULES, Effect, effects, gradients
from tvm_easyquant.network.graph import Graph, run
from tvm_easyquant.network.layout import to_nchw
from tvm_easyquant.network.node import Node
from tvm_easyquant.network.ops import evaluate


def apart(shape, seed=0, step=0.05):
    """Numbers of which no two are nearer than ``step``, in random order, about 0, none of them nearer to 0."""
    order = np.random.default_rng(seed).permutation(int(np.prod(shape)))
    return ((order - order.size // 2 + 0.5) * step).reshape(shape).astype(np.float32)


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def conv(kernel=3, stride=(1, 1), padding=(1, 1, 1, 1), dilation=(1, 1), groups=1, channels=4, depth=4):
    return "conv2d", dict(strides=stride, padding=padding, dilation=dilation, groups=groups), [
        random(1, 7, 6, depth)
    ], random(kernel, kernel, depth // groups, channels)  # fmt: skip


def average(counted, padding=(1, 0, 2, 1)):
    return "avg_pool2d", dict(
        pool_size=(3, 2), strides=(2, 1), padding=padding, count_include_pad=counted
    ), [random(2, 7, 6, 3)]  # fmt: skip


def function(expression, shape=(1, 4, 5, 3)):
    return "elementwise", dict(expression=expression), [apart(shape, step=0.1)]


#: (operator, attributes, inputs, weight of a layer)
CASES = {
    "conv2d": conv(),
    "conv2d, strided, padded unevenly": conv(3, (2, 3), (0, 1, 2, 0)),
    "conv2d, dilated": conv(3, (1, 2), (2, 2, 2, 2), (2, 1)),
    "conv2d, grouped": conv(groups=2, channels=6),
    "conv2d, depthwise": conv(groups=4, stride=(2, 1)),
    "conv2d, two filters a channel": conv(groups=4, channels=8),
    "conv2d, 1x1": conv(1, padding=(0, 0, 0, 0), channels=5),
    "dense": ("dense", {}, [random(2, 5)], random(1, 1, 5, 3)),
    "add": ("add", {}, [random(1, 3, 4, 2), random(1, 3, 4, 2)]),
    "mul": ("mul", {}, [random(1, 3, 4, 2), random(1, 3, 4, 2)]),
    "matmul": ("matmul", dict(depth=5), [random(2, 4, 5, 3), random(2, 5, 6, 3)]),
    "matmul of rows": ("matmul", dict(depth=5), [random(2, 4, 5), random(2, 5, 3)]),
    "mul, a gate": ("mul", {}, [random(2, 3, 4, 2), random(2, 1, 1, 2)]),
    "elementwise": function(("multiply", "x", ("sigmoid", "x"))),
    "elementwise, a vector": function(("leaky_relu", ("multiply", "x", (0.5, 2.0, -1.0)), 0.1)),
    "elementwise, hard": function(
        ("divide", ("multiply", "x", ("clip", ("add", "x", 3.0), 0.0, 6.0)), 6.0)
    ),
    "concat": ("concat", dict(axis=3), [random(1, 3, 4, 2), random(1, 3, 4, 1), random(1, 3, 4, 3)]),
    "max_pool2d": (
        "max_pool2d",
        dict(pool_size=(3, 2), strides=(2, 1), padding=(1, 0, 0, 1), dilation=(1, 2)),
        [apart((2, 7, 6, 2))],
    ),
    "avg_pool2d": average(True),
    "avg_pool2d, padding not counted": average(False),
    "mean_pool2d": (
        "mean_pool2d",
        dict(
            pool_size=(3, 2),
            strides=(2, 1),
            padding=(1, 0, 2, 1),
            rows=(2, 3, 3, 1),
            columns=(2, 2, 2, 2, 2, 1),
        ),
        [random(2, 7, 6, 3)],
    ),
    "reduce_mean": ("reduce_mean", dict(axes=(3,)), [random(2, 3, 4, 5)]),
    "reduce_max": ("reduce_max", dict(axes=(1, 3)), [apart((2, 3, 4, 5))]),
    "layer_norm": (
        "layer_norm",
        dict(epsilon=1e-3, scale=(1.0, -2.0, 0.5, 3.0), shift=(0.0, 1.0, 2.0, -1.0)),
        [random(2, 3, 5, 4)],
    ),
    "clip": ("clip", dict(lo=0.0, hi=inf), [apart((1, 4, 5, 3))]),
    "clip, two ends": ("clip", dict(lo=-1.0, hi=0.5), [apart((1, 4, 5, 3), step=0.1) + np.float32(0.01)]),
    "reshape": ("reshape", dict(shape=(2, 24), channels_first=True), [random(2, 3, 4, 2)]),
    "reshape, channels last": ("reshape", dict(shape=(2, 24), channels_first=False), [random(2, 3, 4, 2)]),
    "transpose": ("transpose", dict(axes=(0, 3, 1, 2)), [random(2, 3, 4, 5)]),
    "slice": (
        "slice",
        dict(begin=(0, 1, 0, 0), end=(2, 6, 4, 3), strides=(1, 2, 3, 1)),
        [random(2, 7, 5, 4)],
    ),
    "pad": ("pad", dict(widths=((0, 0), (1, 2), (0, 3), (0, 1))), [random(2, 3, 4, 2)]),
    "resize": ("resize", dict(factors=(2, 3)), [random(2, 3, 4, 2)]),
    "gather": ("gather", dict(indices=(None, (1, 0, 0, 2), None, (3, 3))), [random(2, 3, 4, 5)]),
    "sub": ("sub", {}, [random(2, 3, 4, 5), random(2, 1, 1, 5)]),
    "max": ("max", {}, list(np.split(apart((2, 3, 4, 10)), 2, axis=3))),
    "min": ("min", {}, list(np.split(apart((2, 3, 4, 10)), 2, axis=3))),
    "resize_linear": (
        "resize_linear",
        dict(mode="half_pixel", sizes=((3, 6), (4, 3)), scales=((2, 1), (3, 4))),
        [random(2, 3, 4, 2)],
    ),
    "depth_to_space": ("depth_to_space", dict(block=2, mode="DCR"), [random(2, 3, 4, 8)]),
    "depth_to_space, CRD": ("depth_to_space", dict(block=2, mode="CRD"), [random(2, 3, 4, 8)]),
}


def test_every_rule_is_tried():
    assert {op for op, *_ in CASES.values()} == set(RULES)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_is_the_derivative(name):
    op, attrs, inputs, *weight = CASES[name]
    nodes = [Node(f"in{i}", "input", (), x.shape) for i, x in enumerate(inputs)]
    names = [node.name for node in nodes]
    layer = (weight[0], random(weight[0].shape[-1])) if weight else ()
    node = Node("made", op, tuple(names), _size(op, attrs, inputs, *weight), attrs, *layer)
    made = evaluate(node, *inputs)
    graph = Graph([*nodes, replace(node, shape=made.shape)], ["made"])
    start = np.random.default_rng(1).standard_normal(made.shape).astype(np.float32)
    found = gradients(graph, {n: to_nchw(x) for n, x in zip(names, inputs, strict=True)}, {"made": start})
    for i, x in enumerate(inputs):
        way = np.random.default_rng(2 + i).choice([-1, 1], x.shape).astype(np.float32)
        step = np.float32(2.0**-7)
        moved = [
            evaluate(graph["made"], *inputs[:i], x + side * step * way, *inputs[i + 1 :]).astype(np.float64)
            for side in (1, -1)
        ]
        wanted = ((moved[0] - moved[1]) / (2 * step) * start).sum()
        assert found[f"in{i}"].shape == x.shape
        assert (found[f"in{i}"] * way).sum() == pytest.approx(wanted, rel=2e-3, abs=2e-3)


def _size(op, attrs, inputs, weight=None):
    """A convolution is evaluated by its output's shape."""
    if op != "conv2d":
        return ()
    (n, h, w, _), (top, left, bottom, right) = inputs[0].shape, attrs["padding"]
    sizes = zip((h + top + bottom, w + left + right), weight.shape, attrs["dilation"], attrs["strides"])  # noqa: B905
    return (n, *((size - (r - 1) * d - 1) // s + 1 for size, r, d, s in sizes), weight.shape[-1])


def test_effects_are_the_squared_lengths_of_derivatives():
    """Each element's, to the accuracy of as many projections; here of one layer of two numbers."""
    graph, images = networks.chain(size=6)
    feeds = [{"image": x} for x in images[:2]]
    found = effects(graph, feeds, [n.name for n in graph.compute_nodes], 400)
    norm = np.sqrt(np.mean([np.square(run(graph, feed)[graph.outputs[0]]).sum() for feed in feeds]))
    for number, feed in enumerate(feeds):
        for layer in graph.compute_nodes:
            at = (0, 2, 3, 1)
            length, steps = 0.0, np.ndindex(graph[graph.outputs[0]].shape)
            for place in steps:
                start = np.zeros(graph[graph.outputs[0]].shape, np.float32)
                start[place] = 1
                length += float(gradients(graph, feed, {graph.outputs[0]: start})[layer.name][at]) ** 2
            value = found[layer.name][number].value[at] ** 2
            assert value == pytest.approx(length / norm**2, rel=0.35)


def test_effects_do_not_depend_on_threads():
    graph, images = networks.residual()
    feeds = [{"image": x} for x in images[:3]]
    layers = [n.name for n in graph.compute_nodes]
    with ThreadPoolExecutor(2) as threads:
        alone, shared = (
            effects(graph, feeds, layers, **how)
            for how in ({}, {"each": lambda f, x: list(threads.map(f, x))})
        )
    assert alone.keys() == shared.keys() == set(layers)
    for name in layers:
        for one, other in zip(alone[name], shared[name], strict=True):
            assert one.step == other.step and np.array_equal(one.root, other.root)


def test_what_a_float_node_reads_counts_as_an_output():
    graph, images = networks.chain(size=6)
    last = graph[graph.outputs[0]]
    handle = type("Handle", (), {"op": "odd", "__str__": lambda self: "odd"})()
    attrs = dict(fn=lambda x: x[..., :1] * 0, handle=handle, macs=0)
    behind = Graph([*graph, Node("odd", "float", (last.name,), (*last.shape[:-1], 1), attrs)], ["odd"])
    feeds, layers = [{"image": images[0]}], [n.name for n in graph.compute_nodes]
    plain, found = effects(graph, feeds, layers), effects(behind, feeds, layers)
    assert plain.keys() == found.keys() == set(layers)
    assert all(np.array_equal(plain[name][0].value, found[name][0].value) for name in layers)


def test_a_layer_without_effect_or_with_weights_that_are_no_numbers_has_none():
    graph, images = networks.chain(size=6)
    first, second = graph.compute_nodes
    nodes = {n.name: n for n in graph}
    nodes[second.name] = replace(second, weight=np.zeros_like(second.weight), bias=second.bias + 1)
    found = effects(Graph(nodes.values(), graph.outputs), [{"image": images[0]}], [first.name, second.name])
    assert set(found) == {second.name}
    nodes[second.name] = replace(second, weight=np.full_like(second.weight, np.nan))
    assert not effects(Graph(nodes.values(), graph.outputs), [{"image": images[0]}], [first.name])


def test_an_effect_of_any_size_fits_half_precision():
    for size in (1e-30, 1e-8, 1.0, 1e12):
        root = (np.array([1.0, 0.5, 0.01]) * size).astype(np.float32)
        np.testing.assert_allclose(Effect.of(root).value, root, rtol=1e-3)
    assert not Effect.of(np.zeros(3, np.float32)).value.any()
