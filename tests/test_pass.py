"""The pass inside a TVM build, AutoTVM on our templates, and the demo network end to end."""

import networks
import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from tvm import autotvm, relay

import tvm_easyquant as eq
from topi_ext.lower import LowerInteger
from tvm_easyquant import demo, load_onnx
from tvm_easyquant.relay import tune as relay_tune
from tvm_easyquant.relay.build import Executor, host_target
from tvm_easyquant.relay.framework import no_tophub
from tvm_easyquant.relay.reference import execute
from tvm_easyquant.samples.images import Preprocess
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.search.find import find


def onnx_relay(model):
    module, params = relay.frontend.from_onnx(model, {"x": (1, 3, 8, 8)}, freeze_params=False)
    return module, params


def pictures(count=4):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, 3, 8, 8)).astype(np.float32) for _ in range(count)]


def test_the_pass_composes_in_a_sequential_under_a_pass_context():
    module, params = onnx_relay(networks.small_onnx())
    quantizer = eq.EasyQuant(calibration=pictures(), config=eq.QuantConfig(grid=8), params=params)
    with no_tophub(), tvm.transform.PassContext(opt_level=3):
        passes = tvm.transform.Sequential([quantizer, LowerInteger(host_target())])
        library = relay.build(passes(module), host_target())
    assert quantizer.table.data["samples"] == 4
    graph = eq.from_relay(module, params)
    out = Executor(library)({"x": pictures(1)[0]})[0]
    np.testing.assert_array_equal(
        out, run_integer(graph, quantizer.table, {"x": pictures(1)[0]})["classifier"]
    )


def test_the_pass_takes_a_table_found_before_and_gives_the_same_module():
    module, params = onnx_relay(networks.small_onnx())
    first = eq.EasyQuant(calibration=pictures(), config=eq.QuantConfig(grid=8), params=params)
    again = eq.EasyQuant(first(module) and first.table, params=params)
    tvm.ir.assert_structural_equal(first(module), again(module))


def test_the_pass_warns_keeps_the_preprocessing_and_is_resumed(tmp_path):
    """It searched by itself, and had none of what the command line had."""
    module, params = onnx_relay(networks.small_onnx())
    settings = Preprocess(scale=1 / 255)
    options = dict(
        calibration=pictures(), config=eq.QuantConfig(grid=8), params=params, preprocess=settings
    )
    whole = eq.EasyQuant(**options)
    whole(module)
    assert any("4 calibration samples, where the search asks for 50" in line for line in whole.warnings)
    assert Preprocess.of(whole.table.data["preprocess"]) == settings

    def stop(done, total, text):
        if text == "weights conv2":
            raise KeyboardInterrupt

    graph, state = eq.from_relay(module, params), tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        find(graph, pictures(), options["config"], state, stop, preprocess=settings)
    assert state.exists()
    again = eq.EasyQuant(**options, checkpoint=state)
    again(module)
    assert again.table.to_json() == whole.table.to_json() and not state.exists()


def test_a_second_module_gets_a_table_of_its_own():
    """The pass kept the first module's table: the second was refused, or worse, quantized by it."""
    first, second = (onnx_relay(networks.small_onnx(seed=seed)) for seed in (0, 1))
    one = eq.EasyQuant(calibration=pictures(), config=eq.QuantConfig(method="minmax"))
    bind = tvm.relay.build_module.bind_params_by_name
    bound = [tvm.IRModule.from_expr(bind(mod["main"], params)) for mod, params in (first, second)]
    modules = [one(module) for module in bound]
    assert one.table.model == eq.from_relay(bound[1]).fingerprint
    for module, float_module in zip(modules, bound, strict=True):
        alone = eq.EasyQuant(calibration=pictures(), config=eq.QuantConfig(method="minmax"))
        tvm.ir.assert_structural_equal(module, alone(float_module))
    given = eq.EasyQuant(one.table)
    with pytest.raises(ValueError, match="made for another model"):
        given(bound[0])


def test_the_pass_wants_one_source_of_scales():
    with pytest.raises(ValueError, match="either a scale table or calibration"):
        eq.EasyQuant()


def tasks_of(target):
    graph, images = networks.residual(1)
    module = eq.quantize(graph, images, method="minmax").module
    with no_tophub():
        return autotvm.task.extract_from_program(LowerInteger(target)(module)["main"], {}, target)


@pytest.mark.isa("avx2")
def test_autotvm_finds_our_templates_and_tunes_them(tmp_path):
    graph, images = networks.residual(1)
    q = eq.quantize(graph, images, method="minmax")
    tasks = tasks_of("llvm -mcpu=core-avx2")
    layers = relay_tune.layer_choices(graph, q.table, "llvm -mcpu=core-avx2")
    assert {t.name for t in tasks} == {f"easyquant_{layer.choice.kernel.name}.cpu" for layer in layers}
    task = next(t for t in tasks if "_direct_avx2" in t.name and len(t.config_space) > 3)
    results = []
    with no_tophub():
        autotvm.tuner.GridSearchTuner(task).tune(
            n_trial=2,
            measure_option=autotvm.measure_option(
                autotvm.LocalBuilder(n_parallel=1), autotvm.LocalRunner(number=1, repeat=1, min_repeat_ms=0)
            ),
            callbacks=[
                autotvm.callback.log_to_file(str(tmp_path / "log.json")),
                lambda tuner, inputs, found: results.extend(found),
            ],
        )
    assert len(results) == 2 and all(r.error_no == 0 for r in results), results
    with autotvm.apply_history_best(str(tmp_path / "log.json")):
        out = Executor(q.build("llvm -mcpu=core-avx2"))({"image": images[0]})[0]
    np.testing.assert_array_equal(out, run_integer(graph, q.table, {"image": images[0]})["logits"])


