"""The verbs that measure: evaluate, benchmark, doctor; run in this process, their figures checked."""

import json
import re
from importlib import import_module

import networks
import numpy as np
import pytest

pytest.importorskip("tvm")
import onnx

from tvm_easyquant import cli, load_onnx, quantize
from tvm_easyquant.host import installed
from tvm_easyquant.measure.race import Benchmark, Call, LayerTime, _rows, named
from tvm_easyquant.network.graph import run
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.scales.numerics import QuantConfig

HOST = installed()
profile = import_module(f"tvm_easyquant.{HOST.name}.profile")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A network, its table, and labelled samples: the float network's own answers, two of them wrong."""
    folder = tmp_path_factory.mktemp("measure")
    onnx.save(networks.small_onnx(), folder / "net.onnx")
    images = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)
    q = quantize(folder / "net.onnx", images, bits=7, method="minmax")
    q.table.save(folder / "net.json")
    (output,) = q.graph.outputs
    labels = np.array([run(q.graph, {"x": x[None]})[output].argmax() for x in images])
    labels[:2] = (labels[:2] + 1) % 5
    np.savez(folder / "set.npz", images=images, labels=labels)
    return folder, images, labels, q


def answer(capsys, *command):
    assert cli.run(list(map(str, command))) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_counts_the_same_as_the_reference(work, capsys):
    folder, images, labels, q = work
    found = answer(capsys, "evaluate", folder / "net.onnx", "--table", folder / "net.json", "--data",
                   folder / "set.npz", "--json")["metrics"]["top1"]  # fmt: skip
    (output,) = q.graph.outputs
    mine = [run_integer(q.graph, q.table, {"x": x[None]})[output].argmax() for x in images]
    assert found["n"] == 12 and found["reference"] == pytest.approx(100 * 10 / 12)
    assert found["value"] == pytest.approx(100 * np.mean(mine == labels))
    assert cli.run(["evaluate", str(folder / "net.onnx"), "--table", str(folder / "net.json"), "--data",
                    str(folder / "set.npz"), "--limit", "3"]) == 0  # fmt: skip
    assert "of 3" in capsys.readouterr().out


def test_evaluate_with_a_metric_and_data_of_the_user_s(work, capsys, monkeypatch):
    folder = work[0]
    (folder / "mymetric.py").write_text(
        "import numpy as np\n"
        "def pairs():\n    yield from ((np.full((1, 3, 8, 8), i, np.float32), i) for i in range(4))\n"
        "def half(outputs, label):\n    return 0.5 if label else 1.0\n"
    )
    monkeypatch.syspath_prepend(folder)
    found = answer(capsys, "evaluate", folder / "net.onnx", "--table", folder / "net.json", "--data",
                   "mymetric:pairs", "--metric", "mymetric:half", "--json")["metrics"]  # fmt: skip
    assert found["mymetric:half"]["value"] == 62.5 and found["mymetric:half"]["drop"] == 0


