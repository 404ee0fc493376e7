"""Mistakes: each a clear line or two that names the thing and the cure, exit code 4, nothing left behind."""

import base64
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import warnings
import zlib

import networks
import numpy as np
import onnx
import pytest
from python_process import python, tvmc

pytest.importorskip("tvm")
from topi_ext import isa
from tvm_easyquant import ScaleTable, cli, load_onnx, package
from tvm_easyquant.writers.qdq import to_qdq

Q = ["quantize", "net.onnx", "--calibration", "images.npz", "-o", "out.json"]
#: a tuning record of another CPU
RECORD = """{"input": ["llvm -keys=cpu -mcpu=skylake", "easyquant_direct_generic.cpu", [["TENSOR", [1, 8, 8, 3], "uint8"]], {}], "config": {"index": 0, "code_hash": null, "entity": []}, "result": [[3e-06], 0, 0.6, 1795558979.3], "version": 0.2, "tvm_version": "0.19.0"}"""  # fmt: skip
#: one of ours, too
OURS = """{"easyquant": 1, "kernel": "direct_generic", "target": "llvm -mcpu=skylake", "knobs": {"tile": 4}, "us": 3.0, "spec": {"batch": 1, "data_max": 127, "dilation": [1, 1], "epilogue": "requantize", "groups": 1, "height": 8, "hi": 127, "in_channels": 3, "kernel": [3, 3], "lo": 0, "out_channels": 8, "out_zero_point": 0, "padding": [1, 1, 1, 1], "residual": null, "strides": [1, 1], "width": 8, "zero_point": 64}}"""  # fmt: skip
NAN = np.full((2, 3, 8, 8), np.nan, np.float32)


def quantize(**changes):
    """The quantize command line with some arguments replaced."""
    command = list(Q)
    for key, value in changes.items():
        command[{"model": 1, "calibration": 3, "output": 5}[key]] = value
    return command


def verify(*arguments):
    return ["verify-onnx", "net.onnx", "--table", "table.json", *arguments]


def compile_with(table="table.json", model="net.onnx", output="n.tar", *rest):
    return ["compile", model, "-o", output, "--target", f"easyquant -table={table}, llvm", *rest]


def fleet_of(rows, *rest, model="net.onnx", table="table.json", output="n.tar"):
    return [
        "compile",
        model,
        "-o",
        output,
        "--table",
        table,
        *(["--isa", rows] if rows is not None else []),
        *rest,
    ]


AT = ["--input-shapes", "x:[1,3,8,8]"]


def run_with(archive="good.tar", inputs="images.npz", *rest):
    return ["run", archive, "--inputs", inputs, *rest]


#: a few hundred KiB that unpack to more than any layer's weights
BOMB = base64.b64encode(zlib.compress(bytes(2**28 + 8), 1)).decode()
#: a hand's mistake in the scale table -> (what it does to the JSON, what the message must say)
EDITS = {
    "from a newer version": (lambda t: t.update(version=99), "version 99.*reads versions 1 to 3.*install a newer"),
    "from before the first version": (lambda t: t.update(version=0), "version 0;.*no release wrote it so; quantize again"),
    "a version that is a text": (lambda t: t.update(version="1"), "has version '1'"),
    "a negative scale": (lambda t: site(t).update(scale=-1.0), "activation relu1: a scale is -1.0"),
    "a scale of zero": (lambda t: site(t).update(scale=0), "activation relu1: a scale is 0.0"),
    "a scale that is NaN": (lambda t: site(t).update(scale=float("nan")), "activation relu1: a scale is nan"),
    "a scale too large for float32": (lambda t: site(t).update(scale=1e300), "a scale is inf"),
    "a scale that is a text": (lambda t: site(t).update(scale="0.1"), "relu1: scale is '0.1'; it must be a number"),
    "a zero point beyond uint8": (lambda t: site(t).update(zero_point=300), "relu1: zero point 300 .* uint8"),
    "a zero point that is no integer": (lambda t: site(t).update(zero_point=1.5), "relu1: zero_point is 1.5"),
    "a range upside down": (lambda t: site(t).update(lo=200), "range 200..127 must lie in uint8"),
    "an unknown field": (lambda t: site(t).update(note="x"), r"relu1 .* has unknown \['note'\]"),
    "a field deleted": (lambda t: site(t).pop("hi"), r"relu1 lacks \['hi'\]"),
    "a site deleted": (lambda t: t["activations"].pop("relu1"), r"its activation scales lack \['relu1'\]"),
    "a site misspelled": (lambda t: t["activations"].update(reelu=t["activations"].pop("relu1")),
                          r"lack \['relu1'\] and have unknown \['reelu'\]"),
    "a site that is null": (lambda t: t["activations"].update(relu1=None), "relu1 is None; it must be an object"),
    "sites in a list": (lambda t: t.update(activations=[1]), "damaged.json is damaged"),
    "a channel too few": (lambda t: t["weights"]["conv1"].pop(), "7 weight scales for layer conv1.* 8 channels"),
    "a negative weight scale": (lambda t: t["weights"]["conv1"].append(-1), "weight scales of conv1 must be"),
    "a weight scale that is a text": (lambda t: t["weights"]["conv1"].append("a"), "weight scales of conv1 must be"),
    "one number for all channels": (lambda t: t["weights"].update(conv1=0.1), "weight scales of conv1 must be a list"),
    "bits": (lambda t: t["config"].update(bits=9), "bits is 9; use 7 or 8"),
    "a method of the future": (lambda t: t["config"].update(method="new"), "method is 'new'; use one of"),
    "an unknown setting": (lambda t: t["config"].update(speed=1), r"config .* unknown \['speed'\]"),
    "a skipped layer that was not": (lambda t: t["config"].update(skip="conv2"), "have unknown .*'conv2'"),
    "no settings": (lambda t: t.pop("config"), "damaged.json is damaged: it has no 'config'"),
    "a model that is a number": (lambda t: t.update(model=3), "model is 3; it must be a text"),
    "a bias that is a text": (lambda t: t.update(biases={"conv1": ["a"]}), "biases of conv1 must be a list"),
    "a gain of zero": (lambda t: t.update(gains={"conv1": [0.0] * 8}), "gains of conv1 must be a list of positive"),
    "a gain too few": (lambda t: t.update(gains={"conv1": [1.0] * 7}), "gain of layer conv1 is"),
    "gains of no layer": (lambda t: t.update(gains={"conv": [1.0]}), r"has gains of \['conv'\]"),
    "a rounding that is no text": (lambda t: t.update(rounding={"conv1": 7}), "rounding of conv1 is not one"),
    "a rounding that unpacks without end": (lambda t: t.update(rounding={"conv1": BOMB}), "rounding of conv1 is"),
    "the weights of another model": (lambda t: t.update(model="0" * 64), "made for another model"),
}  # fmt: skip


