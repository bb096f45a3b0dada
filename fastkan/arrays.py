"""Tensors from whatever people hold their numbers in."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor


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
