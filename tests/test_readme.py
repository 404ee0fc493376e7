"""Every snippet of the README runs, and every figure in it is in a stored result."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from python_process import python

pytest.importorskip("tvm")
import tvm_easyquant as eq
from tvm_easyquant import demo

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: that of commit 8758a08: what it tells its readers to write stays true
OLD = (ROOT / "tests" / "golden" / "README_8758a08.md").read_text(encoding="utf-8")


def blocks(readme, *kinds):
    """The code of a README's blocks of these kinds, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", readme, re.M | re.S)
    return [code for kind, code in found if kind in kinds]


def snippets():
    """Each python snippet of both READMEs, once if they have it alike."""
    for code in dict.fromkeys(blocks(README, "python") + blocks(OLD, "python")):
        now = code in blocks(README, "python")
        number = blocks(README if now else OLD, "python").index(code)
        marks = [pytest.mark.linker] if "export_library" in code else []
        marks += [] if now else [pytest.mark.ci]
        yield pytest.param(code, marks=marks, id=f"{'README' if now else '8758a08'}-{number}")


def commands(readme):
    return [line.split("#")[0].strip() for code in blocks(readme, "sh") for line in code.splitlines()]


@pytest.mark.ci
@pytest.mark.parametrize("code", list(snippets()))
def test_python_snippets_run(tmp_path, code):
    result = python(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    said = result.stdout + result.stderr
    if code in blocks(README, "python"):  # TVM looks for schedules to download, and warns of ours
        assert "not been tuned" not in said and "ownload" not in said


AUTO = [line for line in commands(README) if line.startswith("tvmc-easyquant auto")]
SHELL = {
    "README": [line for line in commands(README) if line not in AUTO],
    "auto": AUTO,
    "8758a08": commands(OLD),
}
if SHELL["8758a08"] == SHELL["README"]:
    del SHELL["8758a08"]


@pytest.mark.ci
@pytest.mark.linker
@pytest.mark.parametrize(
    "shell",
    [
        pytest.param(shell, id=name, marks=[] if name == "README" else pytest.mark.ci)
        for name, shell in SHELL.items()
    ],
)
def test_the_shell_snippets_are_real_commands(tmp_path, shell):
    """make's are targets of the Makefile; tvmc-easyquant's run, as they stand, on what the demo leaves."""
    makefile = (ROOT / "Makefile").read_text()
    folder, ran = tmp_path / "demo", 0
    demo.write_files(folder)
    for line in shell:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.M), line
        elif line == "tvmc-easyquant demo --out demo && cd demo":
            pass  # where we are; its search and times are test_pass.py's
        elif line.startswith("tvmc-easyquant"):
            command = f'"{sys.executable}" -W ignore -m tvm_easyquant.cli' + line[len("tvmc-easyquant") :]
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            result = subprocess.run(
                command, shell=True, cwd=folder, env=env, capture_output=True, text=True
            )
            assert result.returncode == 0, f"{line}\n{result.stderr}"
            ran += 1
        else:
            assert line.startswith("pip install"), line
    assert ran == (5 if shell is not AUTO else 1)


def rows(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())["rows"]


def table_rows(first_cell, text=README):
    pattern = rf"^\| *{re.escape(first_cell)} *\|(.*)\|$"
    return [[c.strip() for c in found.split("|")] for found in re.findall(pattern, text, re.M)]


def test_the_tables_of_layers_are_the_stored_result():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    shown = 0
    for row in rows("layers_avx2.json"):
        if row["runner"] == "tvm_easyquant-int7":
            (cells,) = table_rows(row["layer"], text)
            speed = [row["kernel"], f"{row['gmacs']:.0f}", f"{row['x_fp32_peak']:.2f}"]
            assert cells[:3] == speed
            shown += 1
    assert shown > 10


