"""Several tables on one page: who gained and lost what, what changed, and reports that are compared later."""

import json
import re
from dataclasses import replace

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_easyquant import cli
from tvm_easyquant.measure import compare, report
from tvm_easyquant.measure.accuracy import compare as paired
from tvm_easyquant.measure.accuracy import top
from tvm_easyquant.measure.answers import KEPT, Answers
from tvm_easyquant.measure.drawing import HEIGHT, WIDTH, _placed, drawing
from tvm_easyquant.samples.labelled import LabelledSet
from tvm_easyquant.scales.partition import plan
from tvm_easyquant.scales.table import ScaleTable

# -- samples


def facts_of(answers, metric, reference, ours):
    """What `collect` makes of a metric."""
    found = paired(np.array(ours), np.array(reference))
    entry = {"n": found.n, "value": found.value, "reference": found.reference, "gained": found.gained}
    return {"accuracy": {metric: {**entry, **answers.changed(metric)}}, "evaluated": answers.facts()}


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=40))
def test_what_one_table_gained_over_another_follows_from_what_each_changed(samples):
    """Each report names only the samples that differ from float32; from two of them it is known which samples
    one has right and the other wrong."""
    reference, first, second = (np.array(column, float) for column in zip(*samples, strict=True))
    runs = []
    for ours in (first, second):
        answers = Answers(LabelledSet(list, name="set"), {"m": lambda outputs, label: outputs[0]})
        for score in [*reference, *ours]:
            answers.metrics["m"]([score], 0)
        runs.append(facts_of(answers, "m", reference, ours))
    (found,) = [compare._answers("m", runs[0], runs[1], "second")]
    assert [each["sample"] for each in found["gained"]] == np.flatnonzero(second > first).tolist()
    assert [each["sample"] for each in found["lost"]] == np.flatnonzero(second < first).tolist()
    assert found["difference"] == pytest.approx(100 * (second.mean() - first.mean()))


def test_answers_tell_labels_classes_and_names():
    answers = Answers(LabelledSet(list, name="set"), {"top1": top(1)})
    for scores, label in [([9, 1], 0), ([1, 9], 0), ([9, 1], 0), ([9, 1], 0)]:
        answers.metrics["top1"]([np.array([scores])], label)
    (changed,) = answers.changed("top1")["changed"]
    assert changed == {
        "sample": 1, "name": "sample 1", "label": "0", "value": 1.0, "reference": 0.0, "answer": 0,
        "answer_reference": 1,
    }  # fmt: skip
    assert answers.facts()["samples"] == 2 and answers.pictures([1]) == {}


def test_of_many_changed_samples_those_that_differ_most_are_kept():
    n, answers = KEPT + 7, Answers(LabelledSet(list), {"m": lambda outputs, label: outputs[0]})
    for score in [*np.zeros(n), *np.linspace(0.1, 1, n)]:
        answers.metrics["m"]([score], "a word" * 30)
    found = answers.changed("m")
    assert found["changed_left_out"] == 7 and [each["sample"] for each in found["changed"]] == list(
        range(7, n)
    )
    assert len(found["changed"][0]["label"]) == 60


# -- the picture of the network


def no_box_on_another(nodes):
    for i, one in enumerate(nodes):
        for other in nodes[:i]:
            assert abs(one[0] - other[0]) >= WIDTH - 0.2 or abs(one[1] - other[1]) >= HEIGHT, (one, other)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_boxes_stand_apart_and_edges_lead_down(seed, count):
    rng = np.random.default_rng(seed)
    reads = {f"n{i}": [f"n{j}" for j in rng.permutation(i)[: rng.integers(0, 4)]] for i in range(count)}
    x, y, edges = _placed(reads)
    no_box_on_another([(x[n], y[n]) for n in reads])
    assert len(edges) == sum(map(len, reads.values())) and min(x.values()) >= WIDTH / 2
    for edge in edges:
        heights = [at[1] for at in edge]
        assert heights == sorted(heights)
    ends = {(tuple(e[0]), tuple(e[-1])) for e in edges}
    assert ends == {((x[t], y[t] + HEIGHT / 2), (x[n], y[n] - HEIGHT / 2)) for n in reads for t in reads[n]}