def site(table):
    return table["activations"]["relu1"]


#: name -> (command, what the message must say, exit code)
CASES = {
    "missing model": (quantize(model="no.onnx"), "no file no.onnx", 4),
    "not an ONNX file": (quantize(model="images.npz"), "images.npz is not an ONNX file", 4),
    "text file": (quantize(model="text.onnx"), "text.onnx is not an ONNX file", 4),
    "empty file": (quantize(model="empty.onnx"), "empty.onnx is not an ONNX file", 4),
    "a folder": (quantize(model="folder"), "folder is not an ONNX file", 4),
    "no conv": (quantize(model="relu.onnx"), "no convolution and no dense", 4),
    "dynamic shape": (quantize(model="dynamic.onnx"), "input x has (the|a) dynamic shape.*--input-shapes", 4),
    "wrong name beside an open shape": (
        [*quantize(model="dynamic.onnx"), "--input-shapes", "y:[1,3,8,8]"], r"input_shapes names \['y'\].*\['x'\]", 4),
    "wrong --input-shapes name": ([*Q, "--input-shapes", "y:[1,3,8,8]"], r"input_shapes names \['y'\].*\['x'\]", 4),
    "wrong --input-shapes": ([*Q, "--input-shapes", "x:[1,4,8,8]"], "x was given shape.*the model says", 4),
    "unreadable --input-shapes": ([*Q, "--input-shapes", "x=1,2"], "--input-shapes", 4),
    "unknown operator": (quantize(model="unknown.onnx"), r"node conv1 \(NoSuchOp\) is no operator of opset 13; cut the network", 4),
    "bits": ([*Q, "--bits", "6"], "bits is 6; use 7 or 8", 4),
    **{
        f"bits {text}": ([*Q, f"--bits={text}"], f"--bits '{text}': give 7, 8, 7,8 for both in one table, or auto", 4)
        for text in ("7,", ",7", ",", "7,7", "7;8", "7, 8", "7,8,9", "seven", "")
    },
    "bits auto": ([*Q, "--bits", "auto"], "need --eval DATA, labelled, and a --max-drop", 4),
    "max drop": ([*Q, "--max-drop", "1"], "need --eval DATA, labelled, and a --max-drop", 4),
    "eval": ([*Q, "--max-drop", "1", "--eval", "none.npz"], "none.npz", 4),
    "method": ([*Q, "--method", "magic"], "method is 'magic'; use one of easyquant", 4),
    "a setting that is none": ([*Q, "--set", "speed=1"],
                               "--set speed=1: give NAME=VALUE; the names are grid, rounds, .*rounding, exhaustive", 4),
    "a setting without a value": ([*Q, "--set", "start="], "--set start=: give NAME=VALUE", 4),
    "a setting that has a flag of its own": ([*Q, "--set", "bits=8"], "--set bits=8: give NAME=VALUE", 4),
    "a setting that is no number": ([*Q, "--set", "rounds=2", "grid=many"], "--set grid=many: grid takes a whole number", 4),
    "a setting without end": ([*Q, "--set", "beta=inf"], "--set beta=inf: beta takes a number", 4),
    "a setting out of range": ([*Q, "--set", "alpha=1.5"], "alpha 1.5 and beta 2.0 must enclose 1", 4),
    "a switch it does not have": ([*Q, "--set", "start=best"], "start is 'best'; use one of max, percentile, kl, mse", 4),
    "a switch that is neither": ([*Q, "--set", "exhaustive=perhaps"], "exhaustive is 'perhaps'; use one of True, False", 4),
    "a switch the paper lacks": ([*Q, "--method", "easyquant", "--set", "rounding=descent"], "no part of the paper's method", 4),
    "a switch without a search": ([*Q, "--method", "kl", "--set", "rounding=descent"], "method kl does not search", 4),
    "search images": ([*Q, "--search-images", "0"], "search_images is 0", 4),
    "skip": ([*Q, "--skip", "conv9"], r"skip names \['conv9'\].*conv1, conv2, classifier", 4),
    "a number that is none": ([*Q, "--search-images", "many"],
                              "argument --search-images: invalid int value: 'many'; see .*quantize --help", 2),
    "shapes that end too early": (["compile", "net.onnx", "--input-shapes", "x:[1,3,16"], "--input-shapes 'x:.1,3,16': give NAME:", 4),
    "no model named": (["plan", "--table", "table.json"], "arguments are required: FILE; see .*plan --help", 2),
    "skip all": ([*Q, "--skip", "conv1", "conv2", "classifier"], "nothing to quantize", 4),
    "no calibration": (["quantize", "net.onnx"], "needs --calibration", 4),
    "missing calibration": (quantize(calibration="no.npz"), "no file or folder no.npz", 4),
    "empty folder": (quantize(calibration="folder"), "folder holds no .npy or .npz", 4),
    "calibration is text": (quantize(calibration="text.npz"), "cannot read text.npz", 4),
    "empty calibration": (quantize(calibration="none.npz"), "calibration data is empty", 4),
    "NaN": (quantize(calibration="nan.npz"), "item 1, sample 0: x holds NaN or infinity", 4),
    "wrong input name": (quantize(calibration="names.npz"), r"\['a', 'b'\].*\['x'\]", 4),
    "wrong shape": (quantize(calibration="shape.npz"), r"x has shape \(2, 3, 9, 9\), the model takes \(1, 3, 8, 8\)", 4),
    "wrong dtype": (quantize(calibration="bytes.npz"), "x is uint8; the model takes float32", 4),
    "unwritable output": (quantize(output="no/such/folder/t.json"), "cannot write no/such/folder/t.json", 4),
    "broken checkpoint": ([*Q, "--resume"], "out.json.search is not a search checkpoint; delete it", 4),
    "damaged tuning log": (["compile", "net.onnx", "-o", "n.tar", "--tuning-records", "text.npz", "--target",
                            "easyquant -table=table.json, llvm"], "text.npz, line 1 is not a tuning record", 4),
    "no tuning log": (["plan", "net.onnx", "--table", "table.json", "--tuning-records", "no.log"],
                      "--tuning-records: there is no file no.log", 4),
    "unknown tuner": (["tune-kernels", "net.onnx", "--table", "table.json", "-o", "t.log", "--tuner", "best"],
                      "tuner is 'best'; use one of xgb", 4),
    "half a tracker": (["tune-kernels", "net.onnx", "--table", "table.json", "-o", "t.log", "--rpc-tracker", "h"],
                       "--rpc-tracker HOST:PORT and --rpc-key KEY belong together", 4),
    "plan for a GPU": (["plan", "net.onnx", "--table", "table.json", "--target", "cuda"], "not a CPU", 4),
    "no table": (["compile", "net.onnx", "-o", "n.tar", "--target", "easyquant, llvm"], "needs a scale table", 4),
    "missing table": (["compile", "net.onnx", "-o", "n.tar", "--target", "easyquant -table=no.json, llvm"],
                      "cannot read the scale table no.json", 4),
    "table of another model": (["compile", "other.onnx", "-o", "n.tar", "--target",
                                "easyquant -table=table.json, llvm"], "made for another model", 4),
    "damaged table": (["compile", "net.onnx", "-o", "n.tar", "--target", "easyquant -table=damaged.json, llvm"],
                      "damaged.json is not JSON", 4),
    "no table named": (compile_with(""), "an option has no value after its =", 4),
    "unknown target option": (["compile", "net.onnx", "-o", "n.tar", "--target",
                               "easyquant -tabel=table.json -table=table.json, llvm"], r"no option \['tabel'\]", 4),
    "not a CPU": (["compile", "net.onnx", "-o", "n.tar", "--target", "easyquant -table=table.json, c"],
                  "target 'c' is not a CPU", 4),
    "truncated model": (quantize(model="half.onnx"), "half.onnx is not an ONNX file, or a damaged one", 4),
    "all but the last byte": (quantize(model="almost.onnx"), "almost.onnx is not an ONNX file", 4),
    "opset of the future": (quantize(model="opset99.onnx"), "opset 99; 7 to [0-9]+ can be read.*version_converter", 4),
    "opset of the past": (quantize(model="opset3.onnx"), "has opset 3;", 4),
    "float16 model": (quantize(model="float16.onnx"), r"node conv1 \(Conv\) is not valid: W has inconsistent type tensor\(float\)", 4),
    "NaN in the weights": (quantize(model="nan.onnx"), "layer conv1: its weights hold NaN", 4),
    "a tensor nobody makes": (quantize(model="dangling.onnx"), r"node bn1 \(BatchNormalization\) reads nowhere, which no node makes", 4),
    "external weights missing": (quantize(model="external.onnx"), "weights of external.onnx cannot be read.*w.bin", 4),
    "external weights elsewhere": (quantize(model="outside.onnx"), "weights of outside.onnx cannot be read", 4),
    "batch 0": ([*Q, "--batch", "0"], "batch is 0; use 1 or more", 4),
    "another batch": ([*Q, "--batch", "4"], r"net.onnx: .*the batch is to be 4; .*--input-shapes", 4),
    "NHWC images": (quantize(calibration="nhwc.npz"), "it is NHWC; transpose it to NCHW", 4),
    "infinity": (quantize(calibration="infinity.npz"), "sample 1: x holds NaN or infinity", 4),
    "float64 beyond float32": (quantize(calibration="huge.npz"), "x holds NaN or infinity", 4),
    "truncated .npz": (quantize(calibration="truncated.npz"), "cannot read truncated.npz", 4),
    "damaged .npz": (quantize(calibration="flipped.npz"), "cannot read flipped.npz: Bad CRC", 4),
    "pickle in an .npz": (quantize(calibration="pickle.npz"), "pickled Python objects, which are never loaded", 4),
    "pickle named .npz": (quantize(calibration="raw.npz"), "pickled Python objects, which are never loaded", 4),
    "pickle in an .npy": (quantize(calibration="pickles"), "pickled Python objects, which are never loaded", 4),
    "output is the model": (quantize(output="net.onnx"), "net.onnx: it is also an input and would be lost", 4),
    "output is the data": (quantize(output="images.npz"), "images.npz: it is also an input", 4),
    "output is a folder": (quantize(output="folder"), "cannot write folder: it is a folder", 4),
    "compile: dynamic shape": (compile_with(model="dynamic.onnx"), "x has the dynamic shape.*--input-shapes", 4),
    "tvmc's compile: dynamic shape": (["compile", "dynamic.onnx", "-o", "n.tar", "--target", "llvm"],
                                      "x has (the|a) dynamic shape.*--input-shapes", 4),
    "compile: truncated model": (compile_with(model="half.onnx"), "half.onnx is not an ONNX file", 4),
    "compile: unwritable": (compile_with(output="no/n.tar"), "cannot write no/n.tar", 4),
    "compile: over the model": (compile_with(output="net.onnx"), "it is also an input and would be lost", 4),
    "compile: no tuning log": ([*compile_with(), "--tuning-records", "no.log"], "there is no file no.log", 4),
    "compile: log of another CPU": ([*compile_with(), "--tuning-records", "cpu.log"],
                                    "cpu.log was measured for -mcpu skylake, the target is llvm.*tune on this CPU", 4),
    "compile: a record of ours cut short": ([*compile_with(), "--tuning-records", "short.log"],
                                            "short.log, line 1 is not a tuning record.*delete the line", 4),
    "plan: records of ours of another CPU": (["plan", "net.onnx", "--table", "table.json", "--tuning-records",
                                              "ours.log", "--target", "llvm -mcpu=core-avx2"],
                                             "ours.log was measured for -mcpu skylake", 4),
    "plan: records of a later form": (["plan", "net.onnx", "--table", "table.json", "--tuning-records",
                                       "later.log"], "later.log, line 1 is a tuning record of form 9.*reads form 1", 4),
    "tune-kernels: all of a space on a device": (["tune-kernels", "net.onnx", "--table", "table.json", "-o", "t.log",
                                                  "--tuner", "exhaustive", "--rpc-tracker", "127.0.0.1:1", "--rpc-key",
                                                  "board"], "measures on this machine only; for a device use grid", 4),
    "plan: log of another CPU": (["plan", "net.onnx", "--table", "table.json", "--tuning-records", "cpu.log",
                                  "--target", "llvm -mcpu=core-avx2"], "cpu.log was measured for -mcpu skylake", 4),
    "a pickle for a table": (compile_with("pickle.json"), "cannot read the scale table pickle.json", 4),
    "a table nested without end": (compile_with("deep.json"), "deep.json is not JSON", 4),
    "an empty table": (compile_with("empty.onnx"), "empty.onnx is not JSON", 4),
    "a table that is a list": (compile_with("list.json"), "list.json is not a tvm_easyquant scale table", 4),
    "export-onnx: over the model": (["export-onnx", "net.onnx", "--table", "table.json", "-o", "net.onnx"],
                                    "it is also an input and would be lost", 4),
    "import-onnx: over the model": (["import-onnx", "net.onnx", "-o", "net.onnx"], "it is also an input", 4),
    "import-onnx: a float model": (["import-onnx", "net.onnx", "-o", "n.tar"], "net.onnx is not quantized", 4),
    "tune-kernels: over the table": (["tune-kernels", "net.onnx", "--table", "table.json", "-o", "table.json"],
                                     "table.json: it is also an input", 4),
    "a tuning log that is no text": (["plan", "net.onnx", "--table", "table.json", "--tuning-records",
                                      "images.npz"], "images.npz is not a tuning log", 4),
    "a function that wants arguments": (quantize(calibration="json:loads"), "json:loads.*called with no arg", 4),
    "a metric and nothing to judge": ([*Q, "--metric", "json:loads"], "--metric judges labelled data: give --eval", 4),
    "a metric that wants none": (["evaluate", "net.onnx", "--table", "table.json", "--data", "images.npz",
                                  "--metric", "os:getcwd"], r"os:getcwd.*arguments \(outputs, label\)", 4),
    "compile: an instruction set that is none": (fleet_of("avx2,AVX512"), "no instruction set 'AVX512'; use generic, avx2,", 4),
    "compile: no instruction set": (fleet_of(""), "no instruction set ''; use generic", 4),
    "compile: two architectures": (fleet_of("avx2,neon"), "avx2, neon are of aarch64 and x86_64", 4),
    "compile: --isa without a table": (["compile", "net.onnx", "-o", "n.tar", "--isa", "generic"], "give --table FILE", 4),
    "compile: bytes without a table": (["compile", "net.onnx", "-o", "n.tar", "--target", "llvm", "--input-dtype", "uint8"],
                                       "of the integers of a scale table: give --table FILE", 4),
    "compile: bytes without preprocessing": (compile_with("table.json", "net.onnx", "n.tar", "--input-dtype", "uint8"),
                                             "the scale table has none: quantize with --scale, --mean, --std", 4),
    "compile: an input of another type": (fleet_of("generic", "--input-dtype", "int8"), "input_dtype is 'int8'; use uint8", 4),
    "compile: another layout": (fleet_of("generic", "--input-dtype=uint8", "--input-layout", "HWC"),
                                "input_layout is 'HWC'; use one of NHWC, NCHW", 4),
    "compile: a layout of floats": (fleet_of(None, "--input-layout", "NHWC"), "give input_dtype uint8 with it", 4),
    "compile: a layout in short": (fleet_of("generic", "--input-la", "NHWC"), "write --input-layout in full", 4),
    "compile: --isa and --target": (fleet_of("generic", "--target", "llvm"), "both say for which CPU; give one", 4),
    "compile: two tables": (fleet_of(None, "--target", "easyquant -table=table.json, llvm"), "both name a table; give one", 4),
    "compile: no such table": (fleet_of("generic", table="no.json"), "cannot read the scale table no.json", 4),
    "compile: a quotation mark": (fleet_of("generic", table='a"b.json'), "no path with a quotation mark", 4),
    "compile: code of several": (fleet_of("generic,avx2", "--dump-code", "asm"), "name one instruction set with --isa", 4),
    "compile: a fleet over its table": (fleet_of("generic", output="table.json"), "it is also an input", 4),
    "compile: a fleet of another model": (fleet_of("generic,avx2", model="other.onnx"), "made for another model", 4),
    "compile: several shapes without a table": (["compile", "net.onnx", *AT, *AT, "-o", "n.tar"],
                                                "several --input-shapes are of the integers of a scale table", 4),
    "compile: two equal shapes": (fleet_of("generic", *AT, "--input-shapes=x:[1, 3, 8, 8]"), "is there twice; give each once", 4),
    "compile: shapes that are none": (fleet_of("generic", *AT, "--input-shapes", "x=8"), "--input-shapes 'x=8': give NAME:", 4),
    "compile: a shape that the model refuses": (fleet_of("generic", *AT, "--input-shapes", "x:[1,3,9,9]"),
                                                r"x was given shape \(1, 3, 9, 9\), the model says \(1, 3, 8, 8\)", 4),
    "compile: the table's shape is not there": (fleet_of("generic", "--input-shapes", "x:[2,3,8,8]", "--input-shapes", "x:[4,3,8,8]"),
                                                "made at none of these --input-shapes", 4),
    "compile: code of several shapes": (fleet_of("generic", *AT, "--input-shapes", "x:[2,3,8,8]", "--dump-code", "asm"),
                                        "name one instruction set with --isa, and one shape", 4),
    "compile: an option cut short": (["compile", "net.onnx", "--tabl", "table.json"], "error: write --table in full", 4),
    "run: an instruction set that is none": (run_with("record.tar", "images.npz", "--isa", "avx"), "isa is 'avx'; use one of generic", 4),
    "run: a variant that is missing": (run_with("record.tar", "images.npz", "--isa", "neon"), "record.tar has no variant neon.*it has generic", 4),
    "run: a record from a newer version": (run_with("newer.tar"), "newer.tar: its easyquant.json has version 2, .*install a newer", 4),
    "run: a variant without its code": (run_with("hollow.tar"), "hollow.tar is no archive of tvmc compile: .*mod.so", 4),
    "run: no archive": (run_with("no.tar"), "no.tar does not exist", 4),
    "run: text": (run_with("text.onnx"), "Could not read model from archive text.onnx", 4),
    "run: an archive of something else": (run_with("other.tar"), "Couldn't find exported library", 4),
    "run: a member that climbs out": (run_with("climbs.tar"), "member '../../stolen' would leave the folder", 4),
    "run: an absolute member": (run_with("absolute.tar"), "member '.*stolen' would leave the folder", 4),
    "run: a link": (run_with("link.tar"), "member 'mod.so' would leave the folder", 4),
    "run: a pickle": (run_with(inputs="pickle.npz"), "--inputs: .*pickled Python objects, which are never loaded", 4),
    "run: truncated inputs": (run_with(inputs="truncated.npz"), "--inputs: cannot read truncated.npz", 4),
    "run: one array": (run_with(inputs="pickles/0.npy"), "--inputs: cannot read pickles/0.npy", 4),
    "unknown mcpu": (["compile", "net.onnx", "-o", "n.tar", "--target",
                      "easyquant -table=table.json, llvm -mcpu=core-avx9"], "knows no -mcpu=core-avx9", 4),
    "quantize a quantized model": (quantize(model="quantized.onnx"), "already quantized .node .*import-onnx", 4),
    "compile a quantized model": (compile_with(model="quantized.onnx"), "already quantized .node .*import-onnx", 4),
    "export: another table": (["export-onnx", "other.onnx", "--table", "table.json", "-o", "q.onnx"], "made for another model", 4),
    "export: unwritable": (["export-onnx", "net.onnx", "--table", "table.json", "-o", "no/q.onnx"], "cannot write no/q.onnx", 4),
    "verify: no inputs": (verify("--inputs", "no.npz"), "--inputs: there is no file or folder no.npz", 4),
    "verify: count": (verify("--inputs", "images.npz", "--count", "0"), "--count is 0; use 1 or more", 4),
    "verify: a text": (verify("--inputs", "images.npz", "--qdq", "text.onnx"), "text.onnx is not an ONNX file", 4),
    "verify: a float model": (verify("--inputs", "images.npz", "--qdq", "net.onnx"), "none of the tensors of the table", 4),
    "import: a float model": (["import-onnx", "net.onnx"], "net.onnx is not quantized.*quantize takes float models", 4),
    "import: not an ONNX file": (["import-onnx", "text.onnx"], "text.onnx is not an ONNX file", 4),
    "import: another format": (["import-onnx", "net.tflite", "--model-format", "tflite"], "must be ONNX", 4),
    "import: one name twice": (["import-onnx", "quantized.onnx", "-o", "x", "--table-out", "./x"], "must name different files", 4),
    "import: nothing to compare": (["verify-onnx", "wide.onnx", "--inputs", "images.npz"], "wide.onnx: nothing of it runs in integers", 4),
    "import: numbers of Quark's own": (["import-onnx", "blocks.onnx"], "node blocks .BFPQuantizeDequantize, 1 such nodes.*Quark's A8W8", 4),
    "quantize numbers of Quark's own": (quantize(model="blocks.onnx"), "already quantized .node blocks is BFPQuantizeDequantize", 4),
    "import: --isa and --target": (["import-onnx", "quantized.onnx", "-o", "x.tar", "--isa", "avx2", "--target", "llvm"],
                                   "--isa and --target both say for which CPU", 4),
    "import: --isa and no package": (["import-onnx", "quantized.onnx", "--isa", "avx2"], "give --output FILE.tar", 4),
    "import: an instruction set that is none": (["import-onnx", "quantized.onnx", "-o", "x.tar", "--isa", "AVX2"],
                                                "no instruction set 'AVX2'; use generic", 4),
    "import: records of several": (["import-onnx", "quantized.onnx", "-o", "x.tar", "--isa", "avx2,generic",
                                    "--tuning-records", "cpu.log"], "records are of one CPU: name one", 4),
    "import: for a GPU": (["import-onnx", "quantized.onnx", "-o", "x.tar", "--target", "cuda"], "not a CPU", 4),
    "import: read with another scale": (["import-onnx", "rescaled.onnx"],
                                        "node x_DequantizeLinear: x_quantized is quantized with one scale and read", 4),
    "ncnn: no table": (["import-ncnn", "net.onnx", "--ncnn", "no.table", "-o", "x.json"], "cannot read the ncnn table no.table", 4),
    "ncnn: a text": (["import-ncnn", "net.onnx", "--ncnn", "text.onnx", "-o", "x.json"], "text.onnx, line 1: could not convert", 4),
    "ncnn: another model": (["export-ncnn", "other.onnx", "--table", "table.json", "-o", "x"], "made for another model", 4),
}  # fmt: skip


