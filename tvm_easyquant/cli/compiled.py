"""``compile``, ``run`` and ``tune`` on a host without tvmc: the same verbs, the options that matter."""

from __future__ import annotations

import argparse
import functools
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from topi_ext import isa

from ..errors import HostError, TuneError, UserError
from ..files import writable
from . import onward
from .common import add_verb, check_linker, input_shapes

if TYPE_CHECKING:
    from ..deploy import Program
    from ..scales.table import ScaleTable

COMPILE = """\
examples:
  tvmc-easyquant compile net.onnx --table net.json -o net.tar
  tvmc-easyquant compile net.onnx --table net.json --isa avx512vnni,avx2,generic -o net.tar
  tvmc-easyquant compile net.onnx --table net.json --isa avx512vnni,avx2 --bits by-class -o net.tar
  tvmc-easyquant compile net.onnx --target "easyquant -table=net.json, llvm -mcpu=core-avx2" -o net.tar
  tvmc-easyquant compile net.onnx -o float.tar
"""

RUN = """\
examples:
  tvmc-easyquant run net.tar --inputs images.npz -o outputs.npz
  tvmc-easyquant run net.tar --print-time --repeat 20
"""

#: our composite target: its table, and the CPU behind it
ASKED = re.compile(r"""\s*easyquant\b(?:\s+-table=("[^"]+"|'[^']+'|[^\s,"']+))?\s*(?:,(.*))?$""", re.DOTALL)
FILLS = ("zeros", "ones", "random")


def add(subparsers) -> None:
    parser = add_verb(subparsers, "compile", _compile, "compile a model", COMPILE)
    parser.set_defaults(untuned=None)  # (kernels without a record, all), once it is known
    add = parser.add_argument
    add("FILE", help="the model: ONNX")
    add("--model-format", metavar="NAME", help="onnx")
    add(
        "--input-shapes", action="append", metavar="SHAPES",
        help='such as "data:[1,3,224,224]"; again and again: one package of the integers at each',
    )  # fmt: skip
    add("--table", metavar="FILE", help="a scale table, from quantize: compile its integers")
    add("--target", help="a CPU target such as 'llvm -mcpu=core-avx2', or as JSON (this CPU)")
    add("--isa", metavar="ROW,...", help="with --table: a variant for each of these instruction sets")
    add(
        "--bits", metavar="N", help="of a table of several: 7, 8, or by-class, 8 where it costs nothing (7)"
    )
    add("--input-dtype", metavar="uint8", help="with --table: the image is bytes, preprocessed here")
    add("--input-layout", metavar="NAME", help="of an image of bytes: NHWC or NCHW (the model's own)")
    add("--cross-compiler", metavar="NAME", help="what links for another machine")
    add("--tuning-records", metavar="LOG", help="records of tune-kernels to choose kernels by")
    add("-f", "--output-format", choices=["so"], default="so", help="of the code in the package (so)")
    add("-o", "--output", default="module.tar", metavar="FILE", help="the package (module.tar)")
    add("-v", "--verbose", action="count", default=argparse.SUPPRESS, help="increase verbosity")

    parser = add_verb(subparsers, "run", _run, "run a compiled module", RUN)
    add = parser.add_argument
    add("PATH", help="a package of compile (.tar)")
    add("--isa", metavar="ROW", help="the variant to run (the best that this CPU runs)")
    add("-i", "--inputs", metavar="FILE", help="an .npz of arrays by input name")
    add("-o", "--outputs", metavar="FILE", help="an .npz to write")
    add("--fill-mode", choices=FILLS, default="random", help="without --inputs (random)")
    add("--device", choices=["cpu"], default="cpu", help="(cpu)")
    add("--print-time", action="store_true", help="print the times of --repeat runs")
    add("--profile", action="store_true", help="print the time of each call, and the layer that it is")
    add("--print-top", type=int, metavar="N", help="print the largest N of the first output")
    add("--repeat", type=int, default=1, metavar="N", help="how many times are taken (1)")
    add("--number", type=int, default=1, metavar="N", help="each the mean of so many runs (1)")
    add("--end-to-end", action="store_true", help="with what copies inputs and outputs")
    add("-v", "--verbose", action="count", default=argparse.SUPPRESS, help="increase verbosity")

    parser = subparsers.add_parser("tune", prog="tvmc-easyquant tune", help="auto-tune a model")
    parser.set_defaults(func=_tune, verb="tune")
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


# -- compile


