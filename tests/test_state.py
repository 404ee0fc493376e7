"""The file that lets an interrupted run go on: it is appended to, and nobody else's is taken up. No TVM here."""

import itertools
import json

import pytest

from tvm_easyquant.errors import CheckpointError, WriteError
from tvm_easyquant.files import append_text
from tvm_easyquant.search.state import State

WHO = {"model": "abc", "config": {"bits": 7, "alpha": 0.1}, "data": [1, 2]}
RECORDS = [("weights 0", "conv", {"scales": [0.1, 1e-300], "rounding": "eJw="}), ("activations 0", "x", 1 / 3),
           ("errors", "", {"conv": {"7": float("inf")}}), ("weights curve", "ü", [1])]  # fmt: skip


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "state"
    state = State(path, WHO)
    assert not path.exists()  # a run that decides nothing leaves nothing
    for record in RECORDS:
        state.append(*record)
    state.part("int8").append("weights 0", "conv", "at 8 bits")
    return path


def test_what_was_decided_is_taken_up_and_the_parts_are_apart(written):
    again = State(written, WHO)
    for kind, key, value in RECORDS:
        assert again.get(kind, key) == value
    assert again.get("weights 1", "conv") is None and again.get("weights 0", "dense") is None
    part = again.part("int8")
    assert part.get("weights 0", "conv") == "at 8 bits" and part.all("weights 0") == {"conv": "at 8 bits"}
    part.remove()  # it belongs to the whole
    assert written.exists()
    again.append("weights curve", "ü", [2])
    assert State(written, WHO).all("weights curve") == {"ü": [2]}
    again.remove()
    assert not written.exists()


def test_half_a_line_is_dropped_wherever_it_was_cut_and_what_follows_is_whole(written):
    *lines, last = written.read_text().splitlines(keepends=True)
    for cut in (0, 1, len(last) // 2, len(last) - 1):
        written.write_text("".join(lines) + last[:cut])
        state = State(written, WHO)
        assert state.get(*RECORDS[-1][:2]) == [1] and state.part("int8").get("weights 0", "conv") is None
        state.part("int8").append("weights 0", "conv", "anew")
        assert State(written, WHO).part("int8").get("weights 0", "conv") == "anew"


def test_another_run_is_named(written):
    for changed, name in (
        (dict(data=[1]), "data"),
        (dict(config={"bits": 8}), "config"),
        (dict(evaluation=1), "evaluation"),
    ):
        with pytest.raises(CheckpointError, match=f"state belongs to a run with another {name}; delete it"):
            State(written, {**WHO, **changed})
    with pytest.raises(CheckpointError, match="another data"):
        State(written, {k: v for k, v in WHO.items() if k != "data"})


def test_any_damage_of_a_whole_line_is_refused_in_one_line(written):
    """A flipped digit of a scale would have been another table."""
    whole = written.read_text()
    changes = [whole[:i] + other + whole[i + 1 :] for i, other in itertools.product(range(len(whole) - 1), "0]x\n")
               if whole[i] != other]  # fmt: skip
    first = whole.splitlines(keepends=True)
    changes += ["".join([first[0], *lines]) for lines in ([first[2][1:]], ["[]\n"], ["\n", *first[1:]])]
    for text in changes:
        written.write_text(text)
        with pytest.raises(
            CheckpointError, match="state (is not a search checkpoint; delete it|belongs to)"
        ) as caught:
            State(written, WHO)
        assert len(str(caught.value).splitlines()) == 1
        assert written.read_text() == text
    for junk in (b"", b"\xff\n", b"[" * 90_000 + b"\n", json.dumps(whole).encode()):
        written.write_bytes(junk)
        with pytest.raises(CheckpointError, match="state"):
            State(written, WHO)


def test_without_a_file_nothing_is_kept_but_in_memory(tmp_path):
    state = State()
    state.append("weights 0", "conv", 1)
    assert state.get("weights 0", "conv") == 1
    state.remove()
    assert not list(tmp_path.iterdir())


def test_a_line_that_cannot_be_written_is_named():
    with pytest.raises(WriteError, match="cannot write /dev/full: No space left on device"):
        append_text("/dev/full", "text")
