"""Is this commit ready to be published? ``make release-check`` says; it uploads nothing and makes no tag.

What is quick comes first: a clean tree, one version everywhere, a tag that is free, `.ci/run` passed on
this very commit. Then sdist and wheel are built from what git has, checked, and installed, each in an
environment of its own. ``--rehearse`` goes on after what the quick part finds.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tvm_easyquant/", "topi_ext/")
#: without TVM: the embedded network's scales, and a picture by its integers in numpy
IN_NUMPY = """
import tvm_easyquant as eq
from tvm_easyquant import demo
from tvm_easyquant.scales.integer import run_integer
assert "site-packages" in eq.__file__, eq.__file__
images = demo.images()
q = eq.quantize(demo.network_path(), images["calibration_images"][:10], bits=7, method="minmax")
scores = run_integer(q.graph, q.table, {"image": images["test_images"][:1]})
print(eq.__version__, f"{q.coverage:.0f} % in integers", {n: a.shape for n, a in scores.items()})
"""


def found(pattern: str, path: Path) -> str | None:
    """The first group of the pattern in a file, None where it is not there."""
    match = re.search(pattern, path.read_text(encoding="utf-8"), re.M)
    return match and match[1]


def version(root: Path = ROOT) -> str | None:
    """What the package says that it is."""
    return found(r'^__version__ = "(.+)"$', root / "tvm_easyquant" / "__init__.py")


def disagreements(root: Path) -> list[str]:
    """A line for each place whose version, or date of release, is not that of the package."""
    own, lines = version(root), []
    if not own or not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", own):
        lines += [f"tvm_easyquant/__init__.py: version {own}; write MAJOR.MINOR.PATCH"]
    if not found(r'^(version = \{ attr = "tvm_easyquant\.__version__" \})$', root / "pyproject.toml"):
        lines += ["pyproject.toml: the version is not read from tvm_easyquant.__version__"]
    cited = found(r"^version: \"?([^\"\n]+)\"?$", root / "CITATION.cff")
    if cited != own:
        lines += [f"CITATION.cff: version {cited}; the package is {own}"]
    heading = found(r"^## (.+)$", root / "CHANGELOG.md") or ""
    headed = re.fullmatch(r"\[(.+)\] - (\d{4}-\d\d-\d\d)", heading)
    if not headed or headed[1] != own:
        lines += [f"CHANGELOG.md: the topmost heading is {heading!r}; write '[{own}] - YYYY-MM-DD'"]
    elif (dated := found(r"^date-released: \"?([\d-]+)\"?$", root / "CITATION.cff")) != headed[2]:
        lines += [f"CITATION.cff: date-released {dated}; CHANGELOG.md says {headed[2]}"]
    return lines


def said(*command, cwd=ROOT) -> str:
    """What a command prints, without the last line's end."""
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def unready() -> list[str]:
    """What stands against a release and is quickly found."""
    lines = [f"not committed: {line}" for line in said("git", "status", "--porcelain").splitlines()]
    lines += disagreements(ROOT)
    head, tag = said("git", "rev-parse", "HEAD"), f"v{version()}"
    tagged = said("git", "rev-list", "-n1", tag) if said("git", "tag", "--list", tag) else head
    if tagged != head:
        lines += [f"tag {tag} is commit {tagged[:12]}; a version is published once: raise it"]
    record = ROOT / ".ci" / "passed"
    passed = record.read_text().strip() if record.exists() else "no commit"
    if passed != head:
        lines += [f".ci/run passed on {passed[:12]}, this is {head[:12]}; run .ci/run here"]
    return lines


def built(scratch: Path, dist: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel made from it, of what git has at this commit."""
    source = scratch / "source"
    source.mkdir()
    archive = scratch / "head.tar"
    subprocess.run(["git", "archive", "-o", archive, "HEAD"], cwd=ROOT, check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(source, filter="data")
    tracked = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    for old in dist.glob("tvm_easyquant-*"):
        old.unlink()
    build = [sys.executable, "-m", "build", "--outdir", dist, source]
    done = subprocess.run(build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(done.stdout)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", sdist, wheel], check=True)
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    different(inside, {name for name in tracked if name.startswith(PACKAGES)}, wheel)
    with tarfile.open(sdist) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    made = {name for name in names if ".egg-info/" in name or name in ("PKG-INFO", "setup.cfg")}
    different(names - made, tracked - {".gitignore", ".pre-commit-config.yaml"}, sdist)
    return sdist, wheel


def different(has: set[str], wanted: set[str], path: Path) -> None:
    """Ends with the files by which an archive differs from git."""
    if has != wanted:
        sys.exit(
            f"{path.name}: lacks {sorted(wanted - has)}; holds {sorted(has - wanted)}, which git has not so"
        )


def installed(scratch: Path, name: str, what: str) -> Path:
    """The programs' folder of a new environment in which that is installed."""
    venv.create(scratch / name, with_pip=True)
    programs = scratch / name / "bin"
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", what], check=True)
    return programs


def ran(*command, cwd: Path) -> None:
    """A command outside the checkout, which PYTHONPATH must not lead back into."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, cwd=cwd, env=environment, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make release-check", description=__doc__)
    parser.add_argument(
        "--rehearse", action="store_true", help="go on where the quick part finds something"
    )
    rehearse = parser.parse_args().rehearse
    against = unready()
    print(*(f"-- {line}" for line in against), sep="\n", end="\n" if against else "")
    if against and not rehearse:
        return 1
    dist = ROOT / "dist"
    dist.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        sdist, wheel = built(scratch, dist)
        print("-- the wheel, without TVM")
        programs = installed(scratch, "wheel", str(wheel))
        ran(programs / "python", "-c", IN_NUMPY, cwd=scratch)
        print("-- the sdist, with TVM")
        programs = installed(scratch, "sdist", f"{sdist}[relay]")
        ran(programs / "tvmc-easyquant", "demo", cwd=scratch)
    print(
        *(f"{path.relative_to(ROOT)}: {path.stat().st_size / 2**20:.2f} MiB" for path in (sdist, wheel)),
        sep="\n",
    )
    if against:
        print(f"rehearsed; not ready: {len(against)} above")
        return 1
    print(f"""ready; by hand, in this order:
  git tag -a v{version()} -m "tvm_easyquant {version()}" && git push origin v{version()}
  python -m twine upload {sdist.relative_to(ROOT)} {wheel.relative_to(ROOT)}
  a new heading "## [Unreleased]" in CHANGELOG.md""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
