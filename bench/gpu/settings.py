"""Dtypes and PyTorch's precision settings, by the names that the tables call them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

import torch

# of operands; "autocast" is to bfloat16, of float32 operands
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "tf32": torch.float32,
    "highest": torch.float32,
    "autocast": torch.float32,
}
REHEARSED = ("float16", "tf32", "highest")  # Triton's interpreter multiplies no bfloat16
# relative, of the norm (see accuracy.Deviation); beyond it nothing gets a time
BOUNDS = {"bfloat16": 1e-2, "float16": 2e-3, "tf32": 2e-3, "highest": 1e-4, "autocast": 2e-2}


class Kind(TypedDict):
    """Of a tensor, as arguments."""

    device: torch.device
    dtype: torch.dtype


def kind(setting: str, device: torch.device) -> Kind:
    """Of a setting's operands on a device."""
    return {"device": device, "dtype": DTYPES[setting]}


@contextmanager
def precision(setting: str, device_type: str) -> Iterator[None]:
    """PyTorch's settings for a name of ``DTYPES``, for everyone who multiplies meanwhile."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if setting == "tf32" else "highest")
    try:
        with torch.autocast(device_type, torch.bfloat16, enabled=setting == "autocast"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