def test_quantize_meets_a_drop_of_the_user_s_metric(work, capsys, monkeypatch, tmp_path):
    """No function of two arguments was accepted: it was called with none, to see whether it takes them."""
    folder, images, *_ = work
    (tmp_path / "margins.py").write_text(
        "import numpy as np\n"
        "def nearness(outputs, label):\n"
        "    distance = float(np.abs(outputs[0].reshape(-1) - label).max())\n"
        "    return 1 / (1 + distance)\n"
        "def pairs():\n"
        f"    for x in np.load({str(folder / 'set.npz')!r})['images']:\n"
        "        yield x[None], np.zeros(4)\n"
        "def alone(outputs):\n    return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    np.savez(tmp_path / "images.npz", x=images)
    command = ["quantize", folder / "net.onnx", "--calibration", tmp_path / "images.npz", "--method", "minmax",
               "--target", "llvm", "-o", tmp_path / "met.json", "--eval", "margins:pairs", "--json"]  # fmt: skip
    found = answer(capsys, *command, "--max-drop", "50", "--metric", "margins:nearness")
    q = quantize(folder / "net.onnx", images, bits=7, method="minmax")
    (output,) = q.graph.outputs
    near = [1 / (1 + np.abs(run(q.graph, {"x": x[None]})[output]).max()) for x in images]
    mine = [1 / (1 + np.abs(run_integer(q.graph, q.table, {"x": x[None]})[output]).max()) for x in images]
    assert found["drop"] == pytest.approx(100 * (np.mean(near) - np.mean(mine)), abs=1e-4)
    assert found["drop"] != 0 and any(line.startswith("met: ") for line in found["decisions"])
    for metric, message in (("margins:alone", r"it is called with the arguments \(outputs, label\); define it so"),
                            ("margins:none", "names no function")):  # fmt: skip
        assert cli.run(list(map(str, [*command, "--max-drop", "50", "--metric", metric]))) == 4
        _, err = capsys.readouterr()
        assert len(err.splitlines()) == 1 and re.search(message, err)


@pytest.mark.ci
def test_benchmark_names_every_layer_the_machine_and_the_ratio(work, capsys):
    folder, _, _, q = work
    command = ["benchmark", folder / "net.onnx", "--table", folder / "net.json", "--rounds", "3"]
    found = answer(capsys, *command, "--target", "llvm", "--json")
    assert [row["name"] for row in found["layers"]] == [n.name for n in q.graph.compute_nodes]
    for row in found["layers"]:
        assert row["kind"] == "int7" and row["ms"] > 0 and row["ms_fp32"] > 0, row
    assert found["ms"] > 0 and found["speedup"] > 0 and found["host"]["cpu"]
    assert found["target"].split()[0] == "llvm"
    assert cli.run(list(map(str, command))) == 0
    out = capsys.readouterr().out
    assert HOST.this_cpu() == "llvm" or "-mcpu=" in out  # this CPU, not tvmc's default
    assert "times as fast" in out or "no figure: " in out  # on a busy machine
    assert "everything else" in out and "medians of 3 rounds" in out


@pytest.mark.ci
@pytest.mark.relay
@pytest.mark.parametrize(
    "rest, times", [(["--data", "set.npz", "--rounds", "3"], 1), (["--no-benchmark"], 0)]
)
def test_a_report_lowers_its_network_once_if_it_runs_it(work, capsys, monkeypatch, rest, times):
    """It was lowered for the plan, for the times and for the accuracy, and each was another build."""
    pytest.importorskip("jinja2")
    from topi_ext.relay import lower

    runs, matching = [], lower._Lowering
    monkeypatch.setattr(lower, "_Lowering", lambda *found: runs.append(1) or matching(*found))
    monkeypatch.chdir(work[0])
    facts = answer(capsys, "report", "net.onnx", "--table", "net.json", "-o", "page.html", "--json", *rest)
    assert len(runs) == times
    assert all(row["kernel"] != "TVM float32" and row["proof"] for row in facts["layers"])
    assert (
        ("top1" in facts["accuracy"])
        == all(row["ms"] is not None for row in facts["layers"])
        == (len(rest) > 1)
    )


@pytest.mark.ci
def test_layers_kept_float_and_residual_branches_get_their_own_times():
    """A branch's layer is moved before the layer that its add was fused into; names must follow."""
    nodes = [
        ("Conv", ["x", "w0"], ["a"], "big", {"pads": [2] * 4}),
        ("Conv", ["x", "w1"], ["b"], "small", {}),
        ("Add", ["a", "b"], ["c"], "join", {}),
        ("Conv", ["c", "w2"], ["y"], "last", {"pads": [1] * 4}),
    ]
    rng = np.random.default_rng(0)
    shapes = {"w0": (64, 64, 5, 5), "w1": (64, 64, 1, 1), "w2": (8, 64, 3, 3)}
    weights = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    model = networks.onnx_model(nodes, {"x": [1, 64, 12, 12]}, {"y": [1, 8, 12, 12]}, weights)
    x = [rng.standard_normal((1, 64, 12, 12)).astype(np.float32)]
    for skip in ((), ("last",)):
        q = quantize(load_onnx(model), x, method="minmax", skip=skip)
        floats = HOST.build_float(HOST.float_module(load_onnx(model)), "llvm")
        found = HOST.benchmark(q.graph, floats, q.build("llvm"), rounds=3)
        layers = {row.name: row for row in found.layers}
        assert list(layers) == ["big", "small", "last"]
        assert layers["last"].kind == ("float32" if skip else "int8") and layers["last"].ms > 0
        # 25 times the work: no noise turns this round
        assert layers["big"].ms > layers["small"].ms and layers["big"].ms_fp32 > layers["small"].ms_fp32


def test_what_is_slower_is_noted():
    layers = [LayerTime("a", "int7", "k", 2.0, 1.0), LayerTime("b", "int7", "k", 1.0, 1.001),
              LayerTime("c", "float32", "TVM", 9.0, 1.0), LayerTime("d", "int8", "k", None, 1.0),
              LayerTime("e", "int8", "k", 0.003, 0.002)]  # fmt: skip
    slow = Benchmark(2.0, 1.0, 0.5, (1, 3), layers, 0.0, 1, 3, "llvm")
    assert [layer.name for layer in slow.slower] == ["a"]
    assert "2.00 times as long" in slow.notes[0] and "1 integer layers are slower" in slow.notes[1]
    assert not Benchmark(1.0, 2.0, 2.0, (1, 1), layers[1:], 0.0, 1, 3, "llvm").notes


def timing(ms=2.0, fp32=6.0, **more):
    return Benchmark(ms, fp32, fp32 / ms, (ms, ms), [], 0.0, 1, 15, "llvm", **more)


def test_a_measurement_that_cannot_be_right_has_no_headline():
    """On a busy machine the headline was 43.76 times as fast, while one layer alone took longer than the whole
    network."""
    parts = ((1.9, 0.4), (6.2, 2.0))
    steady = timing(ratios=(2.9, 3.1), parts=parts)
    assert steady.doubt is None and steady.headline == "3.00 times as fast (2.90 to 3.10)"
    for found, message in (
        (timing(ratios=(1.5, 3.1), parts=parts), "between 1.50 and 3.10 times"),
        (timing(ratios=(2.9, 3.1), parts=(*parts[:1], (6.2, 9.0))), "the float32 network took 6.000 ms"),
        (timing(0.14, ratios=(43, 44), parts=((2.5, 0.4), parts[1])), "the integer network took 0.140 ms"),
        (timing(ratios=(2.9, 3.1), parts=((0.7, 0.4), parts[1])), "its calls 0.700 ms together"),
    ):
        assert message in found.doubt and found.headline == f"no figure: {found.doubt}"
        assert found.notes == [found.doubt]


def test_a_doubtful_measurement_keeps_no_layer_float():
    graph = load_onnx(networks.small_onnx())

    def measure(graph, *_, **__):
        layers = [LayerTime("conv2", "int7", "k", 2.0, 1.0)]
        return Benchmark(2.0, 1.0, 0.5, (2, 2), layers, 0.0, 1, 3, "llvm", ratios=(0.3, 0.9))

    found = profile.keep_if_faster(graph, None, QuantConfig(), measure=measure)
    assert found.skip == () and "no layer was kept float for speed: half of the rounds" in found.notes[0]


def test_doctor_counts_and_names_what_the_cpu_has_and_the_system_refuses(capsys, monkeypatch):
    """AMX in a container that does not let it have its registers: the kernels of the next row run, and it is said."""
    from topi_ext import cpu, isa

    told = cpu.Flags(cpu.flags().names, "CPUID and XGETBV", frozenset({"amx_tile", "amx_int8"}))
    monkeypatch.setattr(cpu, "flags", lambda: told)
    monkeypatch.setattr(f"tvm_easyquant.{installed().name}.doctor.saturation", dict)  # which takes its time
    assert answer(capsys, "doctor", "--json")["flags_refused"] == ["amx_int8", "amx_tile"]
    assert cli.run(["doctor"]) == 0
    said = f"2 features of the CPU, by its system or this container: amx_int8, amx_tile; the kernels of {isa.of_host()[-1]}"
    assert f"refused   {said} run instead" in capsys.readouterr().out


@pytest.mark.relay  # whose TVM has an int8 convolution for CPUs
@pytest.mark.isa("avx2")
def test_doctor_shows_the_saturation_in_a_number(capsys):
    found = answer(capsys, "doctor", "--json")
    assert found["saturation"]["ours_wrong"] == 0 < found["saturation"]["tvm_int8_wrong"]
    assert {"generic", "avx2"} <= {row["isa"] for row in found["rows"] if row["here"]}
    assert all(row["kernels"] is not None for row in found["rows"])
    assert cli.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "pmaddubsw saturates here" in out and "ours 0.0%" in out and "linker" in out


@pytest.mark.parametrize("gain", [True, False])
def test_slower_layers_stay_float_only_if_the_network_gains(gain):
    graph, seen = load_onnx(networks.small_onnx()), []

    def measure(graph, floats, integers, bits, feed, progress):
        seen.append(len({layer.name for layer in integers.layers} & {n.name for n in graph.compute_nodes}))
        ms = 3.0 if seen[1:] else 4.0
        layers = [LayerTime("conv2", "int7", "k", 2.0, 1.0), LayerTime("conv1", "int7", "k", 1.0, 2.0)]
        return Benchmark(ms, 5.0, 5 / ms if gain else 1 / len(seen), (ms, ms), layers, 0.0, 1, 3, "llvm")

    config = QuantConfig(order="layerwise", bias_correction=True, rounding="descent", start="kl")
    found = profile.keep_if_faster(graph, None, config, measure=measure)
    assert seen == [3, 2]
    assert found.skip == (("conv2",) if gain else ())
    assert ("3.000 instead of 4.000 ms" in found.notes[0]) == gain
    assert gain or ("conv2" in found.notes[0] and "not faster" in found.notes[0])


def test_nothing_is_kept_float_where_nothing_would_be_left():
    graph = load_onnx(networks.small_onnx())

    def measure(graph, *_, **__):
        layers = [LayerTime(n.name, "int7", "k", 2.0, 1.0) for n in graph.compute_nodes]
        return Benchmark(2.0, 1.0, 0.5, (2, 2), layers, 0.0, 1, 3, "llvm")

    found = profile.keep_if_faster(graph, None, QuantConfig(), measure=measure)
    assert found.skip == () and "every layer is faster in float" in found.notes[0]
    assert "2.00 times as long" in found.notes[1]


@pytest.mark.ci
def test_quantize_keep_if_faster_says_what_it_did(work, capsys):
    folder = work[0]
    assert cli.run(["quantize", "net.onnx", "--keep-if-faster", "--resume"]) == 4
    assert "--resume cannot rely on it" in capsys.readouterr().err
    np.savez(folder / "images.npz", x=work[1])
    found = answer(capsys, "quantize", folder / "net.onnx", "--calibration", folder / "images.npz", "-o",
                   folder / "fast.json", "--method", "minmax", "--keep-if-faster", "--json")  # fmt: skip
    kept = [row["layer"] for row in found["layers"] if row["kind"] == "float32"]
    assert bool(kept) <= bool(found["notes"])


def test_every_call_is_counted_once():
    """An average pool that runs as a convolution of ours is no layer of the model: it is everything else."""
    graph = load_onnx(networks.small_onnx())
    layers = [n.name for n in graph.compute_nodes]
    order = [layers[0], "pool", *layers[1:]]
    calls = [Call("fused_easyquant_conv2d", None, 1, 1, 2.0**i, ours=True) for i in range(4)] + [
        Call("fused_softmax", None, 0, 1, 0.5)
    ]
    floats = [
        Call("fused_nn_conv2d", None, n.weight.size, int(np.prod(n.shape)), 1.0)
        for n in graph.compute_nodes
    ]
    rows, other = _rows(graph, {}, {}, named(calls, order), floats[::-1])
    assert [row.ms for row in rows] == [1.0, 4.0, 8.0] and other == 2.5
    assert [row.ms_fp32 for row in rows] == [1.0] * 3
    rows, other = _rows(
        graph, {}, {}, named(calls[1:], order), floats[1:]
    )  # one call too few: nothing is guessed
    assert [row.ms for row in rows] == [None] * 3 and other == 14.5 and rows[0].ms_fp32 is None


MISTAKES = {
    "no data": (["evaluate", "--data", "no.npz"], "no file .*no.npz"),
    "no labels": (["evaluate", "--data", "images.npz"], "has no array labels"),
    "a folder without classes": (["evaluate", "--data", "."], "one folder for each class"),
    "a metric that is none": (["evaluate", "--data", "set.npz", "--metric", "json:decoder"], "not a function"),
    "an unknown module": (["evaluate", "--data", "set.npz", "--metric", "nowhere:f"], "names no function"),
    "no samples": (["evaluate", "--data", "set.npz", "--limit", "0"], "--limit is 0"),
    "a scale that is no number": (["evaluate", "--data", "set.npz", "--scale", "x"], "--scale 'x': give a number"),
    "a size that is none": (["evaluate", "--data", "set.npz", "--size", "3x"], "--size '3x': give width"),
    "two means": (["evaluate", "--data", "set.npz", "--mean", "1,2"], "mean is .*give three numbers or one"),
    "settings twice": (["evaluate", "--data", "set.npz", "--preprocess", "p.json", "--mean", "1"], "say the same"),
    "another target": (["benchmark", "--target", "c"], "'c' is not a CPU"),
    "no rounds": (["benchmark", "--rounds", "0"], "--rounds is 0"),
    "no log": (["benchmark", "--tuning-records", "no.log"], "there is no file .*no.log"),
    "a page nowhere": (["report", "-o", "no/such/r.html"], "cannot write no/such/r.html"),
    "a page over an input": (["report", "-o", "net.json"], "net.json: it is also an input"),
    "two outputs in one": (["quantize", "--calibration", "images.npz", "-o", "a", "--qdq-out", "./a"],
                           "--output and --qdq-out both name ./a"),
    "no such record": (["report", "--record", "set.npz"], "is not a search record"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_line_and_an_exit_code(work, capsys, monkeypatch, name):
    monkeypatch.chdir(work[0])
    np.savez("images.npz", x=work[1][:1])
    command, message = MISTAKES[name]
    if command[0] == "report":
        pytest.importorskip("jinja2")
    verb, *options = command
    before = sorted(p.name for p in work[0].iterdir())
    table = [] if verb == "quantize" else ["--table", "net.json"]
    assert cli.run([verb, "net.onnx", *table, *options]) == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(message, lines[0]), lines
    assert sorted(p.name for p in work[0].iterdir()) == before


def test_pictures_are_normalised_alike_by_every_verb(work, capsys):
    """quantize is told how; evaluate finds it in the table."""
    image = pytest.importorskip("PIL.Image")
    folder, rng = work[0] / "photos", np.random.default_rng(1)
    graph, pixels = load_onnx(work[0] / "net.onnx"), rng.integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)
    (output,), answers = graph.outputs, []
    for i, photo in enumerate(pixels):
        x = (photo[1:9, 2:10, ::-1] / np.float32(255) - 0.5) / np.float32(0.25)
        answers.append(
            int(run(graph, {"x": np.ascontiguousarray(x.transpose(2, 0, 1))[None]})[output].argmax())
        )
        place = folder / str(answers[-1]) / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(photo).save(place)
    table = work[0] / "photos.json"
    assert cli.run(["quantize", str(work[0] / "net.onnx"), "--calibration", str(folder), "--crop", "8x8", "--scale",
                    "1/255", "--mean", "0.5", "--std", "0.25", "--channel-order", "bgr", "--bits", "8", "--method",
                    "minmax", "-o", str(table)]) == 0  # fmt: skip
    capsys.readouterr()
    found = answer(capsys, "evaluate", work[0] / "net.onnx", "--table", table, "--data", folder, "--json")
    assert found["metrics"]["top1"]["n"] == 6
    assert found["metrics"]["top1"]["reference"] == 100  # the folders are the float network's own answers


@pytest.mark.relay
@pytest.mark.parametrize(
    "verb, ours",
    [
        (
            "compile",
            ["--table FILE", "--isa ROW,...", "--bits N", "--input-dtype uint8", "--input-layout NAME"],
        ),
        ("run", ["--isa ROW"]),
        ("tune", []),
    ],
)
def test_tvmc_s_own_verbs_are_untouched(verb, ours, capsys):
    """What is ours is a group of its own behind all of theirs."""
    from tvm.driver.tvmc import main as tvmc

    texts = []
    for call in (tvmc._main, cli.run):
        with pytest.raises(SystemExit) as left:
            call([verb, "--help"])
        assert left.value.code == 0
        texts.append(capsys.readouterr().out.split("options:", 1)[1])
    assert texts[1].startswith(texts[0].rstrip("\n"))
    rest = texts[1][len(texts[0].rstrip("\n")) :].strip()
    assert (rest.splitlines() or [""])[0] == ("tvm_easyquant:" if ours else "")
    assert re.findall(r"^  (--\S+ \S+)", rest, re.M) == ours


def test_every_verb_of_ours_shows_examples_that_parse():
    import argparse
    import importlib
    import shlex

    from tvm_easyquant.cli import root

    verbs = argparse.ArgumentParser().add_subparsers()
    for module in root.VERBS:
        importlib.import_module(f"tvm_easyquant.cli.{module}").add(verbs)
    assert {"quantize", "evaluate", "benchmark", "report", "plan", "tune-kernels", "doctor", "demo"} <= set(
        verbs.choices
    )
    for name, parser in verbs.choices.items():
        lines = (parser.epilog or "").replace("\\\n", " ").splitlines()
        commands = [shlex.split(line)[1:] for line in lines if line.startswith("  tvmc-easyquant ")]
        assert any(command[0] == name for command in commands), name
        for verb, *arguments in commands:
            if verb in verbs.choices:  # compile and run are tvmc's
                verbs.choices[verb].parse_args(arguments)
