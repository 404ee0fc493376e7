"""Tuning on whichever host is installed: the records that both read and write, and our own loop."""

import contextlib
import json
import math
import time
from pathlib import Path

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from topi_ext import records
from topi_ext.problem import ConvSpec
from tvm_easyquant import cli, tuning
from tvm_easyquant.errors import TuneError, TVMMissing
from tvm_easyquant.host import installed
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.tuning import read

ROOT = Path(__file__).resolve().parent.parent
AVX2 = "llvm -mcpu=core-avx2"
SPEC = ConvSpec(1, 8, 8, 3, 8, (3, 3), padding=(1, 1, 1, 1))
OURS = {
    "easyquant": 1,
    "kernel": "direct_generic",
    "target": AVX2,
    "knobs": {"tile": 4, "order": "rows"},
    "us": 2.5,
    "spec": json.loads(SPEC.to_json()),
}
#: of the same layer and kernel, as AutoTVM writes it; one that it could not run; one of another operator
AUTOTVM, FAILED, STOCK = (
    {
        "input": ["llvm -keys=cpu -mcpu=core-avx2", task, [["TENSOR", [1], "uint8"], SPEC.to_json()], {}],
        "config": {
            "index": 0,
            "code_hash": None,
            "entity": [["tile", "ot", 8], ["order", "ot", "channels"]],
        },
        "result": [[1e-6, 3e-6], error, 0.6, 1795558979.3],
        "version": 0.2,
        "tvm_version": "0.19.0",
    }
    for task, error in (
        ("easyquant_direct_generic.cpu", 0),
        ("easyquant_direct_generic.cpu", 4),
        ("conv2d_NCHWc.x86", 0),
    )
)


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_a_file_may_hold_lines_of_both_kinds(tmp_path):
    path = write(tmp_path / "net.log", "# a remark", AUTOTVM, "", OURS, FAILED, STOCK)
    first, second, failed, stock = read(path)
    assert first[:2] == second[:2] == ("direct_generic", SPEC.to_json())
    assert {r.mcpu for r in (first, second, failed, stock)} == {"core-avx2"}
    assert (dict(first.knobs), first.us) == ({"tile": 8, "order": "channels"}, pytest.approx(2.0))
    assert (dict(second.knobs), second.us) == ({"tile": 4, "order": "rows"}, 2.5)
    assert math.isnan(failed.us) and (stock.kernel, stock.spec) == ("conv2d_NCHWc.x86", "")
    assert read(tmp_path / "none.log") == []


@pytest.mark.parametrize(
    "line",
    [
        '{"easyquant": 1, "kern',
        '{"input": ["llvm',
        "[]",
        "7",
        "[" * 100_000,
        "{}",
        {**OURS, "us": "fast"},
        {**OURS, "us": float("nan")},
        {**OURS, "us": -1},
        {**OURS, "us": True},
        {**OURS, "kernel": 3},
        {**OURS, "target": None},
        {**OURS, "knobs": ["tile"]},
        {**OURS, "knobs": {"tile": [4]}},
        {**OURS, "spec": {**OURS["spec"], "groups": 0}},
        {**OURS, "spec": {**OURS["spec"], "speed": 1}},
        {name: value for name, value in OURS.items() if name != "spec"},
        {**AUTOTVM, "result": []},
        {**AUTOTVM, "result": [[], 0, 0.6, 1.0]},
    ],
)
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value:RuntimeWarning")
def test_a_damaged_line_is_refused_by_its_number(line, tmp_path):
    path = write(tmp_path / "net.log", OURS, line)
    with pytest.raises(TuneError, match=r"net.log, line 2 is not a tuning record.*half line\); delete the"):
        read(path)


def test_a_record_of_a_later_form_is_not_guessed_at(tmp_path):
    path = write(tmp_path / "net.log", {**OURS, "easyquant": 2})
    with pytest.raises(
        TuneError, match="line 1 is a tuning record of form 2, this .* reads form 1: install"
    ):
        read(path)


def test_the_fastest_record_of_each_cpu_is_applied_and_then_no_more():
    def record(us, mcpu="a", tile=1):
        return records.Record("k", "s", f"llvm -mcpu={mcpu}", mcpu, (("tile", tile),), us)

    with records.applied([record(3.0), record(2.0, tile=2), record(math.nan), record(1.0, "b")]):
        assert records.best("a") == {("k", "s"): records.Timed(2.0, (("tile", 2),))}
        with records.applied([record(9.0, tile=9)]):  # what is applied last counts, as with AutoTVM's
            assert records.best("a")["k", "s"].us == 9
        assert records.best("b")["k", "s"].us == 1 and records.best("c") == {}
    assert records.best("a") == {}


