"""Scale tables of 7 and of 8 bits in one file: found together, read one by one, compiled by class of CPUs."""

import json

import golden_networks
import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from topi_ext import isa
from tvm_easyquant import cli
from tvm_easyquant.cli.common import USER_ERROR
from tvm_easyquant.errors import ConfigError, TableError
from tvm_easyquant.scales.table import ScaleTables, bits_of_class, told_by_class

SETTINGS = dict(search_images=3, grid=8)


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def found():
    """(graph, images, what was found at both bits)."""
    graph, images = golden_networks.NETWORKS["functions"]()
    return graph, images, eq.quantize(graph, images, bits=(7, 8), **SETTINGS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, images and a table of both bits, as the command line writes it."""
    folder = tmp_path_factory.mktemp("both")
    images = eq.demo.images()
    np.savez(folder / "images.npz", images["calibration_images"][:4])
    (folder / "net.onnx").write_bytes(eq.demo.network_path().read_bytes())
    words = [
        "quantize",
        f"{folder}/net.onnx",
        "--calibration",
        f"{folder}/images.npz",
        "--method",
        "minmax",
    ]
    assert cli.run([*words, "--bits", "7,8", "-o", f"{folder}/both.json"]) == 0
    for bits in ("7", "8"):
        assert cli.run([*words, "--bits", bits, "-o", f"{folder}/int{bits}.json"]) == 0
    return folder


def test_both_are_the_tables_of_two_searches(found):
    """Byte for byte: only what knows nothing of bits is shared."""
    graph, images, q = found
    for bits in (7, 8):
        alone = eq.quantize(graph, images, bits=bits, **SETTINGS)
        one = q.for_bits(bits)
        assert one.table.to_json() == alone.table.to_json()
        assert (one.warnings, one.plan) == (alone.warnings, alone.plan) and not one.others
    feed = graph.inputs[0], images[0]
    assert any((a != b).any() for a, b in zip(
        q.run(dict([feed])).values(), q.for_bits(8).run(dict([feed])).values(), strict=True))  # fmt: skip


def test_a_layer_that_fits_int32_at_7_bits_alone_is_float_at_8_alone():
    """Each width keeps float what does not fit there, as a search of its own does."""
    b = networks.Builder(9, size=154)  # 3 * 154 * 154 * 127 * 255 is beyond int32
    x = b.relu("sums.relu", b.dense("sums", b.flatten("flat", "image"), 4))
    b.nodes["sums"].weight[:] = 0.01
    b.dense("last", x, 3)
    graph, images = b.graph("last"), b.images(2)
    q = eq.quantize(graph, images, bits=(7, 8), method="minmax")
    for bits in (7, 8):
        alone = eq.quantize(graph, images, bits=bits, method="minmax")
        assert q.for_bits(bits).table.to_json() == alone.table.to_json()
        assert q.for_bits(bits).plan.floats == alone.plan.floats
        assert ("sums" in q.for_bits(bits).table.weights) == (bits == 7)


def test_the_file_of_several_is_read_one_by_one(found, tmp_path):
    _, _, q = found
    path = tmp_path / "both.json"
    q.tables.save(path)
    data = json.loads(path.read_text())
    assert data["version"] == 3 and list(data["tables"]) == ["7", "8"]
    for bits in (7, 8):
        assert eq.ScaleTable.load(path, bits).to_json() == q.for_bits(bits).table.to_json()
    assert eq.ScaleTable.load(path).config.bits == 7  # left open
    assert eq.ScaleTable.from_json(path.read_text()).config.bits == 7
    assert ScaleTables.load(path).to_json() == q.tables.to_json()
    one = q.for_bits(8)
    one.tables.save(path)  # of one width the file is what it was
    assert path.read_text() == one.table.to_json() + "\n"
    with pytest.raises(
        TableError, match="is of 8 bits, 7 is asked for; quantize at these, or at --bits 7,8"
    ):
        eq.ScaleTable.load(path, 7)


@pytest.mark.parametrize("change, said", [
    (lambda d: d.update(version=4), "has version 4; this release reads versions 1 to 3: install a newer"),
    (lambda d: d.update(tables={}), "must have tables of 7 and 8 bits, and nothing else"),
    (lambda d: d["tables"].update({"9": 1}), "must have tables of 7 and 8 bits"),
    (lambda d: d.update(more=1), "and nothing else"),
    (lambda d: d["tables"].update({"8": d["tables"]["7"]}), "its table of 8 bits is of 7"),
    (lambda d: d["tables"]["8"].update(model="0" * 64), "its tables are of different models"),
    (lambda d: d["tables"].update({"8": dict(d)}), "at 8 bits has version 3"),
    (lambda d: d["tables"]["8"].pop("unit"), "at 8 bits is damaged: it has no 'unit'"),
])  # fmt: skip
def test_a_damaged_file_of_several_is_refused_in_one_line(found, change, said):
    data = json.loads(found[2].tables.to_json())
    change(data)
    with pytest.raises(TableError, match=said) as error:
        ScaleTables.of(data, "both.json")
    assert str(error.value).startswith("both.json")


def test_an_interrupted_search_of_both_goes_on(found, tmp_path):
    graph, images, q = found
    calls = []

    def stop_late(done, total, text):
        calls.append(text)
        assert text.endswith((" at 7 bits", " at 8 bits")) or "calibrate" in text
        if len([c for c in calls if c.startswith("weights last")]) == 2:  # at the end of the second width
            raise Stop

    path = tmp_path / "state"
    with pytest.raises(Stop):
        eq.quantize(graph, images, bits=(7, 8), checkpoint=path, progress=stop_late, **SETTINGS)
    resumed = eq.quantize(graph, images, bits=(7, 8), checkpoint=path, **SETTINGS)
    assert resumed.tables.to_json() == q.tables.to_json() and not path.exists()


def test_what_several_bits_do_not_go_with_is_one_line(found, tmp_path):
    graph, images, q = found
    for bits in [(7, 9), (), (8, 8)]:
        with pytest.raises(ConfigError, match="use 7 or 8, or .7, 8. for both"):
            eq.quantize(graph, images, bits=bits, method="minmax")
    with pytest.raises(ConfigError, match="without a max_drop"):
        eq.quantize(graph, images, bits=(7, 8), method="minmax", evaluation=[], max_drop=1.0)
    with pytest.raises(ConfigError, match="would hold one table of 2"):
        q.save(tmp_path / "net.easyquant")
    with pytest.raises(TableError, match="is of 8 bits, 7 is asked for"):
        q.for_bits(8).for_bits(7)
    with pytest.raises(TableError, match="is of 7 bits, 8 is asked for"):
        q.for_bits(7).tables.for_class("avx2")


def test_by_class_takes_8_bits_where_they_cost_nothing():
    wide = {name for name in isa.ISAS if bits_of_class(name) == 8}
    assert wide == {"avxvnni", "avx512vnni", "amx", "neon_dotprod", "neon_i8mm"}
    said = "7 bits on generic, avx2; 8 bits on avx512vnni: answers differ between these"
    assert told_by_class(["generic", "avx2", "avx512vnni"]) == said
    assert told_by_class(["avx2"]) == "7 bits on avx2"
    assert isa.classes("avx2")[:2] == ["generic", "avx2"] and "neon" not in isa.classes("avx512vnni")
    assert isa.classes("neon_i8mm") == ["generic", "neon", "neon_dotprod", "neon_i8mm"]


@pytest.mark.ci
@pytest.mark.skipif(isa.arch_of("") != "x86_64", reason="compiles for x86")
def test_a_fleet_by_class_has_each_row_s_own_bits():
    pytest.importorskip("tvm")
    graph, images = golden_networks.NETWORKS["product"]()
    q = eq.quantize(graph, images, bits=(7, 8), method="minmax")
    feed = {graph.inputs[0]: images[0]}
    built = q.build(isa=["avx512vnni", "generic"], bits="by-class")
    assert [*built.variants] == ["avx512vnni", "generic"]
    want, other = (next(iter(q.for_bits(bits).run(feed).values())) for bits in (7, 8))
    np.testing.assert_array_equal(built.variants["generic"](feed)[0], want)
    if isa.host_has("avx512vnni"):
        np.testing.assert_array_equal(built.variants["avx512vnni"](feed)[0], other)
    alone = q.build("llvm -mcpu=cascadelake", bits="by-class")
    assert alone.table == built.variants["avx512vnni"].table == q.for_bits(8).table.to_json()
    assert built.variants["generic"].table == q.table.to_json()
    with pytest.raises(ConfigError, match="bits is 9; use 7, 8 or 'by-class'"):
        q.build(bits=9)


def test_the_command_line_reads_the_one_that_it_asks_for(made, capsys):
    for bits in ("7", "8"):
        one = (made / f"int{bits}.json").read_text()
        assert eq.ScaleTable.load(made / "both.json", int(bits)).to_json() + "\n" == one
    pytest.importorskip("tvm")
    net, both = f"{made}/net.onnx", f"{made}/both.json"
    capsys.readouterr()
    assert cli.run(["plan", net, "--table", both, "--bits", "8", "--target", "llvm -mcpu=core-avx2"]) == 0
    assert "wide_avx2" in capsys.readouterr().out  # which 7 bits never need
    assert cli.run(["plan", net, "--table", f"{made}/int7.json", "--bits", "8"]) == USER_ERROR
    assert "is of 7 bits, 8 is asked for" in capsys.readouterr().err


@pytest.mark.ci
@pytest.mark.linker
@pytest.mark.skipif(isa.arch_of("") != "x86_64", reason="compiles for x86")
def test_compile_by_class_says_who_runs_what_and_so_does_the_report(made, capsys):
    pytest.importorskip("tvm")
    pytest.importorskip("jinja2")
    from tvm_easyquant import package

    net, both, tar = f"{made}/net.onnx", f"{made}/both.json", f"{made}/net.tar"
    compiling = ["compile", net, "-o", tar, "--table"]
    assert cli.run([*compiling, both, "--isa", "avx512vnni,generic", "--bits", "by-class"]) == 0
    assert "7 bits on generic; 8 bits on avx512vnni: answers differ" in capsys.readouterr().err
    record = package.choose(tar, "generic").record
    kept = {v.name: record.tables[v.table]["config"]["bits"] for v in record.variants}
    assert kept == {"avx512vnni": 8, "generic": 7}
    asked = ["--target", f"easyquant -table={both}, llvm -mcpu=core-avx2", "--bits", "8"]
    assert cli.run(["compile", net, "-o", f"{made}/int8.tar", *asked]) == 0
    (table,) = package.read_record(f"{made}/int8.tar").tables.values()
    assert table == json.loads((made / "int8.json").read_text())
    report = ["report", tar, "--no-benchmark", "--isa", "generic", "-o", f"{made}/report.html"]
    assert cli.run(report) == 0
    page = (made / "report.html").read_text()
    assert "their answers differ, as their bits do" in page
    assert cli.run(["report", net, "--table", both, "--no-benchmark", "-o", f"{made}/report.html"]) == 0
    page = (made / "report.html").read_text()
    assert "both.json at 7 bits" in page and "both.json at 8 bits" in page
    assert "compile --bits by-class takes 7 bits on generic, avx2, avx512bw; 8 bits on avxvnni" in page
    capsys.readouterr()
    assert cli.run([*compiling, both, "--bits", "9"]) == USER_ERROR
    assert capsys.readouterr().err == "error: --bits 9: give 7, 8 or by-class\n"
    assert cli.run([*compiling, f"{made}/int8.json", "--bits", "by-class"]) == USER_ERROR
    assert "is of 8 bits, 7 is asked for" in capsys.readouterr().err
    assert cli.run(["compile", net, "-o", tar, "--bits", "8"]) == USER_ERROR
    assert "--bits is of the integers of a scale table" in capsys.readouterr().err
