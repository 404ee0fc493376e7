"""The passes of the host with Relax, by themselves, in a Sequential and in `tvm.compile`; and what is between
them, which stock TVM compiles to the same integers.

Skipped where TVM 0.19 is installed, or none.
"""

from functools import cache
from pathlib import Path

import golden_networks
import networks
import numpy as np
import pytest
import python_process

from tvm_easyquant.errors import TVMMissing

relax = pytest.importorskip("tvm_easyquant.relax.framework", exc_type=TVMMissing).relax
import tvm
from relax_modules import float_module, pictures, unbound, variable

import tvm_easyquant as eq
from topi_ext.errors import LoweringError
from topi_ext.problem import Convolution, ConvSpec
from topi_ext.relax.lower import call_layer
from tvm_easyquant.errors import LoadError, TableError, TargetError
from tvm_easyquant.host import installed
from tvm_easyquant.samples.images import Preprocess
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.search.find import find

ROOT = Path(__file__).resolve().parent.parent
TABLES = Path(__file__).with_name("golden") / "tables"


@cache
def quantized(name, bits):
    """(graph, table, module between the passes) of a network of the golden files."""
    graph, _ = golden_networks.NETWORKS[name]()
    table = eq.ScaleTable.load(TABLES / f"{name}.minmax.int{bits}.json")
    graph = table.prepared(graph)
    return graph, table, eq.rewrite(graph, table)


def run(library, feed):
    made = relax.VirtualMachine(library, tvm.cpu())["main"](*map(tvm.runtime.tensor, feed))
    return [made.numpy()] if hasattr(made, "numpy") else [output.numpy() for output in made]


def llvm(cpu=None):
    return tvm.target.Target({"kind": "llvm"} | ({} if cpu is None else {"mcpu": cpu}))


def names(module, name="main"):
    """The operators that a function calls, in order; of a function of the module its attribute Composite."""
    found = []
    for block in module[name].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call):
                op = value.op
                composite = (
                    str(module[op].attrs["Composite"]) if isinstance(op, tvm.ir.GlobalVar) else op.name
                )
                found.append(str(composite))
    return found


# -- between the passes


def test_between_the_passes_a_layer_is_a_function_with_its_name_and_its_record():
    quantizer = eq.EasyQuant(calibration=pictures(), config=eq.QuantConfig(method="minmax"))
    module = quantizer(float_module())
    layers = {
        str(f.attrs["easyquant.name"]): ConvSpec.from_json(str(f.attrs["easyquant.spec"]))
        for _, f in module.functions_items()
        if isinstance(f, relax.Function) and f.attrs and "Composite" in f.attrs
    }
    assert set(layers) == {"first", "second", "dense"}
    assert layers["first"].kernel == (3, 3) and layers["first"].lo == layers["first"].out_zero_point
    assert layers["dense"].epilogue == "dequantize" and layers["second"].epilogue == "requantize"
    layer, quantize = "easyquant.conv2d", "relax.quantize"
    found = [name for name in names(module) if name in (layer, quantize, "relax.nn.softmax")]
    assert found == [quantize, layer, "relax.nn.softmax", quantize, layer, layer]
    graph, images = networks.residual()
    stored = names(eq.quantize(graph, images, method="minmax", skip=["join", "pool"]).module)
    assert stored.count("relax.dequantize") == 1 and stored.count(quantize) == 3
    relax.analysis.well_formed(module)  # else it raises


@pytest.mark.parametrize("name", ["residual", "kinds", "functions", "pools", "moves", "gate", "denses"])
def test_without_lowering_stock_tvm_computes_the_same_integers(name, compared):
    graph, table, module = quantized(name, 8 if name in ("residual", "pools") else 7)
    (feed,) = golden_networks.pictures(graph, 1)
    want = run_integer(graph, table, feed)
    for output, mine in zip(graph.outputs, run(tvm.compile(module, llvm()), feed.values()), strict=True):
        np.testing.assert_array_equal(mine, want[output])
        compared("relax, stock", mine.size)


@pytest.mark.parametrize("before", ["zero", "default pipeline", "inlined", "ours", "by name"])
def test_any_pipeline_compiles_what_is_between(before):
    graph, table, module = quantized("residual", 7)
    (feed,) = golden_networks.pictures(graph, 1)
    options = {}
    if before == "zero":
        module = relax.get_pipeline("zero")(module)
    elif before == "default pipeline":
        options["relax_pipeline"] = relax.get_default_pipeline(llvm())
    elif before == "inlined":
        module = relax.transform.InlinePrivateFunctions()(module)
    elif before == "ours":
        options["relax_pipeline"] = eq.pipeline("llvm")
    else:
        eq.register_pipeline()
        eq.register_pipeline()  # once more is no error
        options["relax_pipeline"] = "easyquant"
    (mine,) = run(tvm.compile(module, llvm(), **options), feed.values())
    np.testing.assert_array_equal(mine, run_integer(graph, table, feed)["logits"])