# -- on the host that is installed


@pytest.fixture(scope="module")
def host():
    try:
        return installed()
    except TVMMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def small(host):
    """A quantized network of two layers, its target and its output."""
    graph, images = networks.chain(3, channels=8, size=8)
    q = eq.quantize(graph, images, method="minmax", bits=7, host=host)
    feed = {"image": images[0]}
    return q, host.target(AVX2), feed, run_integer(graph, q.table, feed)["second"]


def choices(host, small):
    q, target, _, _ = small
    return host.layer_choices(q.graph, q.table, target)


def tune(host, small, log, **settings):
    q, target, _, _ = small
    return host.tune(q.module, log, target, tuner="exhaustive", **{"alternatives": 0, **settings})


def configurations(host, small, layer):
    """The configurations of a layer's kernel, as records that took a microsecond each."""
    work = tuning.Work(layer.choice.kernel, layer.spec, layer.weight)
    for knobs in tuning._left(work, {}, 10**6):
        yield {
            **OURS,
            "kernel": work.row.name,
            "spec": json.loads(work.spec.to_json()),
            "knobs": dict(knobs),
            "us": 1.0,
        }


@pytest.mark.isa("avx2")
def test_tuning_goes_on_where_it_stopped(host, small, tmp_path):
    q, target, feed, want = small
    log, shown = tmp_path / "net.log", []
    log.write_text("# a remark without an end of line")

    def stop(done, total, kernel):
        shown.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(host, small, log, trials=2, progress=stop)
    assert shown == [(1, 4), (2, 4), (3, 4)] and len(read(log)) == 3
    shown.clear()
    done = tune(host, small, log, trials=2, progress=lambda *now: shown.append(now[:2]))
    assert (done.kernels, done.measured, done.resumed, done.trials) == (2, 1, 1, 1) and shown == [(1, 1)]
    assert (
        str(tune(host, small, log, trials=2)) == "2 kernels: 0 measured in 0 trials, 2 already in the log"
    )
    found = read(log)
    assert len({record[:5] for record in found}) == 4 and {record.mcpu for record in found} == {"core-avx2"}
    assert all(record.us > 0 for record in found)
    assert "versions" in json.loads(log.read_text().splitlines()[1])
    assert host.untuned(choices(host, small), target) == (2, 2)
    with host.history(log, target):
        assert host.untuned(choices(host, small), target) == (0, 2)
        assert all(layer.choice.reason.startswith("tuned: ") for layer in choices(host, small))
        built = q.build(target)
    np.testing.assert_array_equal(built(feed)[0], want)


@pytest.mark.ci
@pytest.mark.isa("avx2")
def test_trials_and_early_stopping_end_a_kernel(host, small, tmp_path):
    done = tune(host, small, tmp_path / "a.log", trials=1, alternatives=1)
    assert done.trials == done.kernels == 4  # the default of each
    done = tune(host, small, tmp_path / "b.log", early_stopping=1)
    assert 4 <= done.trials < len(list(configurations(host, small, choices(host, small)[0])))


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("some", [pytest.param(slice(None), marks=pytest.mark.ci), slice(1, None, 9)])
def test_no_configuration_changes_an_integer(host, small, tmp_path, some):
    q, target, feed, want = small
    layer = choices(host, small)[0]
    every = list(configurations(host, small, layer))
    assert len(every) > 10
    digests = {q.build(target).digest}
    for record in every[some]:
        log = write(tmp_path / "net.log", record)
        with host.history(log, target):
            first, _ = choices(host, small)
            assert (first.choice.kernel, first.choice.reason) == (layer.choice.kernel, "tuned: 1 us")
            built = q.build(target)
        np.testing.assert_array_equal(built(feed)[0], want, err_msg=str(record["knobs"]))
        digests.add(built.digest)
    assert len(digests) > 1  # the records were taken


@pytest.mark.isa("avx2")
def test_a_record_of_a_slower_kernel_alone_makes_it_the_chosen_one(host, small, tmp_path):
    q, target, _, _ = small
    first, second = choices(host, small)
    spec = json.loads(first.spec.to_json())
    knobs = {"tile": 1, "order": "rows"}
    slower = tuning.kernels([first], 1)[1].row.name
    log = write(tmp_path / "net.log", {**OURS, "kernel": slower, "spec": spec, "knobs": knobs})
    with host.history(log, target):
        found = [layer.choice.kernel.name for layer in choices(host, small)]
        assert found == [slower, second.choice.kernel.name]
        other = host.target("llvm -mcpu=skylake-avx512")
        assert host.untuned(host.layer_choices(q.graph, q.table, other), other) == (2, 2)


