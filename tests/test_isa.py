"""What this machine can run, as `topi_ext.isa` tells it."""

import importlib.util

import pytest

from topi_ext import isa

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
