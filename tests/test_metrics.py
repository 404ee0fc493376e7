"""Metrics of the whole set: their values by hand, the bootstrap, what is refused, and a drop that is met."""

import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import networks
import numpy as np
import numpy_host
import pytest

import tvm_easyquant as eq
from tvm_easyquant import cli
from tvm_easyquant import host as hosts
from tvm_easyquant.evaluate import EvaluationError, PairedSet, SetScores, compare, evaluate, load
from tvm_easyquant.measure import accuracy
from tvm_easyquant.network.graph import run
from tvm_easyquant.scales.integer import run_integer

EXAMPLES = Path(__file__).resolve().parent.parent / "tutorials" / "metrics"


def of_set(function):
    function.of_set = True
    return function


@of_set
def share(outputs, labels):
    """The share of answers that are the label, a set metric that has a sample's beside it: top-1."""
    return np.mean([o[0].argmax() == y for o, y in zip(outputs, labels, strict=True)])


@pytest.fixture
def example(monkeypatch):
    """A module of tutorials/metrics, as a user who copied it imports it."""
    if not EXAMPLES.exists():
        pytest.skip("no tutorials beside the package")
    monkeypatch.syspath_prepend(EXAMPLES)

    def module(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    return module


# -- the examples, by hand


def test_overlaps_are_those_of_a_drawing(example):
    a = np.array([[0, 0, 2, 2], [4, 4, 5, 5]], float)
    b = np.array([[1, 0, 3, 2], [0, 0, 2, 2], [0, 0, 0, 0]], float)
    # two of six squares; the same box; a box without a surface. The other touches none
    np.testing.assert_allclose(example("boxes").overlaps(a, b), [[1 / 3, 1, 0], [0, 0, 0]])


def test_mean_average_precision_is_the_one_by_hand(example):
    made = example("boxes").mean_average_precision(lambda outputs: outputs)

    def metric(found, labels):
        return made([made.each(*pair) for pair in zip(found, labels, strict=True)], labels)

    one, two, far = [0, 0, 2, 2], [10, 10, 12, 12], [50, 50, 51, 51]
    labels = [[[0, *one], [0, *two]], [[0, *one], [1, *two]]]
    first = [[*far, 0.8, 0], [*one, 0.9, 0]]  # the better score comes first, whatever the order
    second = [[*one, 0.7, 0]]
    # class 0, three objects: .9 right, .8 wrong, .7 right: precision 1, 1/2, 2/3, made falling 1, 2/3, 2/3,
    # a third of the recall at the first and at the last: 1/3 (1 + 2/3) = 5/9. Class 1: never found, 0
    assert made.of_set and metric([first, second], labels) == pytest.approx(5 / 18)
    # found again, it is wrong, though it lies right: precision at the last hit is 2/4
    again = [*first, [*one, 0.75, 0]]
    assert metric([again, second], labels) == pytest.approx((1 + 2 / 4) / 3 / 2)
    # of another class, and less than half upon it: neither counts
    assert metric([[[*one, 0.9, 1], [1, 0, 3, 2, 0.9, 0]], []], labels) == 0
    perfect = [[[*row[1:], 0.5, row[0]] for row in label] for label in labels]
    assert metric(perfect, labels) == 1 and metric([[], []], [[], []]) == 0
    assert metric([np.array(first), np.zeros((0, 6))], [np.array(labels[0]), np.zeros((0, 5))]) == 0.5


def test_texts_are_matched_as_by_hand(example):
    texts = example("texts")
    steps = np.eye(4)[None, [1, 1, 2, 0, 2, 0, 3, 3]]  # a a b - b - c c
    read = texts.greedy("abc")
    assert read([steps]) == "abbc"
    assert texts.greedy("abc", blank=3)([steps]) == "bcaca"
    assert texts.exact(read)([steps], "abbc") == 1 and texts.exact(read)([steps], "abc") == 0
    pairs = {
        ("kitten", "sitting"): 3,
        ("", "abc"): 3,
        ("abc", ""): 3,
        ("flaw", "lawn"): 2,
        ("same", "same"): 0,
    }
    assert {pair: texts.distance(*pair) for pair in pairs} == pairs
    metric = texts.characters(read)
    assert metric.of_set and metric.each([steps], "abb") == 1
    assert metric([3, 0], ["sitting", "abc"]) == pytest.approx(1 - 3 / 10)  # not the mean of 4/7 and 1
    assert metric([4], ["x"]) == -3 and metric([0], [""]) == 1


# -- what a metric gets, and how often


def test_a_set_metric_gets_lists_of_what_a_sample_s_gets_and_labels_as_they_are():
    graph, images = networks.residual()
    labels = [{"boxes": [i]} for i in range(5)]
    seen = []

    @of_set
    def metric(outputs, labels):
        seen.append((outputs, labels))
        return 33.7

    samples = []

    def alone(outputs, label):
        samples.append([np.array(o) for o in outputs])
        return 1.0

    memory = [np.zeros((3, 5), np.float32), np.zeros((3, 1))]

    def network(feed):  # two outputs, which it writes to the same memory each time, three samples at once
        memory[0][:] = np.concatenate([run(graph, {"image": x[None]})["logits"] for x in feed["image"]])
        memory[1][:] = memory[0].sum(axis=1, keepdims=True)
        return memory

    data = list(zip(images, labels, strict=False))
    found = evaluate(network, data, inputs=["image"], metrics={"m": metric, "alone": alone}, batch=3)
    assert (
        list(found) == ["m", "alone"] and found["m"].value == 33.7 and found["alone"].tolist() == [1.0] * 5
    )
    ((outputs, got),) = seen
    assert all(a is b for a, b in zip(got, labels, strict=True))
    for mine, sample in zip(outputs, samples, strict=True):
        assert [o.shape for o in mine] == [(1, 5), (1, 1)]
        for a, b in zip(mine, sample, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="read-only"):  # the next call would find it changed
        outputs[0][0][:] = 0


def test_each_is_called_once_for_an_image_however_often_it_is_drawn():
    called = []

    @of_set
    def metric(sums, labels):
        return sum(sums) / len(sums)

    metric.each = lambda outputs, label: called.append(label) or float(outputs[0].sum())
    data = [(np.full((1, 2), i, np.float32), i) for i in range(4)]
    ours, theirs = (
        evaluate(lambda feed, by=by: [feed["x"] * by], data, inputs=["x"], metrics={"m": metric})["m"]
        for by in (2, 1)
    )
    assert ours.outputs == [0, 4, 8, 12] and compare(ours, theirs).difference == 3
    assert called == [0, 1, 2, 3] * 2
    theirs.add([np.ones((1, 2))], 4)
    assert theirs.value == (0 + 2 + 4 + 6 + 2) / 5  # not what it was before

    def picky(outputs, label):
        raise EvaluationError(f"no text for {label}")

    metric.each = picky
    with pytest.raises(EvaluationError, match="sample 0: no text for 0"):
        evaluate(lambda feed: [feed["x"]], data, inputs=["x"], metrics={"m": metric})


# -- the bootstrap


def answers(right):
    """The SetScores of a network that is right on these samples, and their scores one by one."""
    outputs = [[np.eye(2)[None, int(r)]] for r in right]
    return SetScores(share, outputs, [1] * len(right)), np.asarray(right, float)


def test_the_interval_is_that_of_the_paired_comparison_and_the_same_each_time():
    rng = np.random.default_rng(0)
    which = rng.choice(3, 400, p=[0.02, 0.06, 0.92])
    (ours, a), (theirs, b) = answers(which != 1), answers(which != 0)
    told = []
    found = compare(ours, theirs, progress=lambda *step: told.append(step))
    known = compare(a, b)  # in points
    assert (100 * found.value, 100 * found.reference) == pytest.approx((known.value, known.reference))
    assert found.n == 400 and found.drop == -found.difference == pytest.approx(known.drop / 100)
    np.testing.assert_allclose(100 * np.array(found.interval), known.interval, atol=0.4)
    assert 0 < found.p < 0.05 and known.p < 0.05  # 24 lost, 8 gained or so
    assert told[-1] == (1000, 1000, "bootstrap") and len(told) == 1000
    assert compare(ours, theirs) == found
    back = compare(theirs, ours)
    assert back.interval == pytest.approx((-found.interval[1], -found.interval[0])) and back.p == found.p


def test_networks_that_answer_alike_do_not_differ_and_one_sample_says_nothing():
    ours, _ = answers([1, 0, 1, 1])
    found = compare(ours, answers([1, 0, 1, 1])[0])
    assert (found.difference, found.interval, found.p) == (0, (0, 0), 1)
    one = compare(answers([0])[0], answers([1])[0])
    assert one.interval == (-math.inf, math.inf) and one.p == 1
    quick = compare(ours, ours, interval=False)
    assert quick.interval is None and quick.p is None and "[" not in str(quick)


@pytest.mark.parametrize(
    "value, reference, text",
    [
        (33.125, 33.7, "33.12 against 33.70: -0.58 [-1.00, +0.20] on 206 samples"),
        (0.33125, 0.337, "0.3312 against 0.3370: -0.0058 [-1.0000, +0.2000] on 206 samples"),
        (0.0, 0.0, "0.0000 against 0.0000: +0.0000 [-1.0000, +0.2000] on 206 samples"),
        (-1234.0, 31.0, "-1234 against 31: -1265 [-1, +0] on 206 samples"),
    ],
)
def test_a_figure_has_the_digits_of_its_unit(value, reference, text):
    assert str(PairedSet(206, value, reference, value - reference, (-1.0, 0.2), 0.1)) == text


# -- what is refused


NOT_NUMBERS = {
    "is nan": math.nan,
    "is -inf": -math.inf,
    "is None, not a number": None,
    "is '0.5', not a number": "0.5",
    "is {}, not a number": {},
    "is 1j, not a number": 1j,
    r"is .*1j\)?, not a number": np.complex64(1j),
    "gives 3 values; give one": np.ones(3),
    "gives 2 values; give one": [0.5, 1.0],
    "gives 0 values; give one": [],
}
NOT_NUMBERS["is 10{6}"] = 10**400  # more than float64 holds


@pytest.mark.parametrize("message", NOT_NUMBERS)
def test_a_metric_that_gives_no_number_is_named(message):
    value = NOT_NUMBERS[message]
    data = [(np.zeros((1, 2), np.float32), 0)] * 2
    with pytest.raises(EvaluationError, match=f"labelled set, sample 0: metric m {message}") as alone:
        evaluate(lambda feed: [feed["x"]], data, inputs=["x"], metrics={"m": lambda outputs, label: value})
    metric = of_set(lambda outputs, labels: value)
    with pytest.raises(EvaluationError, match=f"labelled set, metric m: it {message}") as whole:
        evaluate(lambda feed: [feed["x"]], data, inputs=["x"], metrics={"m": metric})
    for caught in (alone, whole):
        assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [True, 1, np.float32(1), np.ones(1), np.ones((1, 1)), np.array(1)])
