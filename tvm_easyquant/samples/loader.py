"""torch's tensors and its DataLoader as arrays. torch is not imported: who has a loader has done so."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def is_loader(data: object) -> bool:
    """Whether it is a ``torch.utils.data.DataLoader``."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(data, torch.utils.data.DataLoader)


def arrays(value: Any) -> Any:
    """What holds torch's tensors, with numpy's arrays instead."""
    if isinstance(value, Mapping):
        return {key: arrays(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [arrays(item) for item in value]
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def pairs(loader) -> Iterator[tuple[np.ndarray, Any]]:
    """The samples of a loader of (inputs, labels), one by one."""
    for x, labels in map(arrays, loader):
        for i, label in enumerate(labels):
            yield x[i : i + 1], label
