"""One file of a quantized network: its graph, its scale table and what was said of it. No TVM here.

A zip archive, stored: ``network.json`` (format, version, who wrote it, the graph without its numbers, what
was said of it), ``table.json`` as `ScaleTable.save` writes it, and an .npy for each weight, bias and
constant. Nothing in it is code, and no pickle is read. The same network gives the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..errors import ExportError, LoadError
from ..files import LARGEST, parse_json, plain, replacing, shown
from ..network.graph import Graph
from ..network.node import Node
from ..network.ops import HOST_ATTRIBUTES
from ..readers.onnx_op import OnnxOp, attributes_of
from ..scales.table import ScaleTable

FORMAT, VERSION = "tvm_easyquant quantized network", 1
NETWORK, TABLE = "network.json", "table.json"
#: what zipfile, numpy and a stranger's JSON raise
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ValueError,
)


class Saved(NamedTuple):
    """What a file holds. said: plain values of what else is known of the network."""

    graph: Graph
    table: ScaleTable
    said: Mapping[str, Any]


def write(path: str | os.PathLike[str], graph: Graph, table: ScaleTable, said: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all.

    Raises WriteError, and ExportError for a float operator that only a host knows.
    """
    arrays: dict[str, np.ndarray] = {}
    content = {
        "format": FORMAT, "version": VERSION, "tool": __version__, "graph": _graph(graph, arrays),
        "said": plain(dict(said)),
    }  # fmt: skip
    try:
        text = json.dumps(content, indent=1)
    except TypeError as error:
        raise ExportError(f"{graph.name} cannot be saved: {error}") from None
    again = _nodes(json.loads(text)["graph"], arrays.__getitem__)
    if Graph(again, graph.outputs).fingerprint != Graph(graph, graph.outputs).fingerprint:
        raise ExportError(f"{graph.name} has attributes that no file holds; save its table (q.table.save)")
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        file.writestr(zipfile.ZipInfo(NETWORK), text + "\n")
        file.writestr(zipfile.ZipInfo(TABLE), table.to_json() + "\n")
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.asanyarray(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(name), data.getvalue())


def read(path: str | os.PathLike[str]) -> Saved:
    """What `write` wrote. Raises LoadError, which names the file: it is missing, damaged, of a newer
    release, or of another kind."""
    other = f"{path} is no network that Quantized.save wrote"
    try:
        with open(path, "rb") as stored:
            start = stored.read(4)
            if start[:2] != b"PK":
                hint = "; ScaleTable.load reads scale tables" if start[:1] == b"{" else ""
                raise LoadError(f"{other}{hint}")
            with zipfile.ZipFile(stored) as file:
                if NETWORK not in file.namelist():
                    raise LoadError(other)
                found = _content(file, path, other)
                table = ScaleTable.from_json(_text(file, TABLE), f"{path}: its scale table")
                graph = _read_graph(found["graph"], lambda name: _array(file, name))
                return Saved(graph, table, dict(found["said"]))
    except LoadError:
        raise
    except FileNotFoundError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from None
    except DAMAGED as error:
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise LoadError(f"{path} is damaged: {why}") from None


def _content(file: zipfile.ZipFile, path, other: str) -> dict:
    found: Any = parse_json(_text(file, NETWORK), LoadError, f"{path}: its {NETWORK}", constants=True)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise LoadError(other)
    version = found.get("version")
    if version != VERSION or type(version) is not int:
        tool = f" (tvm_easyquant {shown(found.get('tool'))} wrote it)"
        raise LoadError(
            f"{path} has version {shown(version)}{tool}; this release reads version {VERSION}: install a "
            "newer tvm_easyquant, or quantize again with this one"
        )
    return found


def _text(file: zipfile.ZipFile, name: str) -> str:
    if file.getinfo(name).file_size > LARGEST:
        raise ValueError(f"{name} has more than {LARGEST} bytes")
    return file.read(name).decode("utf-8")


def _array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    with file.open(name) as stored:
        return np.lib.format.read_array(io.BytesIO(stored.read()), allow_pickle=False)


# -- the graph