def test_a_number_is_taken_in_any_of_its_forms(value):
    data = [(np.zeros((1, 2), np.float32), 0)]
    for metric in (lambda outputs, label: value, of_set(lambda outputs, labels: value)):
        found = evaluate(lambda feed: [feed["x"]], data, inputs=["x"], metrics={"m": metric})["m"]
        assert (found.value if isinstance(found, SetScores) else found.item()) == 1


def test_answers_that_do_not_pair_are_refused():
    with pytest.raises(EvaluationError, match="2 outputs and 3 labels; give one each"):
        SetScores(share, [[], []], [0, 1, 2])
    ours, scores = answers([1, 0, 1])
    with pytest.raises(EvaluationError, match="answers are to 3 and 2 samples; give two of one length"):
        compare(ours, answers([1, 0])[0])
    with pytest.raises(EvaluationError, match="compared with itself only"):
        compare(ours, scores)
    nothing = SetScores(share, [], [])
    with pytest.raises(EvaluationError, match="to 0 and 0 samples"):
        compare(nothing, nothing)

    @of_set
    def picky(outputs, labels):
        return 1.0 if len({id(o) for o in outputs}) == len(outputs) else math.nan

    ours = SetScores(picky, ours.outputs, ours.labels)
    assert ours.value == 1
    with pytest.raises(EvaluationError, match="drawn anew, some twice, some not at all, it is nan"):
        compare(ours, ours)