def test_a_node_is_drawn_with_what_is_fused_to_it():
    graph, _ = networks.residual()
    plan_ = plan(graph)
    found = drawing(graph, plan_)
    assert {node["name"] for node in found["nodes"]} == set(graph.nodes) - set(plan_.fused)
    assert [op for node in found["nodes"] for op in node["ops"]].count("clip") == sum(
        n.op == "clip" for n in graph
    )
    assert {n["name"] for n in found["nodes"] if n["layer"]} == {n.name for n in graph.compute_nodes}
    assert found["width"] >= max(n["x"] for n in found["nodes"]) + WIDTH / 2


# -- pages


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A network, two tables of it, pictures in class folders, and a page of each table and of both."""
    pytest.importorskip("tvm")
    pytest.importorskip("jinja2")
    image = pytest.importorskip("PIL.Image")
    import onnx

    folder = tmp_path_factory.mktemp("compared")
    model = networks.small_onnx()
    onnx.save(model, folder / "net.onnx")
    rng = np.random.default_rng(0)
    for i in range(40):
        (folder / "photos" / str(i % 4)).mkdir(parents=True, exist_ok=True)
        colour, noise = rng.integers(0, 256, 3), rng.integers(-40, 41, (8, 8, 3))
        pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
        image.fromarray(pixels).save(folder / "photos" / str(i % 4) / f"<i>{i}.png")
    pictures = ["--scale", "1/255", "--mean", "0.5", "--std", "0.25"]
    for name, options in (("a", ["--bits", "8"]), ("b", ["--bits", "7", "--skip", "conv1"])):
        assert run(folder, "quantize", "net.onnx", "--calibration", "photos", *pictures, "--method", "minmax",
                   *options, "-o", f"{name}.json") == 0  # fmt: skip
    table = ScaleTable.load(folder / "b.json")
    tight = {name: scale.with_scale(scale.scale / 8) for name, scale in table.activations.items()}
    replace(table, activations=tight).save(folder / "b.json")  # it clips what it should not, and errs
    rest = ["--data", "photos", "--no-benchmark"]
    for page, tables in (("b", "b"), ("both", "ab")):
        named = [word for name in tables for word in ("--table", f"{name}.json")]
        assert run(folder, "report", "net.onnx", *named, *rest, "-o", f"{page}.html") == 0
    facts = embedded(folder / "both.html")
    del facts["compared"]
    (folder / "a.html").write_text(report.render(facts))
    return folder


def run(folder, verb, *words):
    """`cli.run` in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return cli.run([verb, *map(str, words)])


def embedded(page):
    return json.loads(re.search(r'id="facts">(.*?)</script>', page.read_text(), re.S)[1])


def without_dates(facts):
    return {key: value for key, value in facts.items() if key != "created"}


@pytest.mark.ci
def test_two_tables_stand_on_one_page(work):
    text = (work / "both.html").read_text()
    facts = embedded(work / "both.html")
    (other,) = facts["compared"]
    assert (facts["table"], other["table"]) == ("a.json", "b.json")
    assert facts["config"]["bits"] == 8 and other["config"]["bits"] == 7
    for word in ("Compared", "top-1: b.json against a.json", "layers: 3 differ", "scales of activations"):
        assert word in text, word
    found = compare.comparison([facts, other])
    (row,) = [row for row in found["settings"] if row["name"] == "skip"]
    assert row["values"] == ["none", "conv1"]
    (answers,) = [each for each in found["answers"] if each["metric"] == "top1"]
    assert answers["gained"] or answers["lost"], "the tables were to differ on some picture"
    for each in answers["gained"] + answers["lost"]:
        assert re.fullmatch(r"\d/<i>\d+\.png", each["name"])
        assert f"<b>{each['name'].replace('<', '&lt;').replace('>', '&gt;')}</b>" in text
    assert "<i>" not in text.replace("document.createElement", "")
    assert text.count('<img src="data:image/png;base64,') >= len(answers["gained"] + answers["lost"])
    assert len(text) < 6e6