def _targets(args) -> tuple[str | None, str | None]:
    """(the file of the table, the target) that are asked for; UserError where two say the same."""
    table, target = args.table, args.target
    if (found := ASKED.match(target or "")) is not None:
        if table is not None:
            raise UserError("--table and the target easyquant both name a table; give one of them")
        if not found[1]:
            raise UserError('target easyquant needs a scale table: "easyquant -table=FILE, llvm"')
        if found[2] is not None and "-table=" in found[2]:
            raise UserError(f"target {target!r}: -table=FILE belongs right behind easyquant")
        table, target = found[1].strip("\"'"), (found[2] or "").strip() or None
    if args.isa is not None:
        if table is None:
            raise UserError("--isa compiles the integers of a scale table: give --table FILE")
        if target is not None:
            raise UserError("--isa and --target both say for which CPU; give one of them")
    return table, target


def _compile(args, host) -> int:
    from .. import workflow
    from ..scales.image_input import check_asked
    from ..scales.table import BY_CLASS, ScaleTables, asked_bits, told_by_class

    (file, target), bits = _targets(args), asked_bits(args.bits)
    args.table = file
    layout = args.input_layout and args.input_layout.upper()
    check_asked(layout, args.input_dtype)
    texts = args.input_shapes or []
    if file is None and args.input_dtype:
        raise UserError("--input-dtype is of the integers of a scale table: give --table FILE")
    if file is None and bits is not None:
        raise UserError("--bits is of the integers of a scale table: give --table FILE")
    if file is None and len(texts) > 1:
        raise UserError("several --input-shapes are of the integers of a scale table: give --table FILE")
    shapes = [input_shapes(text) or {} for text in texts]
    for text, each in zip(texts, shapes, strict=True):
        if shapes.count(each) > 1:
            raise UserError(f"--input-shapes {text} is there twice; give each once")
    writable(args.output, inputs=[args.FILE, *([file] if file else ())])
    check_linker(host, args.cross_compiler)
    chosen = host.target(target) if args.isa is None else None
    tables = None if file is None else ScaleTables.load(file)
    table = None if tables is None else tables.for_bits(None if bits == BY_CLASS else bits)
    read = functools.partial(
        workflow.load, args.FILE, model_format=args.model_format,
        outputs=None if table is None else table.outputs,
    )  # fmt: skip
    with host.history(args.tuning_records, chosen):
        if table is None or tables is None:
            built = host.build_float(host.float_module(read(shapes[0] if shapes else None)), chosen)
        else:
            graph, plan = _own(table, read, shapes)
            q = workflow.Quantized(table, graph, plan, host=host, reopen=read)
            if bits == BY_CLASS:
                others = {b: replace(q, table=t, plan=t.check(graph)) for b, t in tables.tables.items()}
                q = replace(q, others={b: one for b, one in others.items() if one.table is not table})
                rows = [host.row(chosen)] if args.isa is None else [row.name for row in isa.named(args.isa)]
                print(f"easyquant: {told_by_class(rows)}", file=sys.stderr)
            built = q.build(
                chosen, isa=args.isa, input_layout=layout, input_dtype=args.input_dtype,
                input_shapes=shapes if len(shapes) > 1 else None,
                bits=bits if bits == BY_CLASS else None,
            )  # fmt: skip
            for part in _each(built):
                args.untuned = without, count = host.untuned(part.layers, part.target)
                layers = f"{len(part.layers)} integer layers"
                print(f"easyquant: {layers}, {without} of {count} kernels run untuned", file=sys.stderr)
        built.export(args.output, args.cross_compiler)
    tell(args)
    return 0


def tell(args) -> None:
    """What ``compile`` wrote, and what to do for kernels that run untuned."""
    line = f"{args.output}: {Path(args.output).stat().st_size / 1024:.1f} KiB"
    without, count = args.untuned or (0, 0)
    if without:
        log = onward.named(args.table, ".log")
        command = shlex.join(onward.tuning(args, args.table))
        line += f"; {without} of {count} kernels are chosen by stored costs: {command} measures them on "
        line += f"this CPU, compile --tuning-records {log} takes the best"
    print(line, file=sys.stderr)


def _own(table: ScaleTable, read, shapes):
    """(the graph that a table is of, its plan), of those at several input shapes. Raises TableError, and
    UserError where the table's own shapes are not among them."""
    if len(shapes) < 2:
        graph = table.prepared(read(shapes[0] if shapes else None))
        return graph, table.check(graph)
    for each in shapes:
        graph = table.prepared(read(each))
        if graph.fingerprint == table.model:
            return graph, table.check(graph)
    raise UserError(
        "the scale table was made at none of these --input-shapes, or for another model: give the "
        "shape that it was calibrated at, too"
    )


