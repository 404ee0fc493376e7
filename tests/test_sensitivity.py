"""Errors of single layers, the fastest choice of bits, and meeting a drop. No TVM."""

import itertools
import math
from dataclasses import replace

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_easyquant.errors import CheckpointError
from tvm_easyquant.evaluate import compare, evaluate
from tvm_easyquant.network.graph import run
from tvm_easyquant.scales.calibrate import calibrate, start_table
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.scales.numerics import ConfigError, QuantConfig
from tvm_easyquant.scales.partition import plan
from tvm_easyquant.search.bits import (
    FLOAT,
    DropError,
    _smallest,
    compose,
    fastest,
    groups,
    layer_errors,
    meet,
    ranking,
    with_kinds,
)


class Work:
    """A network with its tables, and an accuracy measured on its own float answers."""

    def __init__(self, seed=0, bits=7, skip=(), build=networks.residual, **options):
        self.graph, self.images = build(seed, **options)
        self.config = QuantConfig(bits=bits, method="minmax", skip=skip)
        self.plan = plan(self.graph, skip)
        self.samples = [{"image": x} for x in self.images]
        self.found = calibrate(self.graph, self.plan, self.images, self.config)
        self.made, self.measured = [], 0

    def table(self, bits):
        self.made.append(bits)
        config = replace(self.config, layer_bits=(), bits=bits)
        return start_table(self.graph, self.plan, self.found, config)

    def measure(self, table):
        self.measured += 1
        (output,) = self.graph.outputs
        labels = [int(run(self.graph, s)[output].argmax()) for s in self.samples]
        data = list(zip(self.samples, labels, strict=True))
        scores = evaluate(lambda feed: run_integer(self.graph, table, feed), data)
        return compare(scores["top1"], np.ones(len(data)))

    def meet(self, max_drop, measure=None, **options):
        return meet(
            self.graph,
            self.plan,
            self.config,
            self.table,
            self.samples,
            measure or self.measure,
            max_drop,
            **options,
        )


def test_the_error_of_a_layer_is_that_of_the_network_with_it_alone_in_integers():
    work = Work(skip=["gap", "cat", "join"])
    tables = {7: work.table(7), 8: work.table(8)}
    errors = layer_errors(work.graph, work.plan, tables, work.samples)
    assert set(errors) == {n.name for n in work.graph.compute_nodes}
    for name in ("stem", "dw", "logits"):
        config = QuantConfig(
            bits={"*": 7} | {n.name: FLOAT for n in work.graph.compute_nodes if n.name != name},
            skip=("gap", "cat", "join"),
        )
        table = compose(work.graph, config, tables, work.samples)
        found = []
        for sample in work.samples:
            o = run(work.graph, sample)["logits"].astype(np.float64)
            y = run_integer(work.graph, table, sample)["logits"]
            found.append(((y - o) ** 2).sum() / (o**2).sum())
        assert errors[name][7] == pytest.approx(np.mean(found), rel=0.05)


def test_errors_do_not_depend_on_threads_and_a_worse_layer_ranks_first():
    work = Work()
    tables = {7: work.table(7), 8: work.table(8)}
    one = layer_errors(work.graph, work.plan, tables, work.samples, jobs=1)
    assert one == layer_errors(work.graph, work.plan, tables, work.samples, jobs=3)
    mean = {bits: np.mean([each[bits] for each in one.values()]) for bits in (7, 8)}
    assert 2 < mean[7] / mean[8] < 8  # half the step, a quarter of the squared error
    scaled = replace(
        tables[7], weights={**tables[7].weights, "dw": tables[7].weights["dw"] * np.float32(8)}
    )
    worse = layer_errors(work.graph, work.plan, {7: scaled}, work.samples)
    assert ranking(worse, 7)[0][0] == "dw" and worse["left"][7] == one["left"][7]


KINDS = (7, 8, FLOAT)


