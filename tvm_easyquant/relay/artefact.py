"""What is written of compiled networks: what it needs, and the same bytes for the same network.

TVM stores its parameters in the order of a hash map, and its archives hold the time of writing, the user
and the order of a folder: no two runs are alike.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import package
from ..host import LAYOUTS, TABLE
from ..scales.table import ScaleTable
from .framework import tvm


def with_table(module, table: ScaleTable):
    """An integer module that knows its table."""
    return module.with_attr(TABLE, tvm.runtime.String(table.to_json()))


def with_layouts(module, layouts: Mapping[str, str]):
    """An integer module that knows the layouts of its images, {input: NHWC or NCHW}."""
    return module.with_attr(LAYOUTS, tvm.runtime.String(json.dumps(dict(layouts))))


def needs(target) -> package.Needs:
    """What code for a ``tvm.target.Target`` may need of a machine."""
    from topi_ext.emit import target_features, target_isa

    return package.Needs(target_isa(target), *target_features(target))


def variant(
    target, layers: Sequence[str], inputs: Mapping[str, package.Input] | None = None
) -> package.Variant:
    """The variant that ``relay.build`` makes for a target; layers: the names of its integer layers."""
    needed = needs(target)
    return package.Variant(
        needed.isa, needed, str(target), str(tvm.__version__), layers=tuple(layers), inputs=inputs or {}
    )


def inputs(module, layouts: Mapping[str, str]) -> dict[str, package.Input]:
    """The inputs of a typed module, {name: input}."""
    return {
        param.name_hint: package.Input(
            tuple(int(d) for d in param.checked_type.shape), str(param.checked_type.dtype),
            layouts.get(param.name_hint, ""),
        )
        for param in module["main"].params
    }  # fmt: skip


GZIP = b"\x1f\x8b"


def parameters(arrays: Mapping[str, object]) -> bytes:
    """TVM's ``save_param_dict`` of {name: tvm.nd.NDArray}, in the order of the names."""
    names = sorted(arrays)
    out = bytearray(tvm.runtime.save_param_dict({})[:16])  # what marks such a file
    out += struct.pack("<Q", len(names))
    for name in names:
        encoded = name.encode()
        out += struct.pack("<Q", len(encoded)) + encoded
    out += struct.pack("<Q", len(names))
    for name in names:  # one array's file is the mark, two counts, its name with its length, and the array
        out += tvm.runtime.save_param_dict({name: arrays[name]})[16 + 3 * 8 + len(name.encode()) :]
    return bytes(out)


def members(content: bytes) -> dict[str, bytes]:
    """{name: content} of an archive that TVM wrote, plain or gzipped; parameters in the order of names."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = {member.name.removeprefix("./"): tar.extractfile(member) for member in tar}
        found = {name: file.read() for name, file in files.items() if file is not None}
    for name, inner in found.items():
        if name.endswith(".params"):
            found[name] = parameters(tvm.runtime.load_param_dict(inner))
    return found


def repeatable(content: bytes) -> bytes:
    """An archive that TVM wrote as `package.archive` would write it."""
    plain = package.archive(members(content))
    return gzip.compress(plain, mtime=0) if content.startswith(GZIP) else plain


def make_repeatable(path: str | os.PathLike) -> None:
    """`repeatable` on a file, in place."""
    path = Path(path)
    path.write_bytes(repeatable(path.read_bytes()))
