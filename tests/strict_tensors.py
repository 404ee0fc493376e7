"""`network.tensors.NUMPY` for a rule that may know of a tensor its shape and dtype only, and must keep what
the protocol asks of each operation: what passes here any host can do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvm_easyquant.network.tensors import BINARY, COMPARE, NUMPY, REDUCE, UNARY


@dataclass(frozen=True, eq=False)
class Opaque:
    """A tensor of a host; only `shown` looks into it."""

    _array: np.ndarray

    @property
    def shape(self):
        return self._array.shape

    @property
    def dtype(self):
        return self._array.dtype


def hidden(array) -> Opaque:
    return Opaque(np.asarray(array))


def shown(tensor: Opaque) -> np.ndarray:
    return tensor._array


class _Strict:
    def __getattr__(self, name):
        def operation(*arguments, **named):
            getattr(_Checks, name, lambda *a, **n: None)(*arguments, **named)
            arguments = [
                [_bare(a) for a in argument] if name == "concat" and not i else _bare(argument)
                for i, argument in enumerate(arguments)
            ]
            made = getattr(NUMPY, name)(*arguments, **named)
            return tuple(map(hidden, made)) if isinstance(made, tuple) else hidden(made)

        return operation


def _bare(argument):
    return shown(argument) if isinstance(argument, Opaque) else argument


def _numbers(*sequences):
    assert all(isinstance(n, (int, np.integer)) for s in sequences for n in s)


class _Checks:
    """What the protocol says of arguments."""

    @staticmethod
    def constant(array):
        assert isinstance(array, (np.ndarray, np.generic))

    @staticmethod
    def reshape(x, shape):
        _numbers(shape)
        assert min(shape, default=0) >= 0
        assert np.prod(shape) == np.prod(x.shape)

    @staticmethod
    def transpose(x, axes):
        assert sorted(axes) == list(range(len(x.shape)))

    @staticmethod
    def broadcast(x, shape):
        assert np.broadcast_shapes(x.shape, tuple(shape)) == tuple(shape)

    @staticmethod
    def concat(tensors, axis):
        assert 0 <= axis < len(tensors[0].shape)
        assert len({t.dtype for t in tensors}) == 1

    @staticmethod
    def crop(x, begin, end, steps):
        _numbers(begin, end, steps)
        for b, e, s, size in zip(begin, end, steps, x.shape, strict=True):
            assert 0 <= b <= e <= size and s >= 1

    @staticmethod
    def pad(x, widths, value):
        assert len(widths) == len(x.shape)
        assert all(w >= 0 for pair in widths for w in pair)
        assert isinstance(value, (int, float))

    @staticmethod
    def take(x, indices, axis):
        assert isinstance(indices, np.ndarray) and indices.ndim == 1 and indices.dtype.kind == "i"
        assert 0 <= axis < len(x.shape)
        assert ((indices >= 0) & (indices < x.shape[axis])).all()

    @staticmethod
    def gather(x, indices, axis):
        assert 0 <= axis < len(x.shape)
        assert indices.dtype == np.int64 and (shown(indices) >= 0).all()

    @staticmethod
    def unary(name, x):
        assert name in UNARY

    @staticmethod
    def binary(name, a, b):
        assert name in BINARY or name in COMPARE
        assert a.dtype == b.dtype

    @staticmethod
    def where(condition, a, b):
        assert condition.dtype == bool and a.dtype == b.dtype

    @staticmethod
    def reduce(name, x, axes):
        assert name in REDUCE
        assert all(0 <= axis < len(x.shape) for axis in axes)

    @staticmethod
    def argmax(x, axis):
        assert 0 <= axis < len(x.shape)

    @staticmethod
    def top(x, k, axis):
        assert 0 <= axis < len(x.shape) and 0 <= k <= x.shape[axis]

    @staticmethod
    def matmul(a, b):
        assert a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2]

    @staticmethod
    def conv(x, weight, strides, padding, dilation, groups):
        rank = len(x.shape) - 2
        assert [len(a) for a in (strides, padding, dilation)] == [rank, 2 * rank, rank]
        assert min(padding) >= 0 and min(strides) >= 1 and min(dilation) >= 1
        assert x.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0

    @staticmethod
    def pool(name, x, kernel, strides, padding, dilation):
        rank = len(x.shape) - 2
        assert name in ("max", "sum")
        assert [len(a) for a in (kernel, strides, padding, dilation)] == [rank, rank, 2 * rank, rank]
        assert min(padding) >= 0

    @staticmethod
    def group_norm(x, scale, bias, groups, epsilon):
        assert x.dtype == scale.dtype == bias.dtype == np.float32 and len(x.shape) > 2
        assert scale.shape == bias.shape == (x.shape[1],) and x.shape[1] % groups == 0

    @staticmethod
    def softmax(x, axis):
        assert x.dtype.kind == "f" and 0 <= axis < len(x.shape)


STRICT = _Strict()
