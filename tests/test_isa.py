"""What this machine can run, as `topi_ext.isa` tells it."""

import importlib.util
import itertools

import pytest

from topi_ext import isa
from topi_ext.errors import KernelError

ZEN4 = ["avx2", "avx512bw", "avx512f", "avx512vnni", "fast-lzcnt", "gfni", "lzcnt", "sse4.2"]


def hide(monkeypatch, *flags):
    monkeypatch.setattr(isa, "host_flags", lambda: frozenset(flags))


def test_a_cpu_that_hides_nothing_lacks_nothing(monkeypatch):
    hide(monkeypatch, "abm", "avx2", "avx512bw", "avx512f", "avx512_vnni", "gfni", "sse4_2")
    assert isa.lacking(ZEN4) == []


def test_a_virtual_machine_may_call_itself_zen_4_without_avx512(monkeypatch):
    """LLVM went by the CPU's name, and every network compiled for "this CPU" ended with SIGILL there."""
    hide(monkeypatch, "abm", "avx2", "sse4_2")
    assert isa.lacking(ZEN4) == ["avx512f", "gfni"]


def test_part_of_avx512_is_named_where_the_rest_is_there(monkeypatch):
    hide(monkeypatch, "abm", "avx2", "avx512bw", "avx512f", "gfni", "sse4_2")
    assert isa.lacking(ZEN4) == ["avx512vnni"]


def test_nothing_is_said_where_the_flags_are_not_known(monkeypatch):
    hide(monkeypatch)
    assert isa.lacking(ZEN4) == []


def test_this_machine_does_without_rows_whose_kernels_never_ran(monkeypatch):
    hide(monkeypatch, "avx2", "avx_vnni", "amx_tile", "amx_int8", "avx512f", "avx512_vnni")
    assert isa.lacking(SAPPHIRE_RAPIDS) == ["avx512bw", "avx512vl"]
    assert isa.hidden(SAPPHIRE_RAPIDS) == ["amx-int8", "amx-tile", "avx512bw", "avx512vl", "avxvnni"]
    assert {row.name for row in isa.ISAS.values() if not row.ran} == {"avxvnni", "amx"}


@pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="no TVM here")
def test_the_target_of_this_cpu_has_no_instruction_that_this_cpu_lacks():
    import tvm
    from tvm.target import codegen

    from tvm_easyquant.relay.build import host_target

    target = tvm.target.Target(host_target())
    if str(target.attrs.get("mcpu", "")):
        has = tvm.get_global_func("target.target_has_feature")
        features = [f for f in map(str, codegen.llvm_get_cpu_features(target)) if has(f, target)]
        assert isa.lacking(features) == []


# -- which row a CPU gets

SAPPHIRE_RAPIDS = {"avx2", "avx512bw", "avx512vl", "avx512vnni", "avxvnni", "amx-tile", "amx-int8"}


def with_rows(monkeypatch, rows):
    monkeypatch.setattr(isa, "ISAS", {row.name: row for row in rows})


def test_every_row_falls_back_on_generic_in_the_end():
    for name in isa.ISAS:
        assert isa.usable(name)[0] == name and isa.usable(name)[-1] == "generic"


def test_a_row_that_falls_back_on_itself_is_named(monkeypatch):
    with_rows(monkeypatch, [isa.Isa("a", (), (), "", "b"), isa.Isa("b", (), (), "", "a")])
    with pytest.raises(KernelError, match="a falls back on itself: a -> b -> a"):
        isa.usable("a")


@pytest.mark.parametrize("features, arch, best", [
    ((), "x86_64", "generic"),
    (("avx2",), "x86_64", "generic"),  # its row computes by fused multiply-adds as well
    (("avx2", "fma"), "x86_64", "avx2"),
    (("avx2", "avx512bw", "avx512vl"), "x86_64", "avx512bw"),
    (("avx2", "fma", "avxvnni"), "x86_64", "avxvnni"),  # Alder Lake
    (("avx2", "avx512bw", "avx512vl", "avx512vnni"), "x86_64", "avx512vnni"),
    (("avx2", "avx512bw", "avx512vl", "avx512vnni", "avxvnni"), "x86_64", "avx512vnni"),  # Zen 5
    (("neon",), "armv7", "armv7_neon"),
    (("neon",), "aarch64", "neon"),
    (("neon", "dotprod"), "aarch64", "neon_dotprod"),
    (("neon", "dotprod", "i8mm"), "aarch64", "neon_i8mm"),
    (("neon", "i8mm"), "aarch64", "neon"),  # its row wants dotprod as well
    (("v",), "riscv64", "generic"),
])  # fmt: skip
def test_the_best_row_has_the_longest_chain_in_any_order_of_the_table(monkeypatch, features, arch, best):
    """The last match was taken once, so the order of the rows decided."""
    rows = list(isa.ISAS.values())
    for order in (rows, rows[::-1], sorted(rows, key=str)):
        with_rows(monkeypatch, order)
        assert isa.best(set(features).__contains__, arch) == best


def test_a_narrower_row_beside_a_wider_one_and_one_without_vectors(monkeypatch):
    """256-bit VNNI, and AMX, which has no width of a vector: the longest chain wins."""
    rows = [row for row in isa.ISAS.values() if not row.arch]
    for order in itertools.permutations(rows):
        with_rows(monkeypatch, order)
        assert isa.best(SAPPHIRE_RAPIDS.__contains__, "x86_64") == "amx"
        assert isa.best((SAPPHIRE_RAPIDS - {"amx-int8"}).__contains__, "x86_64") == "avx512vnni"
        assert isa.best({"avx2", "fma", "avxvnni"}.__contains__, "x86_64") == "avxvnni"
    assert isa.usable("amx") == ["amx", "avx512vnni", "avx512bw", "avx2", "generic"]
    with pytest.raises(KernelError, match="amx has no vectors"):
        _ = isa.ISAS["amx"].lanes
    with pytest.raises(KernelError, match="avxvnni has no instructions for vectors of 512 bits"):
        isa.ISAS["avxvnni"].vectors_of(512)


def test_two_rows_that_are_equally_good_are_an_error_not_an_order():
    with pytest.raises(KernelError, match="avxvnni and avx512bw are equally good: one must fall back on"):
        isa.best({"avx2", "fma", "avx512bw", "avx512vl", "avxvnni"}.__contains__, "x86_64")