def test_a_log_of_another_cpu_is_refused(host, small, tmp_path):
    log = write(tmp_path / "net.log", {**OURS, "target": "llvm -mcpu=skylake"}, {**OURS, "target": "llvm"})
    said = r"net.log was measured for -mcpu , skylake, the target is llvm.*core-avx2.*: tune on this CPU \("
    with pytest.raises(TuneError, match=said):
        host.history(log, small[1])
    with pytest.raises(TuneError, match="--tuning-records: there is no file no.log"):
        host.history("no.log", small[1])


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("knobs", [{"tile": 99, "order": "channels"}, {"block": 4}])
def test_a_configuration_of_another_version_is_not_compiled(host, small, tmp_path, knobs):
    """Its time counts, and its kernel gets the defaults: a file cannot make what is not proven."""
    q, target, _, _ = small
    (layer, _) = choices(host, small)
    spec = json.loads(layer.spec.to_json())
    line = {**OURS, "kernel": layer.choice.kernel.name, "spec": spec, "knobs": knobs}
    with host.history(write(tmp_path / "net.log", line), target):
        assert choices(host, small)[0].choice.reason == "tuned: 2 us"
        odd = q.build(target)
    assert odd.digest == q.build(target).digest


def test_a_record_of_a_kernel_that_is_no_more_is_left_alone(host, small, tmp_path):
    log = write(tmp_path / "net.log", {**OURS, "kernel": "direct_punched_cards"}, OURS)
    with host.history(log, small[1]):
        assert host.untuned(choices(host, small), small[1]) == (2, 2)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"tuner": "best"}, "tuner is 'best'; use one of .*exhaustive"),
        ({"trials": 0}, "trials is 0; use 1 or more"),
        (
            {"device": ("127.0.0.1", 1, "board")},
            "no tracker at 127.0.0.1:1|this machine only; for a device",
        ),
    ],
)
def test_settings_that_cannot_work(host, small, tmp_path, settings, said):
    with pytest.raises(TuneError, match=said):
        host.tune(small[0].module, tmp_path / "net.log", small[1], **{"tuner": "exhaustive", **settings})
    assert not (tmp_path / "net.log").exists()


@pytest.mark.isa("avx2")
def test_the_command_line(host, tmp_path, capsys, monkeypatch):
    onnx = pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    onnx.save(networks.small_onnx(), "net.onnx")
    np.savez("x.npz", x=np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32))
    quantize = ["quantize", "net.onnx", "--calibration", "x.npz", "--method", "minmax", "-o", "t.json"]
    assert cli.run(quantize) == 0
    network = ["net.onnx", "--table", "t.json", "--target", AVX2]
    words = ["tune-kernels", *network, "-o", "net.log", "--tuner", "exhaustive", "--trials", "1", "--json"]
    capsys.readouterr()
    assert cli.run(words) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == []
    assert cli.run(["plan", *network, "--tuning-records", "net.log"]) == 0
    shown = capsys.readouterr().out
    assert "tuned: " in shown and "0 of 3 kernels run untuned" in shown
    Path("net.log").write_text(Path("net.log").read_text() + '{"easyquant": 1')
    assert cli.run(["plan", *network, "--tuning-records", "net.log"]) == 4
    assert "net.log, line " in capsys.readouterr().err
    assert cli.run(words) == 4
    assert "is not a tuning record" in capsys.readouterr().err