def packages(folder):
    """Packages of one variant, which hold no network: none of these is ever loaded."""
    variant = package.Variant("generic", package.Needs("generic", isa.arch_of(""), ()), "llvm", "0.19.0")
    contents = dict.fromkeys(package.FILES, b"nothing")
    whole = package.packed("1.0", [package.Compiled(variant, "", contents)])
    (folder / "record.tar").write_bytes(whole)
    (folder / "newer.tar").write_bytes(whole.replace(b'"version": 1', b'"version": 2'))
    with tarfile.open(folder / "record.tar") as tar:
        record = tar.extractfile("easyquant.json").read()
    (folder / "hollow.tar").write_bytes(package.archive({"easyquant.json": record}))


class Evil:
    """Unpickling it leaves a file behind."""

    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


def archive(path, name, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "net.onnx"
        tar.addfile(member, io.BytesIO())


def spoilt(change, **options):
    """The small network with one thing wrong."""
    model = networks.small_onnx(**options)
    change(model)
    return model


def external(model, location):
    weights = next(t for t in model.graph.initializer if t.name == "w1")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)


def nan_weight(model):
    weights = next(t for t in model.graph.initializer if t.name == "w1")
    array = onnx.numpy_helper.to_array(weights).copy()
    array[0, 0, 0, 0] = np.nan
    weights.CopyFrom(onnx.numpy_helper.from_array(array, "w1"))