def _graph(graph: Graph, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The graph as plain values, its numbers put into ``arrays`` by the names of their files."""
    return {
        "name": graph.name,
        "outputs": graph.outputs,
        "output_names": graph.output_names,
        "notes": graph.notes,
        "cut": graph.cut,
        "stands_for": graph.stands_for,
        "nodes": [_node(node, f"arrays/{i}", arrays) for i, node in enumerate(graph)],
    }


def _node(node: Node, place: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    attrs = {name: value for name, value in node.attrs.items() if name not in HOST_ATTRIBUTES}
    entry: dict[str, Any] = {
        "name": node.name, "op": node.op, "inputs": node.inputs, "shape": [int(d) for d in node.shape],
        "attrs": attrs, "source": node.source, "dtype": node.dtype,
    }  # fmt: skip
    for what, array in (("weight", node.weight), ("bias", node.bias)):
        if array is not None:
            entry[what] = _kept(f"{place}.{what}.npy", array, arrays)
    if node.op != "float":
        return entry
    handle = node.attrs["handle"]
    if not isinstance(handle, OnnxOp):
        raise ExportError(
            f"node {node.name} ({getattr(handle, 'op', 'float')}) is an operator of a host's own, which no "
            "file holds; quantize the model's ONNX, or save its table (q.table.save)"
        )
    entry["onnx"] = {
        "node": b64encode(handle.node.SerializeToString(deterministic=True)).decode("ascii"),
        "opset": handle.opset, "index": handle.index, "shapes": handle.shapes, "dtypes": handle.dtypes,
        "tensors": sorted(handle.tensors.items()), "macs": node.attrs["macs"],
        "uncovered": handle.uncovered,
        "constants": {
            str(i): _kept(f"{place}.constant{i}.npy", array, arrays)
            for i, array in handle.constants.items()
        },
    }  # fmt: skip
    return entry


def _kept(name: str, array: np.ndarray, arrays: dict[str, np.ndarray]) -> str:
    arrays[name] = array
    return name


def _read_graph(entry: Mapping[str, Any], array: Callable[[str], np.ndarray]) -> Graph:
    """The graph of `_graph`'s values; array: the numbers by the name of their file."""
    graph = Graph(
        _nodes(entry, array), entry["outputs"], entry["name"], entry["output_names"], entry["notes"]
    )
    graph.cut = None if entry["cut"] is None else tuple(entry["cut"])
    if any(name not in graph.nodes for name in graph.outputs):
        raise ValueError("an output is no node")
    known = entry["stands_for"]
    return graph if known is None else graph.standing_for(str(known))


def _nodes(entry: Mapping[str, Any], array: Callable[[str], np.ndarray]) -> list[Node]:
    return [_read_node(each, array) for each in entry["nodes"]]


def _read_node(entry: Mapping[str, Any], array: Callable[[str], np.ndarray]) -> Node:
    attrs = {name: _tuples(value) for name, value in entry["attrs"].items()}
    if "onnx" in entry:
        attrs |= _float_operator(entry["onnx"], array)
    given: dict[str, Any] = {what: array(entry[what]) for what in ("weight", "bias") if what in entry}
    return Node(
        str(entry["name"]), entry["op"], _tuples(entry["inputs"]), _tuples(entry["shape"]), attrs,
        source=_tuples(entry["source"]), dtype=np.dtype(entry["dtype"]).name, **given,
    )  # fmt: skip


def _float_operator(entry: Mapping[str, Any], array: Callable[[str], np.ndarray]) -> dict[str, Any]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        node = onnx.NodeProto.FromString(b64decode(entry["node"], validate=True))
    except DecodeError as error:
        raise ValueError(f"an ONNX node cannot be read: {error}") from None
    operator = OnnxOp(
        node=node, opset=int(entry["opset"]), attributes=attributes_of(node, int(entry["opset"])),
        constants={int(i): array(name) for i, name in entry["constants"].items()},
        tensors={int(place): int(which) for place, which in entry["tensors"]}, index=int(entry["index"]),
        shapes=_tuples(entry["shapes"]), dtypes=_tuples(entry["dtypes"]),
        uncovered=str(entry.get("uncovered", "")),
    )  # fmt: skip
    return {"fn": operator.evaluate, "handle": operator, "macs": entry["macs"]}


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that a node has."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