def test_a_stock_quantize_divides_and_rounds_half_to_even():
    """It once multiplied by the reciprocal of a scale that was a scalar, which is another number."""
    scale, zero, lo, hi = np.float32(0.3), 7, 3, 127
    steps = np.arange(-140, 140, dtype=np.float32)
    x = np.concatenate([steps * scale, (steps + np.float32(0.5)) * scale])
    x = np.concatenate([x, np.nextafter(x, np.float32(9)), np.nextafter(x, np.float32(-9))])[None]
    from tvm_easyquant.relax.tensors import RelaxTensors, Tensor

    builder = relax.BlockBuilder()
    var = relax.Var("x", relax.TensorType(x.shape, "float32"))
    with builder.function("main", [var]):
        with builder.dataflow():
            t = RelaxTensors(builder)
            made = builder.emit_output(
                t.quantize(Tensor.of(var, x.shape, np.float32), scale, zero, lo, hi).expr
            )
        builder.emit_func_output(made)
    want = np.clip(np.rint(x / scale) + zero, lo, hi).astype(np.uint8)
    assert (np.rint(x * np.float32(1 / scale)) != np.rint(x / scale)).any()  # the two differ here
    module = builder.get()
    for each in (module, eq.LowerInteger("llvm")(module)):
        np.testing.assert_array_equal(run(tvm.compile(each, llvm()), [x])[0], want)
    assert "relax.quantize" not in names(eq.LowerInteger("llvm")(module))
    assert "relax.clip" not in names(eq.LowerInteger("llvm")(module))


# -- in a build


@pytest.mark.parametrize("target", [None, "llvm", {"kind": "llvm"}], ids=str)
def test_the_passes_compose_in_a_sequential_and_in_tvm_compile(target):
    quantizer, lower = (
        eq.EasyQuant(calibration=pictures(), config=eq.QuantConfig(grid=8)),
        eq.LowerInteger(target),
    )
    module = float_module()
    passes = tvm.transform.Sequential([quantizer, relax.transform.CanonicalizeBindings(), lower])
    with tvm.transform.PassContext(opt_level=3):
        lowered = passes(module)
        library = tvm.compile(lowered, lower.target, relax_pipeline=eq.pipeline(target))
    assert [layer.name for layer in lower.layers] == ["first", "second", "dense"]
    assert quantizer.table.data["samples"] == 4
    graph = eq.from_relax(module)
    want = run_integer(graph, quantizer.table, {"image": pictures()[0]})
    mine = run(library, [pictures()[0]])[0]
    assert np.abs(mine - want["dense"]).max() < 1e-6 * np.abs(want["dense"]).max()  # behind a softmax
    assert not any(name.startswith("easyquant.") for name in names(lowered))


def test_a_table_of_a_file_says_that_it_is_not_of_the_module():
    with pytest.raises(TableError, match="names are the module's here, .*: make the .*from this module"):
        eq.EasyQuant(TABLES / "residual.minmax.int7.json")(float_module())


@pytest.mark.parametrize("name", ["residual", "pools"])
def test_the_pass_makes_what_build_compiles(name):
    graph, _, module = quantized(name, 7)
    lower = eq.LowerInteger("llvm")
    lowered, built = lower(module), installed().build(module, "llvm")
    assert [layer.name for layer in lower.layers] == [layer.name for layer in built.layers]
    (feed,) = golden_networks.pictures(graph, 1)
    library = tvm.compile(lowered, llvm(), relax_pipeline=eq.pipeline("llvm"))
    for mine, want in zip(run(library, feed.values()), built(feed), strict=True):
        np.testing.assert_array_equal(mine, want)
    again = eq.LowerInteger("llvm")(lowered)  # there is nothing left to lower
    tvm.ir.assert_structural_equal(again, lowered)


def test_the_pass_takes_a_table_found_before_and_gives_the_same_module():
    module = float_module()
    first = eq.EasyQuant(calibration=pictures(), config=eq.QuantConfig(grid=8))
    made = first(module)
    tvm.ir.assert_structural_equal(made, eq.EasyQuant(first.table)(module))
    with pytest.raises(TableError, match="made for another model"):
        eq.EasyQuant(first.table)(float_module(1))


def test_a_second_module_gets_a_table_of_its_own():
    one = eq.EasyQuant(calibration=pictures(), config=eq.QuantConfig(method="minmax"))
    modules = [one(float_module(seed)) for seed in (0, 1)]
    assert one.table.model == eq.from_relax(float_module(1)).fingerprint
    for seed, module in enumerate(modules):
        alone = eq.EasyQuant(calibration=pictures(), config=eq.QuantConfig(method="minmax"))
        tvm.ir.assert_structural_equal(module, alone(float_module(seed)))


def test_the_pass_warns_keeps_the_preprocessing_and_is_resumed(tmp_path):
    settings, module = Preprocess(scale=1 / 255), float_module()
    options = dict(calibration=pictures(), config=eq.QuantConfig(grid=8), preprocess=settings)
    whole = eq.EasyQuant(**options)
    whole(module)
    assert any("4 calibration samples, where the search asks for 50" in line for line in whole.warnings)
    assert Preprocess.of(whole.table.data["preprocess"]) == settings

    def stop(done, total, text):
        if text == "weights second":
            raise KeyboardInterrupt

    graph, state = eq.from_relax(module), tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        find(graph, pictures(), options["config"], state, stop, preprocess=settings)
    assert state.exists()
    again = eq.EasyQuant(**options, checkpoint=state)
    again(module)
    assert again.table.to_json() == whole.table.to_json() and not state.exists()


