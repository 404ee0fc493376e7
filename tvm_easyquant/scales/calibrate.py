"""Calibration: stream samples through the float network and observe the values of every site.

Memory does not depend on the number of samples, but for ``search_images`` of them, which are kept for the
scale search: of arrays the first, of other data whose number is known so many, spread evenly.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from threadpoolctl import threadpool_limits

from ..errors import CalibrationError
from ..files import shown
from ..network.channelwise import channelwise, factors, place
from ..network.graph import Graph, GraphError, run
from ..network.layout import layout_hint
from ..network.node import Node, exactly, model_shape
from ..samples.loader import arrays
from . import histogram as _histogram
from . import suspicions
from .histogram import Histogram
from .numerics import QuantConfig, Scale, scale_between, scale_for, steps, weight_scales
from .partition import Plan, plan_of
from .table import ScaleTable

Progress = Callable[[int, int, str], None]


@dataclass
class Range:
    """Observer of one site: the smallest and largest value seen, and a histogram of the absolute values
    where the start needs one, and of those of the negative values where the range may have two ends; the
    order of the values does not matter."""

    low: float = 0.0
    high: float = 0.0
    histogram: Histogram | None = None
    negative: Histogram | None = None

    @classmethod
    def of(cls, config: QuantConfig) -> Range:
        """One that sees what a start needs."""
        counted = config.how.start != "max"
        both = counted and config.how.asymmetric
        return cls(histogram=Histogram() if counted else None, negative=Histogram() if both else None)

    def see(self, value: np.ndarray) -> None:
        low = float(value.min(initial=0.0))
        self.low = min(self.low, low)
        self.high = max(self.high, float(value.max(initial=0.0)))
        if self.histogram is not None:
            self.histogram.see(value)
        if self.negative is not None and low < 0:
            self.negative.see(value.take(np.flatnonzero(value < 0)))

    def merge(self, other: Range) -> None:
        """Take in what another has seen, which stays as it is."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        if self.histogram is not None and other.histogram is not None:
            self.histogram.merge(other.histogram)
        if self.negative is not None and other.negative is not None:
            self.negative.merge(other.negative)

    @property
    def absmax(self) -> float:
        return max(-self.low, self.high)

    def threshold(self, start: str, levels: int, percentile: float) -> float:
        """The largest absolute value to be held, by a start of `numerics.SWITCHES`."""
        if start == "max" or self.absmax == 0:
            return self.absmax
        assert self.histogram is not None  # noqa: S101  # any other start has one
        if start == "percentile":
            return _histogram.percentile(self.histogram, percentile)
        return getattr(_histogram, start)(self.histogram, levels)

    def ends(self, start: str, levels: int, percentile: float, searched: bool) -> tuple[float, float]:
        """The smallest and the largest value to be held, by a start of `numerics.SWITCHES`.

        searched: whether layers will judge them. Else each end is what a symmetric range has, or nearer:
        the least error of the tensor itself cuts off what an add makes much of.
        """
        if start == "mse" and searched and self.absmax > 0:
            assert self.histogram is not None and self.negative is not None  # noqa: S101  # this start's
            return _histogram.between(self.histogram, self.negative, levels)
        largest = self.threshold(start, levels // 2, percentile)
        return max(self.low, -largest), min(self.high, largest)


@dataclass
class Calibration:
    """What calibration found: ranges by site, the samples kept for the search, their number, the largest
    output (its index) of the float network on each, the ranges of single tensors, of those that may be
    divided by a factor a channel the mean over the samples of each channel's largest |x|, and whether its
    limit ended it."""

    ranges: dict[str, Range]
    samples: list[dict[str, np.ndarray]] = field(default_factory=list)
    seen: int = 0
    answers: list[int] = field(default_factory=list)
    asked: int = 1
    tensors: dict[str, Range] = field(default_factory=dict)
    channels: dict[str, np.ndarray] = field(default_factory=dict)
    stopped: bool = False

    def of(self, plan: Plan) -> Calibration:
        """What calibration finds for ``plan``, in which fewer nodes are integer than in this one's."""
        return replace(self, ranges=_by_site(plan, self.tensors))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is suspicious about the data, each in a line that names the samples or tensors."""
        return tuple(suspicions.of_data(self))

    @property
    def facts(self) -> dict:
        """What a scale table keeps of them."""
        return {"samples": self.seen, "digest": self.digest}

    @property
    def digest(self) -> str:
        """SHA-256 of the kept samples and the ranges: what the search depends on."""
        digest = hashlib.sha256()
        for sample in self.samples:
            for name in sorted(sample):
                digest.update(sample[name].tobytes())
        for name, found in sorted(self.ranges.items()):
            digest.update(repr((name, found.low, found.high)).encode())
            for histogram in (found.histogram, found.negative):
                if histogram is not None:
                    digest.update(repr((histogram.exponent, histogram.zeros)).encode())
                    digest.update(histogram.counts.tobytes())
        return digest.hexdigest()


def items(data) -> Iterator:
    """The items of anything that yields calibration data."""
    if hasattr(data, "get_next"):  # onnxruntime's CalibrationDataReader
        while (item := data.get_next()) is not None:
            yield item
    elif isinstance(data, np.ndarray):
        yield data
    elif isinstance(data, (str, bytes, os.PathLike)):
        raise CalibrationError(
            f"calibration data is {shown(data)}, a name; give the arrays themselves, such as np.load of it"
        )
    elif isinstance(data, Mapping) or hasattr(data, "files"):  # a dict of arrays, or an .npz
        yield {name: np.asarray(data[name]) for name in data}
    else:
        try:
            iterator = iter(data)
        except TypeError:
            raise CalibrationError(
                f"calibration data is a {type(data).__name__}; give an iterable of arrays or of "
                "{input name: array}"
            ) from None
        yield from iterator


def is_arrays(data) -> bool:
    """Whether it is an array, a dict of arrays or an .npz, which is read whole."""
    return isinstance(data, (np.ndarray, Mapping)) or hasattr(data, "files")


def _length(data) -> int | None:
    """How many items it yields, if that is known."""
    if is_arrays(data):
        return 1
    if not hasattr(data, "__len__") or hasattr(data, "get_next"):
        return None
    try:
        return len(data) or None  # a `LabelledSet` may not know
    except TypeError:  # nor may a loader of an iterable
        return None


def samples(data, graph: Graph) -> Iterator[dict[str, np.ndarray]]:
    """Checked samples {input name: array of the model's input shape and dtype}, one at a time.

    data: an iterable of dicts, of arrays (for a model with one input), or of (array, label) pairs as
    a DataLoader yields, all of them arrays or torch's tensors; an array or a dict of arrays with a leading
    sample axis; or an ONNX Runtime CalibrationDataReader. A batch larger than the model's is cut up.
    Numbers in another dtype are taken for an input that is not float32 if they are the same in its own.
    Raises CalibrationError.
    """
    return (sample for sample, _ in _counted(data, graph))


def _counted(data, graph: Graph) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """The same, each with the number of all samples as far as it is known, else 0."""
    known, seen = _length(data), 0
    for number, item in enumerate(items(data)):
        count, pieces = _pieces(item, graph, number + 1)
        total = 0 if known is None else seen + count * max(known - number, 1)
        for sample in pieces:
            seen += 1
            yield sample, total


def _by_name(item, graph, what) -> Mapping:
    """An item of any form as {input: array}, the model's inputs exactly."""
    if isinstance(item, (tuple, list)) and item:
        item = item[0]  # (images, labels)
    if not isinstance(item, Mapping):
        if len(graph.inputs) != 1:
            raise CalibrationError(
                f"{what} is one array, the model has inputs {list(graph.inputs)}; give a dict"
            )
        item = {graph.inputs[0]: item}
    if set(item) != set(graph.inputs):
        raise CalibrationError(
            f"{what} has tensors {sorted(map(str, item))}, the model's inputs are {sorted(graph.inputs)}"
        )
    return item


def _of_dtype(value, dtype: str, what) -> np.ndarray:
    """What an item holds for one input, in the model's own dtype."""
    array = np.asarray(arrays(value))
    if array.dtype == dtype:
        return array
    if dtype != "float32":
        other = exactly(array, dtype) if array.dtype.kind in "fiub" else None
        if other is None:
            raise CalibrationError(f"{what} is {array.dtype}; the model takes {dtype}")
        return other
    if array.dtype != np.float64:
        raise CalibrationError(
            f"{what} is {array.dtype}; the model takes float32, normalised as in its training"
        )
    with np.errstate(over="ignore"):  # infinity is found, and named, later
        return array.astype(np.float32)


def _array(value, node: Node, what) -> np.ndarray:
    """What an item holds for one input: whole batches of the model's shape."""
    array, shape = _of_dtype(value, node.dtype, what), model_shape(node)
    if not shape and array.ndim < 2:  # a number: of each sample one
        return array.reshape(-1)
    if array.shape == shape[1:]:
        array = array[None]
    if not shape or array.ndim != len(shape) or array.shape[1:] != shape[1:]:
        raise CalibrationError(
            f"{what} has shape {array.shape}, the model takes {shape}{layout_hint(array.shape, shape)}"
        )
    if array.shape[0] % shape[0]:
        raise CalibrationError(
            f"{what} holds {array.shape[0]} samples, not a multiple of the model's batch {shape[0]}; "
            "drop the incomplete batch"
        )
    return array


def _pieces(item, graph, number) -> tuple[int, Iterator[dict[str, np.ndarray]]]:
    """How many samples an item holds, and these."""
    what = f"calibration item {number}"
    shapes = {name: model_shape(graph[name]) for name in graph.inputs}
    arrays = {
        name: _array(value, graph[name], f"{what}: {name}")
        for name, value in _by_name(item, graph, what).items()
    }
    batches = {name: shape[0] if shape else 1 for name, shape in shapes.items()}
    pieces = {name: array.shape[0] // batches[name] for name, array in arrays.items()}
    if len(set(pieces.values())) != 1:
        raise CalibrationError(f"{what}: its tensors hold different numbers of samples: {pieces}")

    def cut(i):
        sample = {}
        for name, array in arrays.items():
            batch = batches[name]
            sample[name] = np.ascontiguousarray(array[i * batch : (i + 1) * batch]).reshape(shapes[name])
            if array.dtype.kind == "f" and not np.isfinite(sample[name]).all():
                raise CalibrationError(
                    f"{what}, sample {i}: {name} holds NaN or infinity; remove or mend it"
                )
        return sample

    count = next(iter(pieces.values()))
    return count, map(cut, range(count))


def calibrate(
    graph: Graph,
    plan: Plan,
    data,
    config: QuantConfig,
    progress: Progress | None = None,
    first: Callable[[Mapping[str, np.ndarray]], object] | None = None,
    limit: int | None = None,
) -> Calibration:
    """Run the float network on every sample of ``data`` and observe each site's values.

    first: called with the first sample, before it runs. limit: how many samples are read of data that are
    no array and no dict of arrays, not one more. Raises CalibrationError; an empty ``data`` is one.
    """
    # a sum with a fused clip or function is itself stored where its readers stay float: `Calibration.of`
    sums = [name for name in plan.fused.values() if graph[name].operator.integer == "sum"]
    tensors = {name: Range.of(config) for name in (*plan.site_of, *sums)}
    asked = config.search_images if config.searches else 1
    channels = {name: np.zeros(graph[name].shape[-1]) for name in divisible(graph, plan, config)}
    result = Calibration({}, asked=asked, tensors=tensors, channels=channels)

    def observe(node, value):
        if node.name in tensors:
            if not np.isfinite(value).all():
                what = "is not a number" if np.isnan(value).any() else "overflows float32"
                raise GraphError(f"{node.name} {what} on calibration sample {result.seen}")
            tensors[node.name].see(value)
        if node.name in channels:
            channels[node.name] += np.abs(value).max(axis=tuple(range(1, value.ndim - 1))).mean(axis=0)
        scores = node.name == graph.outputs[0] and node.dtype == "float32" and value.ndim > 0
        if scores and value.size == value.shape[-1] > 2:  # classes
            result.answers.append(int(value.argmax()))

    if is_arrays(data):
        limit = None
    total, kept = 0, config.search_images
    for sample, total in islice(_counted(data, graph), limit):
        if first is not None and not result.seen:
            first(sample)
        known = min(total, limit) if limit else total
        turn = result.seen * kept // known if limit and known else None  # arrays give their first samples
        result.seen += 1
        with threadpool_limits(1):  # one BLAS order, one result on every machine
            run(graph, sample, observe)
        if len(result.samples) < kept and (turn is None or result.seen * kept // known > turn):
            # a copy: the user may fill one buffer again and again, or hand out slices of a big array
            result.samples.append({name: array.copy() for name, array in sample.items()})
        if progress is not None:
            progress(result.seen, known, "calibrate")
    if not result.seen:
        raise CalibrationError("calibration data is empty; give at least one sample, better 50")
    result.stopped = result.seen == limit and (not total or total > limit)
    for largest in channels.values():
        largest /= result.seen
    return result.of(plan)


def divisible(graph: Graph, plan: Plan, config: QuantConfig) -> list[str]:
    """The stored tensors that factors of channels are for: those that only depthwise layers read."""
    if not config.how.channel_factors:
        return []
    found = []
    for site in plan.sites.values():
        (tensor, *more), functions = site.tensors, config.how.fuse_functions
        layer = None if more else place(graph, tensor, functions)
        if layer is None or not {layer.name, tensor, *graph.users[tensor]} <= plan.integer:
            continue
        if layer.name == tensor or plan.fused.get(tensor) == layer.name:
            found.append(tensor)
    return found


def divided(
    graph: Graph, plan: Plan, calibration: Calibration, config: QuantConfig
) -> tuple[Graph, Plan, Calibration, dict[str, np.ndarray]]:
    """The network with the tensors that only depthwise layers read divided by `channelwise.factors`, its
    plan, what calibration finds for it, and the factors. The changed ranges are of the kept samples."""
    found = {tensor: factors(largest) for tensor, largest in calibration.channels.items()}
    found = {tensor: f for tensor, f in found.items() if (f != 1).any()}
    if not found:
        return graph, plan, calibration, {}
    other = channelwise(graph, found)
    tensors = calibration.tensors | {name: Range.of(config) for name in found}

    def observe(node, value):
        if node.name in found:
            tensors[node.name].see(value)

    for sample in calibration.samples:
        with threadpool_limits(1):
            run(other, sample, observe)
    plan = plan_of(other, config)
    return other, plan, replace(calibration, tensors=tensors, channels={}).of(plan), found


def _by_site(plan: Plan, tensors: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges of sites from those of their tensors."""
    found = {}
    for name, site in plan.sites.items():
        found[name] = copy.deepcopy(tensors[site.tensors[0]])
        for tensor in site.tensors[1:]:
            found[name].merge(tensors[tensor])
    return found


def site_scale(plan: Plan, name: str, found: Range, config: QuantConfig) -> Scale:
    """The starting scale of a site; from its maximum in the paper (section 4.1)."""
    site, how = plan.sites[name], config.how
    bits = config.bits_read(name, site.readers)
    signed = not (how.unsigned and (site.nonnegative or found.low >= 0))
    if how.asymmetric and found.low < 0:
        levels = steps(bits, signed=False)
        return scale_between(*found.ends(how.start, levels, config.percentile, bool(site.readers)), bits)
    return scale_for(found.threshold(how.start, steps(bits, signed), config.percentile), bits, signed)


def start_table(graph: Graph, plan: Plan, calibration: Calibration, config: QuantConfig) -> ScaleTable:
    """The start of the search, and the methods that do not search: sites by ``config.how.start``, weights
    by the maximum of each output channel."""
    config.check_layers(node.name for node in graph.compute_nodes)
    config.check_wide(graph.nodes)
    activations = {
        name: site_scale(plan, name, found, config) for name, found in calibration.ranges.items()
    }
    weights = {}
    for node in graph.compute_nodes:
        if node.name in plan.integer:
            flat = node.weight.reshape(-1, node.channels)
            input_scale = activations[plan.site_of[node.inputs[0]]].scale
            weights[node.name] = weight_scales(flat, config.bits_of(node.name), node.bias, input_scale)
    return ScaleTable(graph.fingerprint, config, activations, weights)