@pytest.mark.isa("avx2")
def test_a_log_of_autotvm_chooses_the_same_kernels_on_every_host(host, monkeypatch):
    """What `test_golden` holds of ResNet-18 with AutoTVM's own records."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import random_networks

    golden = ROOT / "tests" / "golden"
    want = json.loads((golden / "tuning.json").read_text())["resnet18 with the stored log"]
    graph = eq.load_onnx(random_networks.NETWORKS["resnet18"]())
    table = eq.ScaleTable.load(golden / "tables" / "resnet18.minmax.int7.json")
    target = host.target(AVX2)
    with host.history(golden / "autotvm.log", target):
        layers = host.layer_choices(graph, table, target)
        assert host.untuned(layers, target) == (want["untuned"], want["of"])
    assert {layer.name: layer.choice.kernel.name for layer in layers} == want["kernels"]


@pytest.mark.isa("avx2")
def test_compile_takes_our_records(host, tmp_path, capsys, monkeypatch):
    """tvmc reads AutoTVM's lines only, and reads them when the kernels are chosen already: ``compile`` chose
    without the records, and said that all kernels run untuned."""
    monkeypatch.chdir(tmp_path)
    onnx = pytest.importorskip("onnx")
    onnx.save(networks.small_onnx(), "net.onnx")
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    q = eq.quantize("net.onnx", images, method="minmax", bits=7)
    q.table.save("t.json")
    target = host.target(AVX2)
    layers = host.layer_choices(q.graph, q.table, target)
    last = [next(reversed(list(configurations(host, small, layer)))) for layer in layers]
    write(tmp_path / "net.log", *last)
    words = ["compile", "net.onnx", "--table", "t.json", "--target", AVX2, "-o"]
    assert cli.run([*words, "plain.tar"]) == 0
    assert "3 of 3 kernels run untuned" in capsys.readouterr().err
    assert cli.run([*words, "tuned.tar", "--tuning-records", "net.log"]) == 0
    assert "0 of 3 kernels run untuned" in capsys.readouterr().err
    with host.history("net.log", target):
        q.build(target).export("same.tar")
    tuned = Path("tuned.tar").read_bytes()
    assert tuned == Path("same.tar").read_bytes() != Path("plain.tar").read_bytes()


@pytest.mark.isa("avx2")
def test_autotvm_and_our_loop_go_on_from_each_other(host, small, tmp_path):
    if host.name != "relay":
        pytest.skip("AutoTVM is of TVM 0.19")
    from tvm_easyquant.relay.tune import autotvm_log

    q, target, _, _ = small
    log = tmp_path / "net.log"
    assert tune(host, small, log, trials=1).trials == 2
    done = host.tune(q.module, log, target, tuner="grid", trials=1, alternatives=0)
    assert (done.resumed, done.trials) == (2, 0)
    with autotvm_log(log) as copy:
        assert "easyquant_direct" in Path(copy).read_text() and '"easyquant":' not in Path(copy).read_text()
        assert tune(host, small, copy, trials=1).resumed == 2
        assert [r._replace(target="", us=0.0) for r in read(copy)] == [
            r._replace(target="", us=0.0) for r in read(log)
        ]
        with autotvm_log(copy) as same:
            assert same == copy
    with autotvm_log(None) as none:
        assert none is None


# -- on a device of TVM's RPC, with apache-tvm (that of TVM 0.19 is in test_arm)


@pytest.fixture
def tracker(host):
    if host.name != "relax":
        pytest.skip("AutoTVM measures on devices there")
    pytest.importorskip("tornado")
    from tvm.rpc.tracker import Tracker

    tracker = Tracker("127.0.0.1", port=9190, port_end=9290, silent=True)
    yield tracker
    tracker.terminate()


def board(place):
    """A device of the tracker, once it is there."""
    from tvm.rpc.server import Server

    server = Server("127.0.0.1", 9090, 9190, silent=True, tracker_addr=place, key="board")
    for _ in range(100):
        with contextlib.suppress(TuneError):
            tuning.check_tracker(*place, "board")
            return server
        time.sleep(0.1)
    server.terminate()
    raise TimeoutError("the device did not come")


@pytest.mark.ci
@pytest.mark.isa("avx2")
@pytest.mark.linker
def test_a_device_measures_and_may_be_lost(host, small, tracker, tmp_path):
    log, place = tmp_path / "net.log", ("127.0.0.1", tracker.port)
    with pytest.raises(TuneError, match="no device 'board'; it has none: start the device's server"):
        tune(host, small, log, device=(*place, "board"))
    server = board(place)
    try:
        with pytest.raises(TuneError, match="no device 'boart'; it has board"):
            tune(host, small, log, device=(*place, "boart"))

        def lose(done, total, kernel):
            if done == 3:
                server.terminate()

        with pytest.raises(TuneError, match="no device 'board'"):
            tune(host, small, log, trials=2, device=(*place, "board"), progress=lose)
        assert len(read(log)) == 3
    finally:
        server.terminate()
    server = board(place)
    try:
        linked = {"cross_compiler": host.linker()}  # what links for a device of another architecture
        assert tune(host, small, log, trials=2, device=(*place, "board"), **linked).trials == 1
    finally:
        server.terminate()
    assert {json.loads(line)["cpu"] for line in log.read_text().splitlines()} == {"device board"}
    with host.history(log, small[1]):
        assert host.untuned(choices(host, small), small[1]) == (0, 2)


def test_a_tracker_that_is_not_there_is_named_with_what_starts_one(host, small, tmp_path):
    if host.name != "relax":
        pytest.skip("AutoTVM measures on devices there")
    said = r"no tracker at 127.0.0.1:1 .*tvm.exec.rpc_tracker --port 1 .*\(it needs: pip install tornado\)"
    with pytest.raises(TuneError, match=said):
        tune(host, small, tmp_path / "net.log", device=("127.0.0.1", 1, "board"))