def test_the_pass_wants_one_source_of_scales():
    with pytest.raises(ValueError, match="either a scale table or calibration"):
        eq.EasyQuant()


def test_quantize_takes_a_module_and_the_pass_its_parameters():
    bound = float_module()
    q = eq.quantize(bound, pictures(), method="minmax")
    assert q.coverage == 100 and [row["layer"] for row in q.layers] == ["first", "second", "dense"]
    tvm.ir.assert_structural_equal(q.module, eq.EasyQuant(q.table)(bound))
    open_module, params = unbound()
    one = eq.EasyQuant(calibration=pictures(), config=eq.QuantConfig(method="minmax"), params=params)
    two = eq.quantize(open_module, pictures(), method="minmax", params=params)
    assert one(open_module) and one.table.to_json() == two.table.to_json()


def test_constants_that_were_lifted_are_named():
    spec = ConvSpec(1, 2, 2, 4, 4, (1, 1), epilogue="dequantize")
    weight, numbers = np.ones((1, 1, 4, 4), np.int8), (np.zeros(4, np.int32), np.ones(4, np.float32))
    builder, x = relax.BlockBuilder(), variable("x", (1, 2, 2, 4), "uint8")
    w = variable("w", weight.shape, "int8")
    with builder.function("main", [x, w]):
        call = call_layer(builder, "only", Convolution(spec, weight, *numbers), x)
        builder.emit_func_output(builder.emit(relax.Call(call.op, [x, w, *call.args[2:]])))
    with pytest.raises(LoweringError, match="layer only: its weights, bias or multiplier are not constant"):
        eq.LowerInteger("llvm")(builder.get())


def test_a_quantized_module_is_not_quantized_again():
    _, _, module = quantized("chain", 7)
    with pytest.raises(LoadError, match="already quantized; give the float one"):
        eq.quantize(module, [])


def test_a_target_is_checked():
    for make in (eq.LowerInteger, eq.pipeline):
        with pytest.raises(TargetError, match="LLVM knows no -mcpu=pentium9"):
            make("llvm -mcpu=pentium9")


def test_kernels_are_not_compiled_for_a_cpu_without_their_instructions():
    """LLVM ended the process: it does not know how to split the result of an instruction that is not there."""
    _, _, module = quantized("residual", 8)
    avx2 = "llvm -mcpu=core-avx2"
    lowered = eq.LowerInteger(avx2)(module)
    eq.register_pipeline()
    for one in (eq.pipeline(avx2), eq.pipeline("llvm"), "easyquant"):
        with pytest.raises(
            TargetError, match="'llvm[^']*' lacks the instructions of .* for avx2: give LowerI"
        ):
            tvm.compile(lowered, llvm(), relax_pipeline=one)
    again = eq.LowerInteger("llvm")(lowered)  # it has nothing to lower: the kernels are what they are
    with pytest.raises(TargetError, match="are for avx2"):
        eq.pipeline("llvm")(again)
    assert tvm.compile(lowered, llvm("haswell"), relax_pipeline=eq.pipeline(avx2))
    with pytest.raises(TargetError, match="'cuda' is not a CPU"):
        tvm.compile(float_module(), tvm.target.Target("cuda"), relax_pipeline="easyquant")
    with pytest.raises(TargetError, match="was given no target"):
        tvm.compile(float_module(), relax_pipeline="easyquant")


@pytest.mark.parametrize(
    "name, said",
    [
        ("03_tvmc_end_to_end", "11 of 11 kernels run untuned"),
        ("06_tune_for_your_cpu", "once more:"),
        ("11_the_pass_on_todays_tvm", "class"),
    ],
)
def test_the_tutorials_of_both_hosts_run(tmp_path, name, said):
    result = python_process.run(ROOT / "tutorials" / f"{name}.py", cwd=tmp_path)
    assert result.returncode == 0 and said in result.stdout, result.stderr
    assert not list(tmp_path.iterdir())


def test_importing_registers_nothing():
    code = (
        "from tvm import relax\n"
        "before = set(relax.pipeline.PIPELINE_MAP)\n"
        "import tvm_easyquant as eq, topi_ext.lower, tvm_easyquant.relax.passes\n"
        "assert set(relax.pipeline.PIPELINE_MAP) == before\n"
        "eq.register_pipeline()\n"
        "assert set(relax.pipeline.PIPELINE_MAP) - before == {'easyquant'}\n"
        "assert topi_ext.lower.LowerInteger.__module__.startswith(('topi_ext.relax', 'tvm'))\n"
        "eq.quantize\n"
        "assert callable(eq.pipeline)\n"  # no module of ours is called so
    )
    done = python_process.python(code)
    assert done.returncode == 0, done.stderr
