"""Rows of samples: how rows are read from tensors, arrays, lists, datasets and loaders, and the rows that a network
keeps."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers.sampling import MAX_SAMPLES, subsample


class Sample:
    """The container of the rows ``[N, in_features]`` that a network keeps. If the network keeps no rows, the attribute
    ``rows`` is None.

    At most ``MAX_SAMPLES`` rows are kept, including the rows with the smallest and the largest value of each column. If
    the network is copied, its rows are copied as well. If the network is pickled, its rows are left out.
    """

    def __init__(self, rows: Tensor | None = None) -> None:
        self.rows = None if rows is None or rows.shape[0] == 0 else subsample(rows.detach()).clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Sample:
        return Sample(self.rows)

    def __reduce__(self) -> tuple[type[Sample], tuple[()]]:
        return Sample, ()


# -- reading --------------------------------------------------------------------------------------


def is_array(value: Any) -> bool:
    """Whether the value is a tensor, a NumPy array, a DataFrame, or another object with a method ``__array__``."""
    return hasattr(value, "__array__")


def is_value_list(value: Any) -> bool:
    """Whether the value is a list of numbers or strings, nested to any depth. Only the first entry of each list is
    checked. Strings are accepted here so that :func:`as_tensor` can raise its error for them."""
    entry = value
    while isinstance(entry, (list, tuple)) and entry:
        entry = entry[0]
    return isinstance(value, (list, tuple)) and isinstance(entry, (numbers.Real, str))


def as_tensor(name: str, value: Any) -> Tensor:
    """Return the values of a tensor, an array, a DataFrame or lists of numbers as a tensor. A tensor is detached from
    its graph and not copied; other values are copied.

    Args:
        name: name of the value in error messages.

    Raises:
        TypeError, ValueError: if the value has the wrong type, is not dense, has rows of different lengths, or holds
            values that are not real numbers.
    """
    if not isinstance(value, Tensor):
        if not (is_array(value) or is_value_list(value)):
            raise TypeError(f"{name} must be a torch.Tensor or a NumPy array, got {type(value).__name__}")
        import numpy as np

        try:
            array = np.asarray(value)
            if array.dtype.kind == "O":  # pandas converts columns of a nullable dtype to arrays of objects
                array = np.asarray(array.tolist())
        except ValueError:
            raise ValueError(f"{name} must have rows of the same length") from None
        if array.dtype.kind not in "fiub":
            is_text = array.dtype.kind in "UST"
            is_label = is_text and (name.startswith("y") or "label" in name)
            hint = ": fastkan.sklearn.KANClassifier accepts strings as labels" if is_label else ""
            raise TypeError(f"{name} must be of real numbers, got {'text' if is_text else array.dtype}{hint}")
        value = torch.tensor(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape))
    if value.layout != torch.strided or value.is_meta:
        raise TypeError(f"{name} must be a dense tensor with values, got {'meta' if value.is_meta else value.layout}")
    if value.is_complex():
        raise TypeError(f"{name} must be of real numbers, got {value.dtype}")
    return value.detach()


def concatenate_inputs(batches: Iterable[Sequence[Tensor]]) -> Tensor:
    """Concatenate the inputs ``x`` of batches ``(x, ...)``. Once there are ``MAX_SAMPLES`` rows, no further batch is
    read."""
    found: list[Tensor] = []
    for x, *_ in batches:
        found.append(x)
        if sum(map(len, found)) >= MAX_SAMPLES:
            break
    return torch.cat(found)


def dataset_inputs(dataset: Any) -> Any:
    """Return the inputs of a dataset, which is a pair ``(x, y)``, a ``Dataset`` of single samples, or a loader. Batches
    of a loader are read until there are ``MAX_SAMPLES`` rows."""
    dataset = samples_as_pair(dataset)
    is_pair = isinstance(dataset, (tuple, list)) and len(dataset) == 2
    if is_pair and (is_array(dataset[0]) or is_value_list(dataset[0])):
        return dataset[0]
    can_iterate = isinstance(dataset, Iterable) and getattr(dataset, "ndim", 1) != 0
    batches = iter(dataset) if can_iterate else iter(())
    first = next(batches, None)
    if not isinstance(first, (tuple, list)) or len(first) != 2:
        raise TypeError("dataset must be a dictionary with train_input, a pair (x, y), or a loader of such pairs, "
                        f"got {type(dataset).__name__}")  # fmt: skip
    return concatenate_inputs([as_tensor("x", batch[0])] for batch in itertools.chain([first], batches))


def samples_as_pair(dataset: Any) -> Any:
    """Return all samples of a ``Dataset`` of single samples ``(x [in], y)`` as one pair ``(x [N, in], y)``, and any
    other dataset unchanged."""
    if not isinstance(dataset, torch.utils.data.Dataset) or not hasattr(dataset, "__len__") or not len(dataset):
        return dataset
    first = dataset[0]
    if not (isinstance(first, (tuple, list)) and len(first) == 2 and getattr(first[0], "ndim", 0) == 1):
        return dataset
    return next(iter(torch.utils.data.DataLoader(dataset, len(dataset), generator=torch.Generator())))
