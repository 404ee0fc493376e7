"""The documentation site: `make docs`. Works offline; warnings are errors."""

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
import tvm_easyquant

#: names of the host that is not installed here, which the gallery would ask for
ELSEWHERE = [name for name, module in tvm_easyquant._PUBLIC.items() if module.startswith("relax.")]
for name in ELSEWHERE:
    setattr(tvm_easyquant, name, None)

project = "tvm_easyquant"
release = version = tvm_easyquant.__version__
copyright = "the authors of tvm_easyquant, Apache-2.0"
extensions = ["sphinx.ext.autodoc", "sphinx_gallery.gen_gallery"]
default_role = "code"
exclude_patterns = ["_build", "**/README.txt"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_sphinx = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "tutorials"),
    "gallery_dirs": "tutorials",
    "filename_pattern": r"/0[1-689]_",  # 07 needs an ARM emulator
    "ignore_pattern": r"/(arm|metrics)/",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": (),
    "reset_modules": (),
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 10**6,  # times say something about the machine that built the site
    "write_computation_times": False,
    "abort_on_example_error": True,
}

CODE = re.compile(r"(``.*?``|`[^`]*`)")
FIELD = re.compile(r"^((?:\*{0,2}[a-z_]\w*)(?:(?:, | and )[a-z_]\w*)*)(:| ->) ")


def escaped(line: str) -> str:
    """Bars (absolute values) and lone stars (``*args``) outside of code are not markup."""
    parts = CODE.split(line)
    parts[::2] = [re.sub(r"\*(?=\w)(?!.*\w\*)", r"\\*", part.replace("|", r"\|")) for part in parts[::2]]
    return "".join(parts)


def fields(app, what, name, obj, options, lines):
    """Docstrings describe arguments as ``name: text``, lines below indented: a paragraph each."""
    done, literal, field = [], False, False
    for line in lines:
        if literal and line.strip() and not line.startswith(" "):
            literal = False
        if not literal:
            line = escaped(line)
            if found := FIELD.match(line):
                if done and done[-1].strip():
                    done.append("")
                line, field = f"``{found[1]}``{found[2]} {line[found.end() :]}", True
            elif field and line.startswith(" "):
                line = line.strip()
            elif not line.strip():
                field = False
        literal = literal or line.rstrip().endswith("::")
        done.append(line)
    lines[:] = done


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


def public() -> str:
    """Every public name of the package, in the order in which it lists them."""
    out = []
    for name, module in tvm_easyquant._PUBLIC.items():
        if name in ELSEWHERE:  # api.rst describes it
            continue
        value = getattr(tvm_easyquant, name)
        if not callable(value):  # its comment is where it is written
            out += [f".. autodata:: tvm_easyquant.{module}.{name}"]
            continue
        directive = "autoclass" if isinstance(value, type) else "autofunction"
        out += [f".. {directive}:: tvm_easyquant.{name}"]
        out += ["   :members:"] if directive == "autoclass" and name != "Graph" else []
        out += (
            ["   :inherited-members:"] if name == "Executor" else []
        )  # `fleet.PooledExecutor` has its calls
    return "\n".join(out) + "\n"


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
    (folder / "public.inc").write_text(public(), encoding="utf-8")
    (folder / "command_line.inc").write_text(command_line(), encoding="utf-8")


def setup(app):
    app.connect("autodoc-process-docstring", fields)
    app.connect("builder-inited", generate)
