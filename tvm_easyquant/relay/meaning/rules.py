"""What Relay's float operators mean, in numpy: search and reference ask no executor of TVM's.

These are the operators that `tensors` and `rewrite` write, and those of a user's module. What else there
is (custom operators, those of `vision`), and layouts with channels in blocks, has none here: NoMeaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..framework import relay
from . import numbers, places, windows
from .attributes import NoMeaning

#: Relay operator -> its rule (call, attributes, arrays)
RULES: dict[str, Callable] = {**numbers.RULES, **places.RULES, **windows.RULES}


def compute(call, arguments: Sequence[Any]) -> Any:
    """A call on arrays in its own layout (a list of them for an argument that is a tuple).

    The result is an array, a list of them for a tuple. Raises NoMeaning.
    """
    rule = RULES.get(call.op.name)
    if rule is None:
        raise NoMeaning(call.op.name)
    made = rule(call, call.attrs, *arguments)
    if isinstance(call.checked_type, relay.TensorType):
        return np.asarray(made, call.checked_type.dtype)
    fields = call.checked_type.fields
    return [np.asarray(array, kind.dtype) for array, kind in zip(made, fields, strict=True)]
