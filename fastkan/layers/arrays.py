"""Tensors from whatever people hold their numbers in."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_LOADED = 10_000  # rows of a loader that say where its inputs lie


def is_array(value: Any) -> bool:
    """Whether NumPy reads it as an array."""
    return hasattr(value, "__array__")  # tensors have it too


def tensor_of(name: str, value: Any) -> Tensor:
    """A tensor itself, without its history; a copy of an array, a DataFrame or lists of numbers.

    Raises:
        TypeError, ValueError: for anything else, naming it.
    """
    if not isinstance(value, Tensor):
        if not (is_array(value) or is_table(value)):
            raise TypeError(f"{name} must be a torch.Tensor or a NumPy array, got {type(value).__name__}")
        import numpy as np

        try:
            array = np.asarray(value)
            if array.dtype.kind == "O":  # such as pandas makes of columns that may have gaps
                array = np.asarray(array.tolist())
        except ValueError:
            raise ValueError(f"{name} must have rows of the same length") from None
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} must be of real numbers, got {array.dtype}")
        value = torch.tensor(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape))
    if value.layout != torch.strided or value.is_meta:
        raise TypeError(f"{name} must be a dense tensor with values, got {'meta' if value.is_meta else value.layout}")
    if value.is_complex():
        raise TypeError(f"{name} must be of real numbers, got {value.dtype}")
    return value.detach()


def is_table(value: Any) -> bool:
    """Whether it is lists of numbers."""
    entry = value
    while isinstance(entry, (list, tuple)) and entry:
        entry = entry[0]
    return isinstance(value, (list, tuple)) and isinstance(entry, numbers.Real)


def joined(batches: Iterable[Sequence[Tensor]]) -> Tensor:
    """The inputs of all batches, or of so many that they are :data:`MAX_LOADED` rows."""
    found: list[Tensor] = []
    for x, *_ in batches:
        found.append(x)
        if sum(map(len, found)) >= MAX_LOADED:
            break
    return torch.cat(found)


def inputs_of(dataset: Any) -> Any:
    """The inputs of a pair ``(x, y)``, of a Dataset of samples, or of a loader's batches, to :data:`MAX_LOADED` rows.

    Raises:
        TypeError: for anything else.
    """
    dataset = whole(dataset)
    if not (
        isinstance(dataset, (tuple, list)) and len(dataset) == 2 and (is_array(dataset[0]) or is_table(dataset[0]))
    ):
        many = isinstance(dataset, Iterable) and getattr(dataset, "ndim", 1) != 0
        batches = iter(dataset) if many else iter(())
        first = next(batches, None)
        if not isinstance(first, (tuple, list)) or len(first) != 2:
            raise TypeError(
                f"dataset must be a dictionary with train_input, a pair (x, y), or a loader of such pairs, got "
                f"{type(dataset).__name__}"
            )
        return joined([tensor_of("x", batch[0])] for batch in itertools.chain([first], batches))
    return dataset[0]


def whole(dataset: Any) -> Any:
    """A pair of all samples, in place of a Dataset of samples."""
    if not isinstance(dataset, torch.utils.data.Dataset) or not hasattr(dataset, "__len__") or not len(dataset):
        return dataset
    first = dataset[0]
    if not (isinstance(first, (tuple, list)) and len(first) == 2 and getattr(first[0], "ndim", 0) == 1):
        return dataset
    return next(iter(torch.utils.data.DataLoader(dataset, len(dataset), generator=torch.Generator())))