@given(st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_fastest_choice_is_that_of_trying_all(count, seed):
    pytest.importorskip("scipy")
    rng = np.random.default_rng(seed)
    times = [dict(zip(KINDS, rng.integers(1, 20, 3).tolist(), strict=True)) for _ in range(count)]
    errors = [dict(zip(KINDS, [*rng.random(2).tolist(), 0.0], strict=True)) for _ in range(count)]
    budget = float(rng.random() * count)

    def total(kinds, of):
        return sum(each[kind] for each, kind in zip(of, kinds, strict=True))

    allowed = [c for c in itertools.product(KINDS, repeat=count) if total(c, errors) <= budget]
    found = fastest(errors, times, budget)
    assert total(found, times) == min(total(c, times) for c in allowed)
    assert total(found, errors) <= budget + 1e-6
    assert fastest(errors, times, -1.0) is None


def test_equally_fast_choices_take_the_least_error():
    pytest.importorskip("scipy")
    assert fastest([{7: 0.4, 8: 0.1, FLOAT: 0}], [{7: 5.0, 8: 5.0, FLOAT: 9.0}], math.inf) == [8]


@given(st.integers(1, 60), st.data())
def test_the_smallest_prefix_is_found_in_few_trials(last, data):
    first = data.draw(st.integers(1, last))
    asked = []
    assert _smallest(lambda k: asked.append(k) or k >= first, last) == first
    assert len(asked) == len(set(asked)) <= 2 * math.log2(last) + 2
    assert _smallest(lambda k: False, last) is None


# -- tables of mixed bits


def test_a_tensor_that_only_this_choice_stores_gets_the_range_it_takes():
    work = Work()
    config = with_kinds(
        work.config, {"left": FLOAT, "right": FLOAT}
    )  # then join's ReLU is float, join is not
    table = compose(work.graph, config, {7: work.table(7), 8: work.table(8)}, work.samples)
    table.check(work.graph)
    seen = []
    for sample in work.samples:
        run(work.graph, sample, lambda node, x: node.name == "join" and seen.append(np.abs(x).max()))
    scale = table.activations["join"]
    assert "join" not in work.plan.site_of and scale.hi == 255
    assert scale.scale == pytest.approx(max(seen) / 127)


@given(st.integers(0, 5), st.data())
@settings(max_examples=25, deadline=None)
def test_any_choice_has_a_table_that_fits(seed, data):
    work = Work(seed)
    layers = [n.name for n in work.graph.compute_nodes]
    kinds = {name: data.draw(st.sampled_from(KINDS)) for name in layers}
    kinds[data.draw(st.sampled_from(layers))] = 8
    tables = {bits: work.table(bits) for bits in (7, 8)}
    table = compose(work.graph, with_kinds(work.config, kinds), tables, work.samples)
    table.check(work.graph)
    for name, kind in kinds.items():
        if kind != FLOAT:
            np.testing.assert_array_equal(table.weights[name], tables[kind].weights[name])
    for site in plan(work.graph, table.config.skip).sites.values():
        if site.readers:
            assert table.activations[site.name].hi <= (127, 255)[min(kinds[r] for r in site.readers) - 7]


def test_layers_that_read_one_tensor_are_a_group():
    work = Work()
    assert ("left", "right") in groups(work.plan)
    assert sorted(n for g in groups(work.plan) for n in g) == sorted(
        n.name for n in work.graph.compute_nodes
    )


# -- meeting a drop


def drops(bad, drop_each=1.0):
    """A measure: every layer of ``bad`` that is not wide enough costs a point."""

    def measure(table):
        wide = {n for n in table.weights if table.config.bits_of(n) == 8}
        costs = sum(n in table.weights and n not in wide for n in bad)
        scores = np.ones(1000)
        scores[: int(10 * costs * drop_each)] = 0
        return compare(scores, np.ones(1000))

    return measure


def test_nothing_is_changed_if_the_drop_is_met():
    work = Work()
    found = work.meet(100)
    assert set(found.kinds.values()) == {7} and found.errors == {} and found.table.config == work.config
    assert any("met: nothing lost" in line for line in found.lines)


def test_the_worst_layers_are_reverted_and_said():
    work = Work()
    errors = layer_errors(work.graph, work.plan, {7: work.table(7)}, work.samples)
    worst = ranking(errors, 7)[0][0]
    found = work.meet(0.5, drops([worst]))
    assert found.kinds[worst] == 8 and FLOAT not in found.kinds.values()
    assert [line for line in found.lines if line.startswith(f"{worst}: 7 -> 8; its error alone")]
    assert found.paired.drop == 0 and found.table.figures[worst]["error_alone"] > 0
    found.table.check(work.graph)


def test_layers_go_on_to_float_and_what_cannot_be_met_says_how_near_it_came():
    work = Work(bits=8)

    def measure(table):
        scores = np.ones(1000)
        scores[: 10 * len(table.weights)] = 0  # every integer layer costs a point
        return compare(scores, np.ones(1000))

    found = work.meet(3, measure)
    assert len(found.table.weights) <= 3 and FLOAT in found.kinds.values()
    with pytest.raises(DropError, match="float the drop is still 1.00 points; 0.5 cannot be met"):
        work.meet(0.5, measure)


def test_few_samples_are_named_as_too_few():
    lines = Work().meet(0.1, lambda table: compare(np.ones(10), np.ones(10))).lines
    assert any("10 labelled samples tell the drop to" in line for line in lines)


def interrupted(measure, after):
    left = [after]

    def broken(table):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return measure(table)

    return broken


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_run_goes_on_with_the_same_result(tmp_path, after):
    work, path = Work(), tmp_path / "state"
    measure = drops([n.name for n in work.graph.compute_nodes][:4])
    expected = work.meet(1.5, measure)
    with pytest.raises(KeyboardInterrupt):
        work.meet(1.5, interrupted(measure, after), checkpoint=path)
    counted = [0]

    def counting(table):
        counted[0] += 1
        return measure(table)

    found = work.meet(1.5, counting, checkpoint=path)
    assert found.kinds == expected.kinds and found.lines == expected.lines
    assert found.table.to_json() == expected.table.to_json()
    assert counted[0] == len([line for line in expected.lines if "against" in line]) - after
    assert not path.exists()


def test_a_state_of_another_run_is_refused(tmp_path):
    work, path = Work(), tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        work.meet(0.0, interrupted(drops(["dw"]), 1), checkpoint=path)
    with pytest.raises(
        CheckpointError, match="belongs to a run with another model; delete it to start anew"
    ):
        Work(seed=1).meet(0.0, checkpoint=path)
    with pytest.raises(CheckpointError, match="belongs to a run with another config"):
        Work(skip=["dw"]).meet(0.0, checkpoint=path)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="is not a search checkpoint; delete it"):
        work.meet(0.0, checkpoint=path)
    for wrong in (-1, None, "0.5"):
        with pytest.raises(ConfigError, match="max_drop is"):
            work.meet(wrong)


def test_the_fastest_choice_that_meets_the_drop_is_taken():
    pytest.importorskip("scipy")
    work = Work()
    layers = [n.name for n in work.graph.compute_nodes]
    clock = {7: dict.fromkeys(layers, 1.0), 8: dict.fromkeys(layers, 2.0)}
    options = dict(times=clock.__getitem__, float_times=dict.fromkeys(layers, 9.0))
    assert set(work.meet(100, **options).kinds.values()) == {7}
    clock[8]["dw"] = 1.0  # 8 bits for nothing
    assert work.meet(100, **options).kinds["dw"] == 8
    measure = drops(layers)
    found = work.meet(3.5, measure, **options)
    assert found.paired.drop <= 3.5 and any("all at 7 bits" in line for line in found.lines)
    assert FLOAT not in found.kinds.values() and 7 in found.kinds.values()
    with pytest.raises(DropError, match="no choice of bits meets a drop of 0.5; the nearest: 1"):
        work.meet(0.5, lambda table: compare(np.r_[np.zeros(10), np.ones(990)], np.ones(1000)), **options)