@pytest.mark.ci
def test_reports_are_compared_later(work, capsys):
    """The page of two tables is the page of their two reports, but for the dates."""
    assert run(work, "report", "a.html", "--compare", "b.html", "-o", "later.html", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    facts, both = embedded(work / "later.html"), embedded(work / "both.html")
    assert shown == facts
    (mine,), (theirs,) = facts.pop("compared"), both.pop("compared")
    assert without_dates(facts) == without_dates(both) and without_dates(mine) == without_dates(theirs)
    dates = re.compile(r"\d{4}-\d\d-\d\dT[\d:+]+")
    assert dates.sub("", (work / "later.html").read_text()) == dates.sub(
        "", (work / "both.html").read_text()
    )
    (work / "kept.json").write_text(json.dumps(facts))
    assert run(work, "report", "net.onnx", "--table", "b.json", "--no-benchmark", "--compare", "kept.json",
               "-o", "mixed.html") == 0  # fmt: skip
    mixed = embedded(work / "mixed.html")
    assert mixed["table"] == "b.json" and [run["table"] for run in mixed["compared"]] == ["a.json"]
    assert "&ndash;" in (work / "mixed.html").read_text()  # b was not evaluated here


@pytest.mark.ci
def test_other_samples_are_not_compared(work):
    facts = embedded(work / "b.html")
    facts["evaluated"] = {"data": "others", "samples": 9, "digest": "other"}
    (work / "others.json").write_text(json.dumps(facts))
    assert run(work, "report", "a.html", "--compare", "others.json", "-o", "other.html") == 0
    text = (work / "other.html").read_text()
    assert "they were evaluated on different samples: 40 of photos, 9 of others" in text


@pytest.mark.ci
def test_a_report_of_itself_has_nothing_that_changed(work):
    assert run(work, "report", "a.html", "--compare", "a.html", "-o", "same.html") == 0
    text = (work / "same.html").read_text()
    for word in (
        "No setting.",
        "All 3 layers have the same",
        "of activations are the same.",
        "0 gained, 0 lost",
        "a.json (2)",
    ):
        assert word in text, word


@pytest.mark.ci
@pytest.mark.parametrize(
    "words, message",
    [
        (("net.onnx", "--table", "a.json", "--compare", "photos"), "cannot read the report photos"),
        (("net.onnx", "--table", "a.json", "--compare", "no.html"), "cannot read the report no.html"),
        (("a.html", "--compare", "net.onnx"), "cannot read the report net.onnx"),
        (("a.html", "--compare", "a.json"), "a.json is no report of a model"),
        (("a.html", "--compare", "empty.html"), "empty.html holds no data of a report"),
        (("a.html", "--compare", "stranger.html"), "have no layer in common"),
        (("a.html", "--compare", "newer.html"), "newer.html is of another release"),
        (("a.html", "--compare", "half.html"), "half.html is damaged: a layer lacks bits"),
        (("a.html", "--data", "photos"), "--data is of a model; a.html is a report made before"),
        (("a.html", "--table", "a.json"), "--table is of a model; a.html is a report made before"),
        (("a.html", "-o", "a.html"), "a.html: it is also an input and would be lost"),
        (
            ("a.html", "--compare", "b.html", "-o", "b.html"),
            "b.html: it is also an input and would be lost",
        ),
        (("net.tar", "--compare", "a.html"), "--compare is of reports of models; net.tar is a package"),
    ],
)
def test_mistakes_are_a_line(work, capsys, words, message):
    (work / "empty.html").write_text("<!doctype html>")
    for name, change in {
        "stranger": lambda facts: [layer.update(name=f"x{i}") for i, layer in enumerate(facts["layers"])],
        "newer": lambda facts: facts.update(format_version=2),
        "half": lambda facts: facts["layers"][1].pop("bits"),
    }.items():
        facts = embedded(work / "a.html")
        change(facts)
        (work / f"{name}.html").write_text(
            f'<script type="application/json" id="facts">{json.dumps(facts)}</script>'
        )
    assert run(work, "report", *words) == 4
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], lines


@pytest.mark.ci
def test_a_strangers_report_brings_no_markup_and_no_address(work):
    facts = embedded(work / "b.html")
    first = next(iter(facts["pictures"]))
    facts["pictures"] |= {first: "https://example.org/x.png", "1000": 'data:image/png;base64,"onerror="'}
    facts["table"] = '<script>alert(1)</script>"'
    (work / "stranger.json").write_text(json.dumps(facts))
    assert run(work, "report", "a.html", "--compare", "stranger.json", "-o", "p.html") == 0
    text = (work / "p.html").read_text()
    assert "<script>alert" not in text and "example.org" not in text and "onerror" not in text
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", text)


@pytest.mark.ci
def test_every_table_of_the_page_has_a_caption_and_scopes(work):
    text = (work / "both.html").read_text()
    assert text.count("<table") == text.count("<caption>") >= 4
    heads = re.findall(r"<th[ >][^>]*", text)
    assert heads and all('scope="' in head for head in heads)
    assert text.count("<figure>") == text.count("<figcaption>") >= 5


@pytest.mark.ci
def test_the_page_is_made_by_one_function(work):
    """`report.render` of what a page holds is that page."""
    assert report.render(embedded(work / "both.html")) == (work / "both.html").read_text()
