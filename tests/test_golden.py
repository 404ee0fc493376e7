"""What commit 8758a08 wrote: scale tables, integers, kernels, names and command lines, true on any CPU.

A table is the outcome of a search whose float sums differ in their last bits from CPU to CPU, so nothing is
searched here: stored tables are read, and what follows from them is compared exactly
(`benchmarks/same_as.py` compares searches, on one machine). ``pytest --update-golden`` writes the golden
files anew, but for the tables: those stay what 8758a08 made of the networks.
"""

import hashlib
import json
import re
import sys
import zlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import golden_networks
import numpy as np
import pytest
from python_process import python

import tvm_easyquant as eq
from topi_ext import isa
from topi_ext.conv2d import ConvSpec
from tvm_easyquant.scales.integer import Sample, Scales, run_integer  # private: a move changes this line

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).with_name("golden")
COMMAND_LINE = "tvm_easyquant.cli"
#: of float nodes: what IEEE arithmetic settles, whatever the order of sums and the mathematics library
EXACT_IN_FLOAT = ("input", "add", "mul", "clip", "max_pool2d", "concat", "reshape", "slice", "pad", "resize",
                  "depth_to_space", "transpose")  # fmt: skip


@cache
def network(name):
    """(graph, calibration images)"""
    if name in golden_networks.FROM_ONNX:
        pytest.importorskip("tvm")
    return golden_networks.NETWORKS[name]()


@cache
def loaded(table_name):
    """(graph, table, plan) of a stored table."""
    graph, _ = network(golden_networks.TABLES[table_name][0])
    table = eq.ScaleTable.load(GOLDEN / "tables" / f"{table_name}.json")
    graph = table.prepared(graph)
    return graph, table, table.check(graph)


