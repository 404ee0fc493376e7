"""Archives of compiled networks that are the same bytes for the same network.

TVM stores its parameters in the order of a hash map, and its archives hold the time of writing, the user
and the order of a folder: no two runs are alike.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

from .framework import tvm

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


def archive(members: Mapping[str, bytes]) -> bytes:
    """A tar archive of {name: content}: sorted, of nobody, at no time."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(members[name]), 0o755 if name.endswith(".so") else 0o644
            tar.addfile(info, io.BytesIO(members[name]))
    return file.getvalue()


def repeatable(content: bytes) -> bytes:
    """An archive that TVM wrote, plain or gzipped, as `archive` would write it."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = {member.name.removeprefix("./"): tar.extractfile(member) for member in tar}
        members = {name: file.read() for name, file in files.items() if file is not None}
    for name, inner in members.items():
        if name.endswith(".params"):
            members[name] = parameters(tvm.runtime.load_param_dict(inner))
    plain = archive(members)
    return gzip.compress(plain, mtime=0) if content.startswith(GZIP) else plain


def make_repeatable(path: str | os.PathLike) -> None:
    """`repeatable` on a file, in place."""
    path = Path(path)
    path.write_bytes(repeatable(path.read_bytes()))
