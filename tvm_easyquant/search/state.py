"""What an interrupted run has found so far: one file, appended to, that the next run takes up. No TVM here.

A line is one decision: the scales of a layer, a table of all layers at some bits, an accuracy that was
measured, a curve. The first line says what run they belong to.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import append_text, parse_json, plain, read_text, write_text

FORMAT, VERSION = "tvm_easyquant checkpoint", 1
#: what earlier releases wrote beside the file
BEFORE = (".bits", ".int7", ".int8", ".search7", ".search8", ".curves")


class State:
    """The decisions of a run: (kind, key) -> what JSON can hold; kept in a file if there is a ``path``.

    A run that is killed while it appends leaves half a line, which is dropped: that decision is made again.
    """

    def __init__(self, path: str | os.PathLike | None = None, identity: Mapping[str, object] | None = None):
        """The state that a run of the same ``identity`` left in ``path``, or a new one.

        identity: what decides the results, by name (model, config, data, ...); their hashes are kept, one
        for each, so that what differs can be named. Raises CheckpointError for any other file.
        """
        self.path = None if path is None else Path(path)
        self.found: dict[tuple[str, str], Any] = {}
        self._part = ""
        if self.path is None:
            return
        hashes = {name: _hash(value) for name, value in (identity or {}).items()}
        self._header = json.dumps({"format": FORMAT, "version": VERSION, "identity": hashes}) + "\n"
        for suffix in BEFORE:
            if os.path.exists(f"{self.path}{suffix}"):
                raise CheckpointError(
                    f"{self.path}{suffix} is a state of an earlier release; delete it to start anew"
                )
        if self.path.exists():
            self._read(self.path, hashes)

    def _read(self, path: Path, hashes: dict[str, str]) -> None:
        text = read_text(path, CheckpointError, "the search checkpoint")
        whole, version = text[: text.rfind("\n") + 1], None
        try:
            decoded: list[Any] = [
                parse_json(x, CheckpointError, "", constants=True) for x in whole.splitlines()
            ]
            header, *lines = decoded
            version = header["version"]
            if (header["format"], version) != (FORMAT, VERSION):
                raise ValueError
            theirs = dict(header["identity"])
            records = {}
            for *record, check in lines:
                kind, key, value = record
                if check != _check(record):
                    raise ValueError
                records[kind, key] = value
        except (ValueError, TypeError, KeyError):
            what = "is not a search checkpoint; delete it or name another file"
            if type(version) is int and version > VERSION:
                what = (
                    f"has version {version}, this release reads version {VERSION}: install a newer "
                    "tvm_easyquant, or delete it to start anew"
                )
            raise CheckpointError(f"{self.path} {what}") from None
        for name in dict.fromkeys([*hashes, *theirs]):
            if hashes.get(name) != theirs.get(name):
                raise CheckpointError(
                    f"{self.path} belongs to a run with another {name}; delete it to start anew"
                )
        self.found = records
        if len(whole) < len(text):  # half a line: what is appended must not continue it
            os.truncate(path, len(whole.encode()))

    def part(self, name: str) -> State:
        """This state as one of several searches sees it, whose decisions have the same names."""
        part = copy.copy(self)
        part._part = f"{self._part}{name} "
        return part

    def get(self, kind: str, key: str = "") -> Any:
        """What was decided, or None."""
        return self.found.get((self._part + kind, key))

    def all(self, kind: str) -> dict[str, Any]:
        """{key: what was decided} of one kind; of a key that came twice the last."""
        return {key: value for (k, key), value in self.found.items() if k == self._part + kind}

    def append(self, kind: str, key: str, value: object) -> None:
        """Keep a decision. Raises WriteError."""
        self.found[self._part + kind, key] = value
        if self.path is not None:
            if not self.path.exists():
                write_text(self.path, self._header)
            record = [self._part + kind, key, value]
            append_text(self.path, json.dumps([*record, _check(record)]) + "\n")

    def remove(self) -> None:
        """The run is over."""
        if self.path is not None and not self._part:
            self.path.unlink(missing_ok=True)


def opened(checkpoint: str | os.PathLike | State | None, identity: Mapping[str, object]) -> State:
    """The state of a run in a file, or the part of a larger run's that was opened before."""
    return checkpoint if isinstance(checkpoint, State) else State(checkpoint, identity)


def _check(record: list) -> int:
    """What tells a line that was damaged."""
    return zlib.crc32(json.dumps(record).encode())


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()