def _each(built):
    """The networks of what was built, however many times; none of them need run here."""
    from ..fleet import Fleet, Shapes

    if isinstance(built, Shapes):
        return [one for network in built.networks for one in _each(network)]
    return list(built.variants.values()) if isinstance(built, Fleet) else [built]


# -- run


def _run(args, host) -> int:
    import numpy as np

    from ..deploy import Program
    from ..files import replacing
    from ..network.shapes import told

    for name in ("repeat", "number", "print_top"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}; use 1 or more")
    if args.outputs:
        writable(args.outputs, inputs=[args.PATH, *([args.inputs] if args.inputs else ())])
    given = None if args.inputs is None else _arrays(args.inputs)
    with Program(args.PATH, isa=args.isa) as program:
        feed = _filled(program, args.fill_mode) if given is None else _cast(program, given)
        outputs = program(feed)
        if getattr(args, "verbose", 0):
            shapes = {name: array.shape for name, array in feed.items()}
            at = f", {told(shapes)}" if len(program.shapes) > 1 else ""
            print(f"{args.PATH}: variant {program.variant}{at}", file=sys.stderr)
        times = _times(program, feed, args) if args.print_time else []
    if args.profile:
        _profile(args, host, feed)
    if args.outputs:
        named: dict = {f"output_{i}": array for i, array in enumerate(outputs)}
        path = Path(args.outputs)  # numpy's own rule for the suffix
        with replacing(path if path.suffix == ".npz" else f"{path}.npz") as to, open(to, "wb") as file:
            np.savez(file, **named)
    if times:
        heads = ("mean", "median", "max", "min", "std")
        print("Execution time summary:\n" + "".join(f"{f'{head} (ms)':^13}" for head in heads))
        print("".join(f"{getattr(np, head)(times):^13.4f}" for head in heads))
    if args.print_top is not None:
        first = outputs[0].reshape(len(outputs[0]), -1)[0]
        order = first.argsort()[::-1][: args.print_top]
        print(np.array([order, first[order]]))
    return 0


def _profile(args, host, feed) -> None:
    from .. import package

    if getattr(host, "profile", None) is None:
        raise HostError(f"the {host.name} host does not time the calls of a package")
    choices, given = package.choices(args.PATH, args.isa), {name: a.shape for name, a in feed.items()}
    fits = [one for one in choices if one.variant is not None and dict(one.variant.shapes) == given]
    calls = host.profile((fits or choices)[0], feed)
    width = max(5, *(len(call.layer or "") for call in calls))
    print(f"{'layer':{width}}  {'us':>9}  function")
    for call in calls:
        print(f"{call.layer or '':{width}}  {1e3 * call.ms:9.2f}  {call.function}")
    print(f"{'sum':{width}}  {1e3 * sum(call.ms for call in calls):9.2f}")


def _arrays(path: str):
    import zipfile

    import numpy as np

    from ..samples.sources import reason

    try:
        with Path(path).open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise UserError(f"--inputs: {path} is one array; give an .npz of arrays by input name")
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--inputs: cannot read {path}: {reason(error)}") from None


def _cast(program: Program, arrays: Mapping):
    """Arrays of another size of element as the network takes them; bytes are never cut from wider ones."""
    kinds = {name: dtype for name, (_, dtype) in program.inputs.items()}
    return {
        name: array.astype(kinds[name])
        if name in kinds and kinds[name].kind == array.dtype.kind and kinds[name].itemsize > 1
        else array
        for name, array in arrays.items()
    }


def _filled(program: Program, mode: str):
    import numpy as np

    rng, made = np.random.default_rng(0), {}
    for name, (shape, dtype) in program.inputs.items():
        if mode != "random":
            made[name] = getattr(np, mode)(shape, dtype)
        elif dtype.kind == "f":
            made[name] = rng.uniform(size=shape).astype(dtype)
        else:
            made[name] = rng.integers(0, 128, shape).astype(dtype)
    return made


def _times(program: Program, feed, args) -> list[float]:
    """Milliseconds of one run, over --number of them, --repeat times."""
    step: Callable[[], object] = functools.partial(program, feed)
    times = []
    if not args.end_to_end and {name: array.shape for name, array in feed.items()} in program.shapes:
        program.set_inputs(feed)
        step = program.run
    step()
    for _ in range(args.repeat):
        start = time.perf_counter()
        for _ in range(args.number):
            step()
        times.append(1e3 * (time.perf_counter() - start) / args.number)
    return times


# -- tune


def _tune(args, host) -> int:
    """Raises TuneError."""
    raise TuneError(
        f"the {host.name} host does not tune yet as tvmc does: tvmc-easyquant tune-kernels net.onnx "
        "--table net.json -o net.log measures our kernels; without records the stored costs choose them"
    )
