"""The documentation site: `make docs`. Works offline; warnings are errors."""

import inspect
import logging
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("TOPHUB_LOCATION", "NONE")  # no schedules to download
for name in ("te_compiler", "autotvm"):  # Sphinx makes them talk
    logging.getLogger(name).setLevel(logging.ERROR)
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from sphinx.util.nodes import make_refnode

import tvm_easyquant

#: names of the host that is not installed here, which the gallery would ask for
ELSEWHERE = [name for name, module in tvm_easyquant._PUBLIC.items() if module.startswith("relax.")]
for name in ELSEWHERE:
    setattr(tvm_easyquant, name, None)

project = "tvm_easyquant"
release = version = tvm_easyquant.__version__
copyright = "the authors of tvm_easyquant, Apache-2.0"
extensions = ["sphinx.ext.autodoc", "sphinx_gallery.gen_gallery"]
default_role = "py:obj"  # a link where there is something to link to
exclude_patterns = ["_build", "**/README.txt"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_sphinx = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80  # else an argument a line
sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "tutorials"),
    "gallery_dirs": "tutorials",
    "filename_pattern": r"/(0[1-689]|1[0234])_",  # 07 needs an ARM emulator, 11 the other host
    "ignore_pattern": r"/(arm|metrics|ocr)/",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": (),
    "reset_modules": (),
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 10**6,  # times say something about the machine that built the site
    "write_computation_times": False,
    "abort_on_example_error": True,
}

CODE = re.compile(r"(``.*?``|`[^`]*`)")
ERROR = re.compile(r"(?<![\w.])([A-Z]\w+Error|TVMMissing)(?!\w)")
FIELD = re.compile(r"^((?:\*{0,2}[a-z_]\w*)(?:(?:, | and )[a-z_]\w*)*)(:| ->) ")


def escaped(line: str) -> str:
    """Bars (absolute values) and lone stars (``*args``) outside of code are not markup."""
    parts = CODE.split(line)
    parts[::2] = [re.sub(r"\*(?=\w)(?!.*\w\*)", r"\\*", part.replace("|", r"\|")) for part in parts[::2]]
    parts[::2] = [ERROR.sub(r"`\1`", part) for part in parts[::2]]
    return "".join(parts)


def arguments(obj) -> set[str]:
    """The names that an object's docstring may say something about."""
    try:
        names = set(inspect.signature(obj).parameters) if callable(obj) else set()
    except (TypeError, ValueError):
        return set()
    return names | set(getattr(obj, "__annotations__", ()))


def as_list(paragraph: list[str], names: set[str]) -> list[str]:
    """A paragraph such as ``model: its path. bits: 7 or 8. Raises LoadError.`` as an item for each name."""
    word = rf"\*{{0,2}}(?:{'|'.join(map(re.escape, sorted(names)))})"
    start = rf"(?:(?<=[.;] )|^)({word}(?:(?:, | and ){word})*): "
    text = " ".join(line.strip() for line in paragraph)
    before, *rest = re.split(start, text) if names else [text]
    if not rest:
        return []
    out = [escaped(before.strip()), ""] if before.strip() else []
    after = ""
    for name, said in zip(rest[::2], rest[1::2], strict=True):
        said, raises, more = said.partition(". Raises ")
        out += [f"* **{name.lstrip('*')}**: {escaped(said.strip()).rstrip(';.')}."]
        after += f"Raises {more}" if raises else ""
    return [*out, "", escaped(after), ""]


def fields(app, what, name, obj, options, lines):
    """Docstrings describe arguments as ``name: text``, in a paragraph or line by line: a list."""
    names = arguments(obj)
    done, paragraph, literal = [], [], False
    for line in [*lines, ""]:
        if literal and line.strip() and not line.startswith(" "):
            literal = False
        if literal:
            done.append(line)
        elif line.strip():
            paragraph.append(line)
        else:
            literal = bool(paragraph) and paragraph[-1].rstrip().endswith("::")
            flat = not any(line.startswith((" ", "* ", "- ")) for line in paragraph)
            done += (flat and not literal and as_list(paragraph, names)) or line_by_line(paragraph)
            done.append("")
            paragraph = []
    lines[:] = done


def line_by_line(paragraph: list[str]) -> list[str]:
    """A paragraph whose lines may be ``name: text``, continued by lines that are indented."""
    done, field = [], False
    for line in map(escaped, paragraph):
        if found := FIELD.match(line):
            if done and not field:
                done.append("")
            line, field = f"* ``{found[1]}``{found[2]} {line[found.end() :]}", True
        elif field and line.startswith(" "):
            line = f"  {line.strip()}"
        elif field:
            done.append("")
            field = False
        done.append(line)
    return done