@pytest.mark.isa("avx2")
def test_every_configuration_of_a_template_is_exact():
    graph, images = networks.residual(1)
    q = eq.quantize(graph, images, method="minmax")
    expected = run_integer(graph, q.table, {"image": images[0]})["logits"]
    target = tvm.target.Target("llvm -mcpu=core-avx2")
    tasks = tasks_of(target)
    for choice in (0, 3, -1):
        with autotvm.apply_history_best(None) as best:
            for task in tasks:
                config = task.config_space.get(choice % len(task.config_space))
                best.update(target, task.workload, config)
            out = Executor(q.build(target))({"image": images[0]})[0]
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("bits, allowed", [pytest.param(8, 0.5, marks=pytest.mark.ci), (7, 1.0)])
def test_the_embedded_network_keeps_its_accuracy(bits, allowed):
    """1,000 labelled images: top-1 within 0.5 points of fp32 at 8 bits, within 1.0 at 7."""
    data = demo.images()
    graph = load_onnx(demo.network_path())
    q = eq.quantize(graph, data["calibration_images"], bits=bits)
    assert q.coverage == 100
    integer = Executor(q.build())
    test, labels = data["test_images"][:1000], data["test_labels"][:1000]
    right = np.mean(
        [integer({"image": x[None]})[0].argmax() == y for x, y in zip(test, labels, strict=True)]
    )
    from tvm_easyquant.network.graph import run

    base = np.mean(
        [run(graph, {"image": x[None]})["logits"].argmax() == y for x, y in zip(test, labels, strict=True)]
    )
    assert base > 0.91 and right >= base - allowed / 100
    for x in test[:20]:
        want = execute(q.module, {"image": x[None]})[0]
        np.testing.assert_array_equal(integer({"image": x[None]})[0], want)


# -- tuning and choosing


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small quantized network."""
    graph, images = networks.chain(3, channels=32, size=16)
    return eq.quantize(graph, images, method="minmax", bits=7)


def choices(quantized, target):
    return relay_tune.layer_choices(quantized.graph, quantized.table, target)


@pytest.mark.isa("avx2")
@pytest.mark.linker
@pytest.mark.ci
@pytest.mark.parametrize("tuner", relay_tune.TUNERS)
def test_tuning_goes_on_where_it_stopped(small, tmp_path, tuner):
    log, target = tmp_path / "net.log", "llvm -mcpu=core-avx2"
    first = relay_tune.tune(small.module, log, target, tuner=tuner, trials=2, alternatives=0)
    assert first.kernels == first.measured == 2 and first.trials == 4 and not first.failed
    indices = [found.config.index for found, _ in relay_tune.read_log(log)]
    assert len(indices) == 4 and indices[0] == indices[2] == 0  # the default, then another
    again = relay_tune.tune(small.module, log, target, tuner=tuner, trials=2, alternatives=0)
    assert (again.measured, again.resumed, again.trials) == (0, 2, 0)
    assert relay_tune.untuned(choices(small, target), target) == (2, 2)
    with autotvm.apply_history_best(relay_tune.read_log(log)):
        assert relay_tune.untuned(choices(small, target), target) == (0, 2)
        assert all(layer.choice.reason.startswith("tuned") for layer in choices(small, target))
        other = "llvm -mcpu=skylake-avx512"  # records of another CPU
        assert relay_tune.untuned(choices(small, other), other)[0] == 2
    assert [layer.name for layer in choices(small, target)] == ["first", "second"]


@pytest.mark.isa("avx2")
def test_our_tasks_are_those_that_autotvm_extracts(small):
    target = tvm.target.Target("llvm -mcpu=core-avx2")
    mine = relay_tune.tasks(choices(small, target), target, alternatives=0)
    with no_tophub():
        lowered = LowerInteger(target)(small.module)
        found = autotvm.task.extract_from_program(lowered["main"], {}, target)
    assert {t.workload for t in mine} == {t.workload for t in found}
    more = relay_tune.tasks(choices(small, target), target, alternatives=2)
    assert {t.workload for t in mine} < {t.workload for t in more}


def test_a_damaged_log_is_refused_by_line(tmp_path):
    log = tmp_path / "net.log"
    assert relay_tune.read_log(log) == []
    log.write_text("# a comment\n\n{half a li")
    with pytest.raises(relay_tune.TuneError, match="line 3 is not a tuning record.*delete the line"):
        relay_tune.read_log(log)
    with pytest.raises(relay_tune.TuneError, match="tuner is 'best'; use one of xgb, ga, random, grid"):
        relay_tune.tune(None, log, tuner="best")
    with pytest.raises(relay_tune.TuneError, match="trials is 0"):
        relay_tune.tune(None, log, trials=0)
