"""torch's tensors and its DataLoader as arrays. torch is not imported: who has a loader has done so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any


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


def pairs(loader) -> Iterator[Any]:
    """The samples of a loader of (inputs, labels), one by one; of what is none of these, the items."""
    for item in map(arrays, loader):
        if (loader.batch_size is None and loader.batch_sampler is None) or len(item) != 2:
            yield item
            continue
        x, labels = item
        for i, label in enumerate(labels):
            yield {n: a[i : i + 1] for n, a in x.items()} if isinstance(x, Mapping) else x[i : i + 1], label


def holds_tensors(value: Any) -> bool:
    """Whether there are torch's tensors in it."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return any(map(holds_tensors, value))
    return hasattr(value, "detach")


class Arrays:
    """Data that hold torch's tensors, as `arrays` has them, as often as asked; items(data): one by one."""

    def __init__(self, data: Any, items: Callable[[Any], Iterator]):
        self._data, self._items = data, items

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator:
        return map(arrays, self._items(self._data))
