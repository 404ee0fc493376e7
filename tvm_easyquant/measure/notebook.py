"""What a notebook shows instead of a line: a small table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]], below: Iterable[str] = ()
) -> str:
    """HTML of a table with a header, whose first column names the rows; below: lines behind it."""
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{escape(str(cell))}</th>' if i == 0 else f"<td>{escape(str(cell))}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    lines = "".join(f"<p>{escape(line)}</p>" for line in below)
    head = f"<thead><tr>{top}</tr></thead>"
    return f"<table><caption>{escape(caption)}</caption>{head}<tbody>{body}</tbody></table>{lines}"