def test_the_accuracy_table_is_the_stored_result(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import readme_tables

    results = ROOT / "benchmarks" / "results"
    stored, outputs = (
        json.loads((results / f"{name}.json").read_text()) for name in ("accuracy", "outputs")
    )
    stored = readme_tables.current(stored, outputs)
    shown, default = 0, stored["default_method"]
    for row in stored["rows"]:
        in_tables = row["bits"] == 7 or row["method"] == default
        if (
            row["runner"] == "ours"
            and in_tables
            and row["method"] in (default, "minmax", "kl", "kl_signed", "easyquant")
        ):
            text = f"{row['top1']:.2f} ({row['difference']:+.2f}; +{row['gained']} -{row['lost']})"
            assert any(text in cells for cells in table_rows(row["net"])), (row["net"], text)
            shown += 1
    assert shown >= len({row["net"] for row in stored["rows"]})


def network_cells(net):
    """The cells of a network in the table of each class, AVX2's first."""
    return [cells for cells in table_rows(net) if "." in cells[0] and len(cells) == 8]


def test_the_network_tables_are_the_stored_results():
    for place, (file, name) in enumerate(
        (("networks_avx2.json", "avx2"), ("networks_avx512.json", "avx512vnni"))
    ):
        stored = [row for row in rows(file) if row["isa"] == name]
        ours = [row for row in stored if row["runner"] == "tvm_easyquant-int7"]
        assert len(ours) == 6
        for row in ours:
            assert len(network_cells(row["net"])) == 2
            cells = network_cells(row["net"])[place]
            assert cells[0] == f"{row['ms_median']:.2f}"
            others = [r for r in stored if r["net"] == row["net"] and r is not row]
            assert sorted(cells[1:]) == sorted(f"{r[f'over_ours_{name}']:.2f}" for r in others)


def test_the_first_sentence_says_what_the_tables_say():
    """The least and the largest of the rows that it speaks of, so that no better figure is picked."""
    said = " ".join(README.split("**")[1].split())
    ratios = [
        [float(network_cells(row["net"])[place][column]) for row in rows("networks_avx2.json")
         if row["runner"] == "tvm_easyquant-int7" for column in columns]
        for place in (0, 1) for columns in ((1, 2), (4, 5))
    ]  # fmt: skip
    assert len(ratios[0]) == 12
    head = re.search(r"^\| network \| our INT7, ms \|.*", README, re.M)[0]
    assert re.findall(r"(ONNX Runtime|OpenVINO) (int8|fp32)", head) == [
        ("ONNX Runtime", "int8"), ("OpenVINO", "int8"), ("ONNX Runtime", "fp32"), ("OpenVINO", "fp32"),
    ]  # fmt: skip
    table = README[README.index("| network | fp32 | our INT8") :].split("\n\n")[0].splitlines()[2:]
    drops = [float(re.search(r"\(([-+][\d.]+);", row.split("|")[4])[1]) for row in table]
    assert len(drops) == 6
    assert said == (
        f"Its INT7 networks run {min(ratios[0]):.2f} to {max(ratios[0]):.2f} times as fast as the int8 of ONNX "
        f"Runtime and OpenVINO, {min(ratios[1]):.2f} to {max(ratios[1]):.2f} times as fast as their fp32, and "
        f"lose at most {-min(drops):.2f} points of accuracy to fp32"
    )
    beside = " ".join(README.split("**")[2].split())
    assert (
        f"{min(ratios[2]):.2f} to {max(ratios[2]):.2f} and {min(ratios[3]):.2f} to {max(ratios[3]):.2f} times"
        in beside
    )


def test_the_figures_of_a_cluster_are_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import readme_tables

    page = (ROOT / "docs" / "cluster.rst").read_text(encoding="utf-8")
    found = readme_tables.stored("cluster.json")
    for what in ("work", "traffic"):
        assert readme_tables.cluster_page(found, what) in page
    assert readme_tables.cluster_readme(found) in (ROOT / "benchmarks" / "README.md").read_text()
    assert found["workers"] == 2 and all(len(each["rows"]) == 6 for each in found["networks"].values())
    assert (
        f"family {found['machine']['cpu family']} model {found['machine']['model']}, AVX2, two cores"
        in (page.replace("\n", " "))
    )
    cpu = {
        row["case"]: row["calibrate_cpu"] + row["search_cpu"]
        for row in rows("search_avx2.json")
        if "search_cpu" in row
    }
    names = ("resnet50", "imagenet_mobilenet_v1_0.75", "imagenet_squeezenet1.1")
    first, *others = (cpu[name] for name in names)
    said = re.search(r"takes (\d+) CPU\s+seconds.*?0\.75 (\d+), a SqueezeNet1\.1 (\d+),", page, re.S)
    assert [int(text) for text in said.groups()] == [round(each) for each in (first, *others)]
    assert f"{round(first)},000 CPU seconds of 86,400: {1000 * first / 86400:.1f} cores" in page


def test_the_table_of_callers_is_the_stored_result():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    stored = json.loads((ROOT / "benchmarks" / "results" / "threads.json").read_text())
    assert stored["soak"]["wrong"] == 0 and stored["soak"]["calls"] >= 100_000
    assert len(stored["rows"]) > 1
    for row in stored["rows"]:
        (cells,) = [cells for cells in table_rows(row["net"], text) if len(cells) == 8 and "to" in cells[3]]
        assert cells[:3] == [
            f"{row['calls_per_second'][how]:.0f}" for how in ("one", "threads", "processes")
        ]
        assert cells[3].startswith(f"{row['ratio']:.2f} (")


def test_the_tables_of_today_s_networks_are_the_stored_results(monkeypatch):
    """And what is called integer there is integer to the reader of now."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import readme_tables

    avx2, vnni, coverage = (
        json.loads((ROOT / "benchmarks" / "results" / name).read_text())
        for name in ("networks_today_avx2.json", "networks_today_avx512.json", "integers.json")
    )
    text = (ROOT / "benchmarks" / "README.md").read_text()
    by_class = {("AVX2", "avx2"): avx2, ("VNNI", "avx512vnni"): vnni}
    assert readme_tables.today_table(by_class, coverage) in text
    assert readme_tables.coverage_table(coverage) in text
    ours = [r for rows in (avx2, vnni) for r in rows["rows"] if r["runner"].startswith("tvm_easy")]
    assert all(row["verified"] == "exact" for row in ours)


@pytest.mark.parametrize(
    "name", ["Split, Concat", "channel shuffle", "Resize, linear x2, half_pixel", "attention"]
)
def test_what_stays_float_is_what_the_stored_table_says(name, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import integers

    stored = json.loads((ROOT / "benchmarks" / "results" / "integers.json").read_text())
    made = integers.facts(eq.load_onnx(integers.operator(integers.OPERATORS[name])))
    assert made == stored["operators"][name]