def sha(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def exact(graph, plan):
    """The tensors that are the same on any CPU: those behind no float sum and no float function."""
    found = set()
    for node in graph:
        alike = node.name in plan.integer or node.op in EXACT_IN_FLOAT
        if alike and found.issuperset(node.inputs):
            found.add(node.name)
    return found


def stored_tensors(graph, table, plan, feed):
    """tensor -> uint8, of every tensor that the quantized network stores."""
    sample, scales = Sample(graph.check_inputs(feed)), Scales.of_table(graph, plan, table)
    for node in graph:
        sample.advance(node, scales)
    return sample.stored


# -- tables


@pytest.mark.parametrize("name", golden_networks.TABLES)
def test_a_stored_table_is_read_fits_its_network_and_is_written_the_same(name, request, tmp_path):
    path = GOLDEN / "tables" / f"{name}.json"
    if request.config.getoption("--update-golden") and not path.exists():  # of a new network only
        of, settings = golden_networks.TABLES[name]
        graph, images = network(of)
        eq.quantize(graph, images, **settings).table.save(path)
    _, table, _ = loaded(name)  # `check` compares the fingerprint, too
    table.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_there_is_no_table_without_its_network():
    stored = {path.stem for path in (GOLDEN / "tables").glob("*.json")}
    assert stored == {*golden_networks.TABLES, "resnet18.minmax.int7"}


@pytest.mark.parametrize("name", golden_networks.NETWORKS)
def test_fingerprints(name, golden):
    golden("fingerprints.json", network(name)[0].fingerprint, name)


MINMAX = [
    name for name, (_, settings) in golden_networks.TABLES.items() if settings.get("method") == "minmax"
]


@pytest.mark.parametrize("name", MINMAX)
def test_what_no_float_sum_decides_is_found_again(name):
    """Weight scales, ranges and settings; the activations' scales but for their last bits, which are also in
    the digest of the data."""
    pytest.importorskip("tvm")
    of, settings = golden_networks.TABLES[name]
    _, stored, _ = loaded(name)
    table = eq.quantize(*network(of), **settings).table
    assert (table.model, table.config) == (stored.model, stored.config)
    assert table.data.keys() == stored.data.keys() and table.data["samples"] == stored.data["samples"]
    assert table.weights.keys() == stored.weights.keys()
    assert all(np.array_equal(table.weights[layer], scales) for layer, scales in stored.weights.items())
    assert list(table.activations) == list(stored.activations)
    for site, scale in stored.activations.items():
        again = table.activations[site]
        assert (again.zero_point, again.lo, again.hi) == (scale.zero_point, scale.lo, scale.hi), site
        assert again.scale == pytest.approx(scale.scale, rel=1e-4), site


# -- integers


@pytest.mark.parametrize("name", golden_networks.TABLES)
def test_integers(name, golden):
    graph, table, plan = loaded(name)
    feeds, alike = golden_networks.pictures(graph), exact(graph, plan)
    runs = [stored_tensors(graph, table, plan, feed) for feed in feeds]
    facts = {
        "tensors": {
            t: sha(*(run[t] for run in runs))[:16] for t in graph.nodes if t in runs[0] and t in alike
        }
    }
    if alike.issuperset(graph.outputs):
        facts["outputs"] = sha(
            *(run_integer(graph, table, feed)[t] for feed in feeds for t in graph.outputs)
        )
    golden("integers.json", facts, name)


COMPILED = ("residual.default.int7", "residual.minmax.int8", "moves.default.int7",
            "pools.minmax.int7", "functions.default.int8", "product.default.int7", "gate.minmax.int7",
            "operators_onnx.default.int7")  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_the_compiled_module_gives_the_same_integers(name):
    pytest.importorskip("tvm")
    graph, table, _ = loaded(name)
    run = eq.Executor(eq.build(eq.rewrite(graph, table), "llvm"))
    found = sha(*(output for feed in golden_networks.pictures(graph) for output in run(feed)))
    assert found == json.loads((GOLDEN / "integers.json").read_text())[name]["outputs"]


# -- kernels


def target_of(row):
    """The row's target, with its architecture named: another machine's TVM would mean its own."""
    return row.target if row.arch else f"{row.target} -mtriple=x86_64-linux-gnu"


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("name", golden_networks.NETWORKS)
def test_kernels_of_networks(name, bits, golden):
    pytest.importorskip("tvm")
    from tvm_easyquant.relay.tune import layer_choices

    graph, table, _ = loaded(f"{name}.minmax.int{bits}")
    chosen = {}
    for row in isa.ISAS.values():
        layers = layer_choices(graph, table, target_of(row))
        chosen[row.name] = {layer.name: layer.choice.kernel.name for layer in layers}
    golden("kernels.json", chosen, f"{name} int{bits}")


def specs():
    """[(names of networks, ConvSpec)]: the layers of the benchmark networks, INT7, once those that differ in
    no more than zero points and scales; without the dense layers of VGG16, for their time."""
    stored = json.loads((GOLDEN / "specs.json").read_text())
    return [(row["networks"], ConvSpec.from_json(json.dumps(row["spec"]))) for row in stored]


def random_weights(spec):
    """int8 with the tails of a real layer, the largest of each channel 63; the spec is the seed."""
    rng = np.random.default_rng(zlib.crc32(spec.to_json().encode()))
    weight = rng.standard_normal(spec.weight_shape)
    return np.rint(weight * (63 / np.abs(weight).max(axis=(0, 1, 2)))).astype(np.int8)


#: those with more weights than the cache: their layers are planned for weights in memory
COLD = {"resnet18", "resnet50", "vgg16"}


@pytest.mark.parametrize(
    "cold",
    [
        pytest.param(False, id="weights in the cache"),
        pytest.param(True, id="weights in memory", marks=pytest.mark.ci),
    ],
)
def test_kernels_of_the_benchmark_networks(cold, golden):
    pytest.importorskip("tvm")
    from topi_ext.planner import choose

    chosen = {}
    for networks, spec in specs():
        if networks := [name for name in networks if (name in COLD) == cold]:
            weight, bias = random_weights(spec), np.zeros(spec.out_channels, np.int32)
            how = f"{spec.shape_text} {spec.epilogue}, 0..{spec.data_max} -> {spec.lo}..{spec.hi}"
            rows = {
                row.name: choose(spec, weight, bias, row.name, cold=cold, core=row.mcpu).kernel.name
                for row in isa.ISAS.values()
            }
            if spec.residual:
                own = spec.residual
                how += f", own {own.own_lo}..{own.own_hi} {'first' if own.own_first else 'second'}"
            assert how not in chosen
            chosen[how] = {"networks": networks, **rows}
    golden("kernels_benchmarks.json", chosen, "cold" if cold else "warm")


# -- tuning


def test_names_of_autotvm_s_tasks_and_the_text_of_a_spec(golden):
    """Both are keys of a tuning log: another name or text, and the user's log is worth nothing."""
    pytest.importorskip("tvm")
    from topi_ext.manifest import KERNELS
    from topi_ext.relay.op import template_name

    golden("tuning.json", {row.name: template_name(row) for row in KERNELS}, "tasks")
    texts = {" ".join(networks): spec.to_json() for networks, spec in specs() if spec.epilogue == "add"}
    network, text = next(iter(texts.items()))
    golden("tuning.json", {"of": network, "text": text}, "spec")


def test_the_stored_log_still_knows_its_layers(golden):
    """Of ResNet-18 on AVX2: kernels without a record of all, and what the records chose."""
    pytest.importorskip("tvm")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import random_networks
    finally:
        del sys.path[0]
    from tvm import autotvm

    from tvm_easyquant.relay.tune import layer_choices, read_log, untuned

    graph = eq.load_onnx(random_networks.NETWORKS["resnet18"]())
    table = eq.ScaleTable.load(GOLDEN / "tables" / "resnet18.minmax.int7.json")
    target = target_of(isa.ISAS["avx2"])
    records = read_log(GOLDEN / "autotvm.log")
    with autotvm.apply_history_best(records):
        layers = layer_choices(graph, table, target)
        without, count = untuned(layers, target)
    kernels = {layer.name: layer.choice.kernel.name for layer in layers}
    golden(
        "tuning.json", {"untuned": without, "of": count, "kernels": kernels}, "resnet18 with the stored log"
    )


# -- the command line

STOCK = ("run", "tune", "compile")  # tvmc's own
SOMETIMES = {"micro"}  # in some builds of TVM only
ASK = """
import contextlib, io, json, sys
from {module} import main
found = {{}}
for verb in {verbs!r}:
    text, sys.argv = io.StringIO(), ["tvmc-easyquant", *([verb] if verb else []), "--help"]
    try:
        with contextlib.redirect_stdout(text):
            main()
    except SystemExit as end:
        found[verb] = (end.code or 0, text.getvalue())
print(json.dumps(found))
"""


def ask(*verbs):
    """{verb: (exit code, help)}, on one line an option: where argparse breaks lines differs."""
    code = ASK.format(module=COMMAND_LINE, verbs=verbs)
    result = python(code, COLUMNS="1000")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def plain(text):
    """argparse's help as Python 3.13 has it, options without columns: "-o, --output FILE  what it is"."""
    lines, inside = [], False
    for line in text.splitlines():
        if re.match(r"\S.*:$", line):
            inside = line != "examples:"
        elif line and not line.startswith(" "):
            inside = False
        if inside and line.startswith(" " * 8):
            lines[-1] += "  " + line.strip()
        elif inside and line.startswith("  -"):
            line = re.sub(r"^(  -\w) (\S+(?: \[.*?\])?), (--[\w-]+) \2", r"\1, \3 \2", line)
            lines.append("  " + re.sub(r"  +", "  ", line.strip()))
        else:
            lines.append(re.sub(r"(?<=\S)   +", "  ", line) if inside else line)
    return "\n".join(lines).rstrip() + "\n"


@pytest.mark.skipif(find_spec("tvm") is None, reason="no TVM here")
def test_help_of_every_verb(golden):
    own, (code, text) = (GOLDEN / "help" / "verbs.txt"), ask("")[""]
    listed = re.findall(r"^    ([a-z-]+)(?:  |$)", plain(text), re.M)
    verbs = [verb for verb in listed if verb not in {*STOCK, *SOMETIMES}]
    assert code == 0 and set(STOCK) < set(listed)
    golden(own.relative_to(GOLDEN), "\n".join(verbs) + "\n")
    found = ask(*verbs, *STOCK, *SOMETIMES.intersection(listed))
    assert {verb: code for verb, (code, _) in found.items()} == dict.fromkeys(found, 0)
    for verb in verbs:
        golden(f"help/{verb}.txt", plain(found[verb][1]))
    for verb in STOCK:  # without those of a target's attributes, which are what TVM was built with
        flags = sorted(set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", found[verb][1].split("\n\n")[0])))
        flags = [flag for flag in flags if not re.match("--(target|executor|runtime)-", flag)]
        golden(f"help/{verb}.txt", "\n".join(flags) + "\n")
    assert {path.stem for path in own.parent.iterdir()} == {*verbs, *STOCK, "verbs"}


def test_help_reads_alike_whatever_python_wrote_it():
    """3.13 writes an option's metavar once, which moves the columns."""
    before = """\
usage: a [-h] [-o FILE] NAME

positional arguments:
  NAME                  the model

options:
  -h, --help            show this
  -o FILE, --output FILE
                        written
  --set NAME=VALUE [NAME=VALUE ...]
                        a setting
  -t NAME [NAME ...], --to NAME [NAME ...]
                        targets

examples:
  a  --set    b
"""
    after = """\
usage: a [-h] [-o FILE] NAME

positional arguments:
  NAME              the model

options:
  -h, --help        show this
  -o, --output FILE  written
  --set NAME=VALUE [NAME=VALUE ...]
                    a setting
  -t, --to NAME [NAME ...]
                    targets

examples:
  a  --set    b
"""
    assert plain(before) == plain(after)
    assert "  -o, --output FILE  written\n" in plain(before) and plain(before).endswith("  a  --set    b\n")