def test_a_module_that_cannot_be_read_is_a_line(tmp_path, monkeypatch):
    """A SyntaxError came as a traceback of ours."""
    (tmp_path / "broken.py").write_text("def metric(outputs, label) return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EvaluationError, match=r"'broken:metric' names no function: .*broken.py, line 1"):
        load("broken:metric")


# -- a drop of a detector


def detector():
    """A detector: a backbone of four layers, two heads: boxes (1, 4, 5, 5) and scores of classes (1, 3, 5, 5)."""
    rng = np.random.default_rng(4)

    def normal(*shape):
        return (rng.standard_normal(shape) * 1.4 / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {"w1": normal(8, 3, 3, 3), "w2": normal(8, 1, 3, 3), "w3": normal(16, 8, 1, 1)}
    constants["w2"][::2] *= 12  # channels that a scale of the whole tensor fits badly
    constants |= {"wb": normal(4, 16, 1, 1) / 4, "ws": normal(3, 16, 1, 1)}
    wide = dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    nodes = [
        ("Conv", ["image", "w1"], ["t1"], "stem", wide | dict(strides=[2, 2])),
        ("Relu", ["t1"], ["t2"], "r1", {}),
        ("Conv", ["t2", "w2"], ["t3"], "dw", wide | dict(group=8)),
        ("Relu", ["t3"], ["t4"], "r2", {}),
        ("Conv", ["t4", "w3"], ["t5"], "pw", {}),
        ("Relu", ["t5"], ["t6"], "r3", {}),
        ("Conv", ["t6", "wb"], ["boxes"], "head.boxes", {}),
        ("Conv", ["t6", "ws"], ["scores"], "head.scores", {}),
    ]
    outputs = {"boxes": [1, 4, 5, 5], "scores": [1, 3, 5, 5]}
    return networks.onnx_model(nodes, {"image": [1, 3, 10, 10]}, outputs, constants)


MINE = """\
import numpy as np
from boxes import mean_average_precision

def decode(outputs):
    boxes, scores = (o[0].reshape(len(o[0]), -1).T for o in outputs)  # a row for each of 25 places
    centre = np.stack(np.divmod(np.arange(25), 5), axis=1) + 0.5 + np.clip(boxes[:, :2], -1, 1) / 4
    half = 0.5 + np.clip(np.abs(boxes[:, 2:]), 0, 2) / 4
    return np.column_stack([centre - half, centre + half, scores.max(axis=1), scores.argmax(axis=1)])

mAP = mean_average_precision(decode)

def pairs():
    with np.load(FILE) as file:
        truth = file["objects"]
        for i, image in enumerate(file["images"]):
            yield image[None], [row[1:] for row in truth if row[0] == i]

def broken(outputs, labels):
    return float("nan")
broken.of_set = True
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with the detector, images, and boxes: what the float network finds best in each, and mydetector.py."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("detector")
    onnx.save(detector(), folder / "net.onnx")
    images = np.random.default_rng(0).standard_normal((24, 3, 10, 10)).astype(np.float32)
    np.savez(folder / "images.npz", image=images)
    (folder / "mydetector.py").write_text(MINE.replace("FILE", repr(str(folder / "set.npz"))))
    graph, space = eq.load(folder / "net.onnx"), {}
    exec(MINE.split("mAP =", 1)[0].replace("from boxes import mean_average_precision", ""), space)
    objects = []
    for i, x in enumerate(images):
        found = space["decode"](list(run(graph, {"image": x[None]}).values()))
        best = found[np.argsort(-found[:, 4], kind="stable")[:5]]
        objects += [[i, row[5], *row[:4]] for row in best]
    np.savez(folder / "set.npz", images=images, objects=np.array(objects))
    return folder


@pytest.fixture(params=["numpy", "relay"])
def here(request, example, work, monkeypatch):
    """mydetector, where the command line looks for it, and one of the hosts installed."""
    if request.param == "relay":
        pytest.importorskip("tvm")
    else:
        folder, file = ModuleType("tvm_easyquant.numpy"), ModuleType("tvm_easyquant.numpy.host")
        file.HOST = numpy_host.HOST
        monkeypatch.setitem(sys.modules, folder.__name__, folder)
        monkeypatch.setitem(sys.modules, file.__name__, file)
        monkeypatch.setattr(hosts, "HOSTS", ("numpy",))
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(work)
    monkeypatch.delitem(sys.modules, "mydetector", raising=False)
    example("boxes")
    return request.param, __import__("mydetector")


def by_hand(mine, graph, table):
    """(mAP of the float network, of the table's integers), without any of evaluate."""
    pairs, each = list(mine.pairs()), []
    for network in (run, lambda graph, feed: run_integer(graph, table, feed)):
        found = [network(graph, {"image": x}) for x, _ in pairs]
        seen = [
            mine.mAP.each([f[n] for n in graph.outputs], y) for f, (_, y) in zip(found, pairs, strict=True)
        ]
        each.append(mine.mAP(seen, [y for _, y in pairs]))
    return each


@pytest.mark.parametrize("here", ["numpy"], indirect=True)
def test_a_drop_of_mean_average_precision_is_met_from_python(work, here):
    _, mine = here
    calls = []

    def counted(outputs, labels):
        calls.append(len(outputs))
        return mine.mAP(outputs, labels)

    counted.of_set, counted.each = True, mine.mAP.each
    images = np.load("images.npz")["image"]
    q = eq.quantize("net.onnx", images, evaluation=mine.pairs, metric=counted, max_drop=1, method="minmax")
    reference, value = by_hand(mine, q.graph, q.table)
    assert not q.table.config.layer_bits and q.drop.n == 24
    assert (q.drop.reference, q.drop.value) == pytest.approx((reference, value))
    lost = reference - value
    assert 0.01 < lost < reference < 1  # seven bits lose some of it
    assert "allows anything where float32 has" in q.decisions[-2] and q.decisions[-1].startswith("met: ")
    assert calls == [24] * 2002  # once for each network, then the bootstrap of the choice that was taken

    calls.clear()
    judged = eq.Evaluation(mine.pairs, metric=counted, max_drop=lost / 2)
    q = eq.quantize("net.onnx", images, evaluation=judged, method="minmax")
    reference, value = by_hand(mine, q.graph, q.table)
    assert q.table.config.layer_bits and any(": 7 -> 8; its error alone" in line for line in q.decisions)
    assert q.drop.drop == pytest.approx(reference - value) and q.drop.drop <= lost / 2
    low, high = q.drop.interval
    assert low <= q.drop.difference <= high
    trials = [line for line in q.decisions if " against " in line and "bootstrap" not in line]
    assert len(calls) == 2000 + 1 + len(trials) and "[" not in trials[0]
    assert any(line.startswith(f"by bootstrap: {q.drop}") for line in q.decisions)


def command(capsys, *words):
    code = cli.run(list(map(str, words)))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.ci
def test_a_drop_of_mean_average_precision_is_met_on_the_command_line(work, here, capsys, tmp_path):
    name, mine = here
    target = [] if name == "numpy" else ["--target", "llvm"]
    metric = ["--metric", "mydetector:mAP"]
    table, seven = tmp_path / "net.json", tmp_path / "seven.json"
    quantize = ["quantize", "net.onnx", "--calibration", "images.npz", "--method", "minmax", *target]
    assert command(capsys, *quantize, "-o", seven)[0] == 0
    evaluated = ["evaluate", "net.onnx", *target, "--data", "mydetector:pairs", *metric]
    code, out, _ = command(capsys, *evaluated, "--table", seven, "--json")
    facts = json.loads(out)["metrics"]["mydetector:mAP"]
    graph = eq.load("net.onnx")
    reference, value = by_hand(mine, graph, eq.ScaleTable.load(seven))
    assert code == 0 and (facts["reference"], facts["value"]) == pytest.approx((reference, value))
    assert facts["interval"][0] <= facts["difference"] <= facts["interval"][1] and 0 < facts["p"] <= 1
    assert set(facts) == {"n", "value", "reference", "difference", "interval", "p", "drop"}
    code, out, _ = command(capsys, *evaluated, "--table", seven)
    assert re.fullmatch(
        r"mydetector:mAP: integers 0\.\d{4} against 0\.\d{4}: -0\.\d{4} \[.*\] on 24 samples; p = .*\n", out
    )

    judged = ["--eval", "mydetector:pairs", *metric, "--max-drop", facts["drop"] / 2, "--json"]
    auto = [] if name == "numpy" else ["--bits", "auto"]  # the toy host has no times
    code, out, _ = command(capsys, *quantize, "-o", table, *judged, *auto)
    facts = json.loads(out)
    assert (
        code == 0 and facts["layer_bits"] and any(line.startswith("met: ") for line in facts["decisions"])
    )
    reference, value = by_hand(mine, graph, eq.ScaleTable.load(table))
    assert facts["drop"] == pytest.approx(reference - value)


@pytest.mark.parametrize("here", ["relay"], indirect=True)  # the page names the machine, as a host knows it
def test_a_report_shows_a_metric_of_the_set_in_its_unit(work, here, capsys, tmp_path):
    pytest.importorskip("jinja2")
    table, page = tmp_path / "net.json", tmp_path / "page.html"
    assert (
        command(
            capsys, "quantize", "net.onnx", "--calibration", "images.npz", "--method", "minmax", "-o", table
        )[0]
        == 0
    )
    code, out, _ = command(capsys, "report", "net.onnx", "--table", table, "--no-benchmark", "-o", page, "--json",
                           "--data", "mydetector:pairs", "--metric", "mydetector:mAP")  # fmt: skip
    facts = json.loads(out)["accuracy"]["mydetector:mAP"]
    assert code == 0 and facts["n"] == 24 and len(facts["interval"]) == 2
    text = page.read_text()
    (card,) = re.findall(r"<div class=\"what\">mydetector:mAP, integers</div><div class=\"big\">([^<]*)</div>\s*"
                         r"<div class=\"more\">([^<]*)</div>", text)  # fmt: skip
    assert card[0] == f"{facts['value']:.4g}" and card[1].endswith("; 24 samples")
    assert f"difference {facts['difference']:+.3g} [{facts['interval'][0]:+.3g}, " in card[1]


@pytest.mark.parametrize(
    "metric, message",
    [
        ("mydetector:broken", "mydetector:pairs, metric (mydetector:)?broken: it is nan"),
        ("mydetector:none", "'mydetector:none' names no function"),
        ("nowhere:mAP", "'nowhere:mAP' names no function"),
    ],
)
@pytest.mark.parametrize("here", ["numpy"], indirect=True)
def test_a_metric_that_fails_is_a_line_and_exit_code_4(work, here, capsys, tmp_path, metric, message):
    table = tmp_path / "net.json"
    quantize = ["quantize", "net.onnx", "--calibration", "images.npz", "--method", "minmax", "-o", table]
    assert command(capsys, *quantize)[0] == 0
    data = ["--metric", metric, "--json"]
    for words in (["evaluate", "net.onnx", "--table", table, "--data", "mydetector:pairs", *data],
                  [*quantize, "--eval", "mydetector:pairs", "--max-drop", "0.01", *data]):  # fmt: skip
        code, out, err = command(capsys, *words)
        assert code == 4 and not out and len(err.splitlines()) == 1, err
        assert re.search(f"^error: .*{message}", err)


@pytest.mark.parametrize("here", ["numpy"], indirect=True)
def test_a_run_that_was_interrupted_in_its_bootstrap_goes_on_with_the_same_result(
    work, here, tmp_path, monkeypatch
):
    _, mine = here
    state = tmp_path / "state"
    options = dict(evaluation=mine.pairs, metric=mine.mAP, max_drop=0.002, method="minmax")
    images = np.load("images.npz")["image"]
    whole = eq.quantize("net.onnx", images, **options)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(accuracy, "_bootstrap", stop)
        eq.quantize("net.onnx", images, checkpoint=state, **options)
    assert state.exists()
    again = eq.quantize("net.onnx", images, checkpoint=state, **options)
    assert again.table.to_json() == whole.table.to_json() and again.decisions == whole.decisions
    assert again.drop == whole.drop and not state.exists()