#: where a name in single backticks may be, without its room
ROOMS = (
    "tvm_easyquant",
    "topi_ext",
    "tvm_easyquant.errors",
    "tvm_easyquant.samples",
    "tvm_easyquant.deploy",
)


def defaults(app, what, name, obj, options, signature, returned):
    """A factory is no Python; a signature with one is not parsed, and its types link to nothing."""
    return (signature.replace("<factory>", "..."), returned) if signature else None


def link(app, env, node, contnode):
    """What a name in single backticks means: a public name, or the one object that ends so."""
    if node.get("refdomain") != "py" or node.get("reftype") != "obj":
        return None
    python, name = env.get_domain("py"), node["reftarget"]
    known = [full for full, entry in python.objects.items() if not entry.aliased]
    found = [full for full in known if full in [f"{room}.{name}" for room in ROOMS]]
    if not found and ("." in name or name[:1].isupper()):  # a bare word may be an argument
        found = [full for full in known if full.endswith(f".{name}")]
    if len(found) != 1:
        return None
    entry = python.objects[found[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found[0])


def measured() -> str:
    """The README's measured block as reStructuredText; a test compares its figures with the stored ones."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("<!-- measured -->")[1].split("<!-- /measured -->")[0].strip()
    out, row = [], 0
    for line in block.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            row = 0
            line = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", line)  # links
            out.append(re.sub(r"^#+ (.*)", r"**\1**", line))
        elif not all(re.fullmatch(":?-+:?", cell) for cell in cells):
            if row == 0:
                out += ["", ".. list-table::", "   :header-rows: 1", ""]
            row += 1
            out += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(cells)]
    return "\n".join(out) + "\n"


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def speed() -> str:
    """The README's first table as an SVG of bars: times of the others over ours, by network."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- measured -->")[1]
    head, _, *rows = [line for line in text.split("\n\n")[2].splitlines() if line.startswith("|")]
    names, rows = cells(head)[2:], [cells(row) for row in rows]
    colours = ("#1d4f8a", "#2f7fc1", "#8fc1e8", "#7a3b12", "#c96a2b", "#e9a878", "#8b93a6")
    bar, left, per = 11, 150, 42  # pixels: of a bar, to its left, for each time
    group = bar * len(names) + 16
    width, height = left + per * 10, 30 + group * len(rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    ]
    out += [f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for i, (network, _, *times) in enumerate(rows):
        y = 26 + group * i
        out += [
            f'<text x="{left - 8}" y="{y + group / 2}" font-size="13" text-anchor="end">{network}</text>'
        ]
        for j, (name, time) in enumerate(zip(names, times, strict=True)):
            top, long = y + bar * j, per * float(time)
            out += [
                f'<rect x="{left}" y="{top}" width="{long:.1f}" height="{bar - 1}" fill="{colours[j]}"/>'
            ]
            told = f"{time} {name}" if i == 0 else time
            out += [f'<text x="{left + long + 4:.1f}" y="{top + 9}" font-size="9.5">{told}</text>']
    x = left + per
    out += [f'<line x1="{x}" y1="16" x2="{x}" y2="{height}" stroke="#1b2230" stroke-dasharray="3 3"/>']
    out += [f'<text x="{x}" y="12" font-size="9.5" text-anchor="middle">ours</text></svg>']
    return "\n".join(out)


def command_line() -> str:
    """The help text of each verb of ours, as the command line prints it."""
    import argparse

    from tvm_easyquant.cli import root

    os.environ["COLUMNS"] = "88"
    parser = argparse.ArgumentParser(prog="tvmc-easyquant")
    subparsers = parser.add_subparsers()
    root.add_verbs(subparsers)
    out = []
    for verb, sub in subparsers.choices.items():
        text = sub.format_help().rstrip()
        out += [verb, "-" * len(verb), "", ".. code-block:: text", ""]
        out += [f"   {line}".rstrip() for line in text.splitlines()] + [""]
    return "\n".join(out)


def generate(app):
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    (folder / "measured.inc").write_text(measured(), encoding="utf-8")
    (folder / "speed.svg").write_text(speed(), encoding="utf-8")
    (folder / "command_line.inc").write_text(command_line(), encoding="utf-8")


def setup(app):
    app.connect("autodoc-process-docstring", fields)
    app.connect("builder-inited", generate)
    app.connect("autodoc-process-signature", defaults)
    app.connect("missing-reference", link)