def blocks(model):
    node = onnx.helper.make_node(
        "BFPQuantizeDequantize", ["x"], ["x_blocks"], "blocks", domain="com.amd.quark"
    )
    model.graph.node[0].input[0] = "x_blocks"
    model.graph.node.insert(0, node)


def wide(model):
    """A tensor of 16 bits, which nothing reads in integers."""
    constants = {"scale": np.float32(0.01), "zero": np.int16(0)}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()
    )
    model.graph.node[0].input[0] = "x_real"
    for op, ends in (("DequantizeLinear", ("x_wide", "x_real")), ("QuantizeLinear", ("x", "x_wide"))):
        node = onnx.helper.make_node(op, [ends[0], "scale", "zero"], [ends[1]], op, domain="com.microsoft")
        model.graph.node.insert(0, node)


MODELS = {
    "net": lambda m: None,
    "blocks": blocks,
    "wide": wide,
    "dynamic": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_param", "height"),
    "unknown": lambda m: setattr(m.graph.node[0], "op_type", "NoSuchOp"),
    "opset99": lambda m: setattr(m.opset_import[0], "version", 99),
    "opset3": lambda m: setattr(m.opset_import[0], "version", 3),
    "float16": lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", onnx.TensorProto.FLOAT16),
    "nan": nan_weight,
    "dangling": lambda m: m.graph.node[1].input.__setitem__(0, "nowhere"),
    "external": lambda m: external(m, "w.bin"),
    "outside": lambda m: external(m, "../../../etc/passwd"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    images = np.zeros((2, 3, 8, 8), np.float32) + np.arange(8, dtype=np.float32)
    for name, change in MODELS.items():
        (folder / f"{name}.onnx").write_bytes(spoilt(change).SerializeToString())
    onnx.save(networks.small_onnx(seed=1), folder / "other.onnx")
    dims = {"x": [1, 3, 8, 8]}
    relu = networks.onnx_model([("Relu", ["x"], ["y"], "r", {})], dims, {"y": [1, 3, 8, 8]}, {})
    onnx.save(relu, folder / "relu.onnx")
    whole = (folder / "net.onnx").read_bytes()
    (folder / "half.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "almost.onnx").write_bytes(whole[:-1])
    (folder / "text.onnx").write_text("this is no network")
    (folder / "empty.onnx").write_text("")
    (folder / "text.npz").write_text("this is no archive")
    (folder / "damaged.json").write_text("{")
    (folder / "list.json").write_text("[1]")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "pickle.json").write_bytes(pickle.dumps(Evil()))
    (folder / "raw.npz").write_bytes(pickle.dumps(Evil()))
    (folder / "out.json.search").write_text("{")
    (folder / "folder").mkdir()
    (folder / "pickles").mkdir()
    evil = np.array([Evil()], object)
    np.save(folder / "pickles" / "0.npy", evil, allow_pickle=True)
    arrays = {
        "images": dict(x=images), "none": dict(x=images[:0]), "nan": dict(x=NAN), "names": dict(a=images, b=images),
        "shape": dict(x=np.zeros((2, 3, 9, 9), np.float32)), "bytes": dict(x=images.astype(np.uint8)),
        "nhwc": dict(x=images.transpose(0, 2, 3, 1)), "huge": dict(x=images.astype(np.float64) * 1e300),
        "infinity": dict(x=np.concatenate([images[:1], np.full_like(images[:1], np.inf)])), "pickle": dict(x=evil),
    }  # fmt: skip
    for name, values in arrays.items():
        np.savez(folder / f"{name}.npz", **values)
    whole = bytearray((folder / "images.npz").read_bytes())
    (folder / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    whole[300] ^= 1
    (folder / "flipped.npz").write_bytes(whole)
    archive(folder / "other.tar", "readme.txt")
    archive(folder / "climbs.tar", "../../stolen")
    archive(folder / "absolute.tar", str(folder / "stolen"))
    archive(folder / "link.tar", "mod.so", tarfile.SYMTYPE)
    packages(folder)
    (folder / "cpu.log").write_text(RECORD)
    for log, record in {"ours": OURS, "short": OURS[:99], "later": OURS.replace("1", "9", 1)}.items():
        (folder / f"{log}.log").write_text(record)
    made = tvmc("quantize", "net.onnx", "--calibration", "images.npz", "-o", "table.json", "--method",
                "minmax", cwd=folder)  # fmt: skip
    assert made.returncode == 0, made.stderr
    graph, table = load_onnx(folder / "net.onnx"), ScaleTable.load(folder / "table.json")
    quantized = to_qdq(graph, table)
    onnx.save(quantized, folder / "quantized.onnx")
    next(n for n in quantized.graph.node if n.name == "x_DequantizeLinear").input[1] = "conv2_weight_scale"
    twice = onnx.numpy_helper.from_array(np.float32(0.5), "conv2_weight_scale")
    next(t for t in quantized.graph.initializer if t.name == "conv2_weight_scale").CopyFrom(twice)
    onnx.save(quantized, folder / "rescaled.onnx")
    return folder


def mistake(folder, monkeypatch, capfd, command, message, code=4):
    """Run a command line in this process: its answer, and what it leaves behind."""
    monkeypatch.chdir(folder)
    before = contents(folder)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert cli.run(command) == code
        except SystemExit as exit:  # argparse
            assert exit.code == code
    out, err = capfd.readouterr()
    assert re.search(message, err), err
    assert "Traceback" not in err + out
    assert len([line for line in err.splitlines() if line.strip()]) <= 2, err
    assert contents(folder) == before


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_named_and_leaves_nothing_behind(folder, monkeypatch, capfd, name):
    mistake(folder, monkeypatch, capfd, *CASES[name])


@pytest.mark.parametrize("name", EDITS)
def test_a_table_edited_wrongly_is_refused(folder, monkeypatch, capfd, name):
    change, message = EDITS[name]
    table = json.loads((folder / "table.json").read_text())
    change(table)
    (folder / "damaged.json").write_text(json.dumps(table))
    try:
        mistake(folder, monkeypatch, capfd, compile_with("damaged.json"), message)
    finally:
        (folder / "damaged.json").write_text("{")


def test_the_table_that_the_edits_spoil_is_good(folder):
    """Otherwise the test above could pass without its edits."""
    from tvm_easyquant import ScaleTable, load_onnx

    ScaleTable.load(folder / "table.json").check(load_onnx(folder / "net.onnx"))


def test_the_exit_code_reaches_the_shell(folder):
    result = tvmc("quantize", "no.onnx", "--calibration", "images.npz", cwd=folder)
    assert result.returncode == 4 and result.stderr == "error: there is no file no.onnx\n"


@pytest.mark.linker
def test_mistakes_at_the_compiled_network(folder, tmp_path, monkeypatch, capfd):
    images = np.load(folder / "images.npz")["x"]
    assert (
        tvmc(*compile_with(folder / "table.json", folder / "net.onnx", "good.tar"), cwd=tmp_path).returncode
        == 0
    )
    whole = (tmp_path / "good.tar").read_bytes()
    (tmp_path / "half.tar").write_bytes(whole[: len(whole) // 2])
    for name, arrays in {
        "good": dict(x=images[:1]), "name": dict(y=images[:1]), "two": dict(x=images),
        "nhwc": dict(x=images[:1].transpose(0, 2, 3, 1)), "bytes": dict(x=images[:1].astype(np.uint8)),
    }.items():  # fmt: skip
        np.savez(tmp_path / f"{name}.npz", **arrays)
    assert tvmc(*run_with(inputs="good.npz"), "-o", "out.npz", cwd=tmp_path).returncode == 0
    assert sorted(np.load(tmp_path / "out.npz")) == ["output_0"]
    for command, message in (
        (run_with("half.tar", "good.npz"), "Could not read model from archive half.tar"),
        (run_with(inputs="name.npz"), r"'y' is not in the graph.*\['x'\]"),
        (
            run_with(inputs="two.npz"),
            r"x is float32 \(2, 3, 8, 8\), the network takes float32 \(1, 3, 8, 8\)",
        ),
        (run_with(inputs="nhwc.npz"), "it is NHWC; transpose it to NCHW"),
        (run_with(inputs="bytes.npz"), "x is uint8"),
        (run_with(inputs="no.npz"), "no.npz"),
        (run_with("good.tar", "good.npz", "-o", "no/out.npz"), "cannot write no/out.npz"),
        (run_with("good.tar", "good.npz", "-o", "good.npz"), "it is also an input"),
        (run_with("good.tar", "good.npz", "--device", "cuda"), "without --device cuda; use cpu"),
        (
            run_with("good.tar", "good.npz", "--rpc-tracker", "127.0.0.1:9", "--rpc-key", "board"),
            "no tracker at 127.0.0.1:9 .*start one with",
        ),
    ):
        mistake(tmp_path, monkeypatch, capfd, command, message)


# -- the disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root and mount")
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.linker
def test_a_full_disk_is_named_and_leaves_nothing_half_written(folder, small_disk, monkeypatch, capfd):
    (small_disk / "old.tar").write_text("an older result")
    (small_disk / "filler").write_bytes(bytes(48 * 1024))  # a network of 30 KiB does not fit beside it
    tar = [str(folder / "table.json"), str(folder / "net.onnx"), str(small_disk / "old.tar")]
    mistake(
        small_disk,
        monkeypatch,
        capfd,
        compile_with(*tar),
        "cannot write .*old.tar: No space left on device",
    )
    (small_disk / "filler").write_bytes(bytes(56 * 1024))
    model, data = str(folder / "net.onnx"), str(folder / "images.npz")
    for extra in ([], ["--resume"], ["--module-out", "module.json"]):
        command = [
            *quantize(model=model, calibration=data, output="out.json"),
            "--method",
            "minmax",
            *extra,
        ]
        if not extra:
            (small_disk / "rest").write_bytes(bytes(4 * 1024))  # not a page is left
        mistake(small_disk, monkeypatch, capfd, command, "cannot write .*: No space left on device")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    mistake(
        small_disk,
        monkeypatch,
        capfd,
        command,
        "cannot write out.json: .* not a folder that can be written to",
    )


# -- kill -9

KILLED = """
import os, signal, sys
from tvm_easyquant import files
from tvm_easyquant.search import state

at, when, *command = sys.argv[1:]
calls = []

def dying(write, half=None):
    # a write during which this process may die
    def call(target, *rest):
        calls.append(target)
        last = len(calls) == int(at)
        if last and when == "half" and half is not None:
            half(target, *rest)
        if last and when in ("before", "half"):
            os.kill(os.getpid(), signal.SIGKILL)
        write(target, *rest)
        if last and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
    return call

append = files.append_text
state.append_text = dying(append, lambda path, text: append(path, text[: len(text) // 2]))
files.os.replace = dying(os.replace)
if command:
    from tvm_easyquant import cli
    sys.exit(cli.run(command))
import networks
from tvm_easyquant.scales import calibrate, partition
from tvm_easyquant.search import driver
from tvm_easyquant.scales.numerics import QuantConfig
graph, images = networks.residual(size=6)
plan, config = partition.plan(graph, ()), QuantConfig(grid=4, search_images=2)
found = calibrate.calibrate(graph, plan, images, config)
driver.search(graph, plan, found, config, checkpoint="out.json.search").save("out.json")
"""


def killed_and_resumed(folder, points, *command, others=()):
    """kill -9 at each (number of the write, before it, after half of it or after it), then once more to the end.

    A write is a file that is replaced, or a line that is appended to one.

    others: names of files that are written beside out.json.
    """

    def run(at, when):
        return python(KILLED, at, when, *command, cwd=folder)

    results = [folder / name for name in ("out.json", *others)]
    whole = run(0, "never")
    assert whole.returncode == 0, whole.stderr
    expected = [result.read_bytes() for result in results]
    for at, when in points:
        for result in results:
            result.unlink()
        assert run(at, when).returncode == -signal.SIGKILL
        for result, whole in zip(results, expected, strict=True):
            assert not result.exists() or result.read_bytes() == whole
        assert run(0, "never").returncode == 0
        assert sorted(folder.iterdir()) == sorted(results)  # nor a temporary file
        assert [result.read_bytes() for result in results] == expected


@pytest.mark.ci
def test_a_search_killed_at_any_write_is_resumed_to_the_same_bytes(tmp_path):
    killed_and_resumed(
        tmp_path,
        [
            (1, "before"),
            (1, "after"),
            (2, "half"),
            (5, "before"),
            (9, "after"),
            (13, "half"),
            (14, "before"),
        ],
    )


@pytest.mark.ci
def test_quantize_killed_is_resumed_to_the_same_bytes(folder, tmp_path):
    command = [*quantize(model=folder / "net.onnx", calibration=folder / "images.npz"), "--resume"]
    killed_and_resumed(tmp_path, [(4, "after"), (6, "half"), (7, "before"), (8, "before")], *command)


@pytest.mark.ci
def test_the_curves_of_layers_found_before_a_kill_are_in_the_record(folder, tmp_path):
    command = [*quantize(model=folder / "net.onnx", calibration=folder / "images.npz"), "--resume"]
    command += ["--record", "record.json", "--set", "grid=10"]
    killed_and_resumed(
        tmp_path, [(5, "before"), (8, "after"), (9, "half")], *command, others=["record.json"]
    )
    assert set(json.loads((tmp_path / "record.json").read_text())["weights"]) == {
        "conv1",
        "conv2",
        "classifier",
    }


def test_leftovers_of_the_dead_are_removed_and_of_the_living_kept(tmp_path):
    import platform

    from tvm_easyquant.files import write_text

    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    gone = tmp_path / f".t.json.{platform.node()[:50]}.{process.pid}.abc.json"
    living = tmp_path / f".t.json.{platform.node()[:50]}.{os.getpid()}.abc.json"
    elsewhere = tmp_path / f".t.json.another-machine.{process.pid}.abc.json"
    for file in (gone, living, elsewhere):
        file.write_text("half")
    write_text(tmp_path / "t.json", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["t.json", living.name, elsewhere.name])
    write_text(tmp_path / ("n" * 250), "a long name")


def test_on_windows_no_process_is_asked_whether_it_lives(monkeypatch):
    """There os.kill(pid, 0) is Ctrl-C for the whole console."""
    from tvm_easyquant import files

    monkeypatch.setattr(files.os, "kill", lambda *_: pytest.fail("killed"))
    with monkeypatch.context() as windows:
        windows.setattr(files.os, "name", "nt")
        assert files.alive(4)


def test_wrong_inputs_at_run_time_are_named():
    from tvm_easyquant import quantize
    from tvm_easyquant.errors import GraphError
    from tvm_easyquant.relay.build import Executor

    images = [np.zeros((1, 3, 8, 8), np.float32) + np.arange(8, dtype=np.float32)]
    run = Executor(quantize(networks.small_onnx(), images, method="minmax").build("llvm"))
    for feed, message in (
        ({"y": images[0]}, r"no input y; the inputs are \['x'\]"),
        ({}, "input x is missing"),
        ({"x": images[0][:, :2]}, r"x is float32 \(1, 2, 8, 8\), the model takes float32 \(1, 3, 8, 8\)"),
        ({"x": images[0].astype(np.float64)}, "x is float64"),
    ):
        with pytest.raises(GraphError, match=message):
            run(feed)
