"""The arguments of the kernels for one contraction: converted operands and compile-time constants."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...basis import Basis, working_dtype
from ...bspline.cox_de_boor import check_base_derivative
from ...trilinear import Operands
from . import hardware
from .config import Config


class Problem(NamedTuple):
    """A contraction with its constants and with its operands in the dtypes and layouts of the kernels.

    ``x [N, I]`` and ``v [N, I]`` have stride 1 along I and keep their dtype; the kernels convert their elements to the
    working dtype. ``knots`` have the working dtype, and ``weight``, ``base_weight`` and ``g`` have ``matmul_dtype``.
    """

    name: str  # name of the contraction, "F", "G" or "H"
    x: Tensor
    knots: Tensor
    v: Tensor | None
    weight: Tensor | None
    base_weight: Tensor | None
    g: Tensor | None
    basis: Basis
    derivative: int
    matmul_dtype: torch.dtype  # dtype of the factors of matrix products; their sums have the dtype ``work``
    precision: str  # precision of float32 matrix products, as named in tl.dot
    # Form in which the kernels compute the splines, "cardinal" or "local" (see kernels/spline.py). The form is "none"
    # for derivatives above the spline order.
    form: str
    capability: int  # compute capability of the GPU, such as 80 for 8.0
    spline_count: int  # number K of splines of each input

    @property
    def rows(self) -> int:
        return self.x.shape[0]

    @property
    def inputs(self) -> int:
        return self.x.shape[1]

    @property
    def outputs(self) -> int:
        other = self.weight if self.weight is not None else self.g
        assert other is not None
        return other.shape[-1]

    @property
    def base(self) -> str:
        """The name of the base function that is computed; "none" for F and H without a base weight."""
        return self.basis.base if self.name == "G" or self.base_weight is not None else "none"

    def base_rounded(self, way: str = "") -> str:
        """Return the kernels' name of the base function, with "16" appended if the values must be rounded to float16.

        Values are rounded to float16 if autocast selects float16 but the implementation ``way`` multiplies in a wider
        dtype. The rounding makes values beyond 65504 infinite in every implementation.
        """
        asked = self.basis.matmul_dtype == torch.float16 and self.derivative == 0 and self.base != "none"
        wider = self.matmul_dtype != torch.float16 or way == "gather"
        return self.base + "16" if asked and wider else self.base

    @property
    def work(self) -> torch.dtype:
        """The working dtype, in which features and sums are computed."""
        return torch.float64 if self.matmul_dtype == torch.float64 else torch.float32

    @property
    def knot_count(self) -> int:
        return self.knots.shape[1]

    def part(self, rows: slice) -> Problem:
        """Return a copy of the problem that is restricted to some rows."""
        return self._replace(x=self.x[rows], v=None if self.v is None else self.v[rows])

    @property
    def waits(self) -> bool:
        """Whether a kernel must wait for a matrix product of features in registers before its next loop iteration.

        The function ``tiles.await_product`` explains the reason.
        """
        return self.work != torch.float64 and hardware.needs_wgmma_wait(self.capability)

    @property
    def shared_grid(self) -> bool:
        """Whether the kernels compute the splines in the cardinal form and all inputs have the same knots."""
        return self.form == "cardinal" and self.basis.uniform_grid is not None

    def x_and_knots(self) -> dict[str, Any]:
        """Return the arguments for x and the knots, which every kernel has."""
        return {"x_ptr": self.x, "knots_ptr": self.knots, "stride_x": self.x.stride(0)}

    def multiplier(self) -> dict[str, Any]:
        """Return the arguments for v, for the kernels that multiply by v.

        If v is None, x is passed in its place, and the kernel does not read the argument.
        """
        if self.v is None:
            return {"v_ptr": self.x, "stride_v": 0}
        return {"v_ptr": self.v, "stride_v": self.v.stride(0)}

    def sizes(self, *without: str) -> dict[str, int]:
        """Return the kernel arguments N, I, O, K and M: the numbers of rows, inputs, outputs, splines and knots.

        The arguments ``without`` are left out, for kernels that do not have them.
        """
        found = {"N": self.rows, "I": self.inputs, "O": self.outputs, "K": self.spline_count, "M": self.knot_count}
        return {name: size for name, size in found.items() if name not in without}

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return a tuple of the spline weights ``[K, I, O]`` and the base weights ``[I, O]``.

        Without base weights, the spline weights are passed in their place, and the kernels do not read the argument.
        """
        assert self.weight is not None
        return self.weight, self.weight if self.base_weight is None else self.base_weight

    @property
    def search(self) -> int:
        """The number of steps of a bisection over the knots."""
        return self.knot_count.bit_length()

    def constants(self, config: Config) -> dict[str, Any]:
        """Return the compile-time constants of kernels that compute the splines and the base function together."""
        return {
            "ORDER": self.basis.order,
            "D": self.derivative,
            "BASE": self.base_rounded(),
            "FORM": self.form,
            "SEARCH": self.search if self.form == "local" else 0,
            "SHARED": self.shared_grid,
            "ROWS": config.rows,
            "COLUMNS": config.columns,
        }

    def fused_constants(self, config: Config) -> dict[str, Any]:
        """Return the compile-time constants of kernels that multiply matrices by ``tl.dot``."""
        return {
            **self.constants(config),
            "PRECISION": self.precision,
            "DESCRIPTORS": config.descriptors,
            "INNER": config.inner,
        }


def problem(
    name: str,
    x: Tensor,
    knots: Tensor,
    operands: Operands,
    basis: Basis,
    derivative: int,
    capability: int | None = None,
    precision: str | None = None,
) -> Problem:
    """Prepare the operands and constants of a contraction for the kernels.

    Args:
        name: name of the contraction, "F", "G" or "H".
        x: inputs ``[N, I]``.
        knots: knots ``[I, M]``.
        operands: operands of the contraction besides x.
        basis: spline order, base function and other properties of the features.
        derivative: order d of the derivative of the features.
        capability: compute capability of the GPU, such as 80 for 8.0 (default: the capability of x's device).
        precision: precision of float32 matrix products (default: according to PyTorch's settings).
    """
    v, weight, base_weight, g = operands
    if name == "G" or base_weight is not None:
        check_base_derivative(basis.base, derivative)
    matmul_dtype, is_tf32 = product_dtype(name, x, basis, derivative, v is not None)

    return Problem(
        name,
        _rows(x),
        _converted(knots, working_dtype(x.dtype)),
        None if v is None else _rows(v),
        converted(weight, matmul_dtype),
        converted(base_weight, matmul_dtype),
        converted(g, matmul_dtype),
        basis,
        derivative,
        matmul_dtype,
        precision or ("tf32" if is_tf32 else hardware.precision(matmul_dtype)),
        form_of(basis, derivative),
        hardware.capability(x.device) if capability is None else capability,
        basis.splines_of(knots),
    )


def form_of(basis: Basis, derivative: int) -> str:
    """Return the form in which the kernels compute splines; the forms are described in :mod:`.kernels.spline`."""
    if derivative > basis.order:
        return "none"
    return "cardinal" if basis.uniform and derivative < basis.order else "local"


def product_dtype(name: str, x: Tensor, basis: Basis, derivative: int, multiplied: bool) -> tuple[torch.dtype, bool]:
    """Return a tuple of the dtype of matrix products of features and weights, and whether tf32 replaces float16.

    Products have the dtype of autocast or, without autocast, the dtype of x. The tf32 format has as many digits as
    float16 but the range of float32. In two cases a factor may leave the range of float16, so tf32 replaces float16:

    - Autocast selects float16 but x has a different dtype, and a factor is a gradient, v or a derivative of features.
    - Derivatives of the splines are computed and the inputs do not share one equally spaced row of knots, so that no
      common scaling keeps all derivatives in range.
    """
    dtype = x.dtype if basis.matmul_dtype is None or x.dtype == torch.float64 else basis.matmul_dtype
    if dtype == torch.float64:  # features have the working dtype, so rounding to a wider dtype changes nothing
        dtype = working_dtype(x.dtype)
    if dtype == torch.float16:
        wide = x.dtype != torch.float16 and (name != "F" or multiplied or derivative > 0)
        if wide or (0 < derivative <= basis.order and basis.uniform_grid is None):
            return torch.float32, True
    return dtype, False


def converted(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a contiguous tensor with the same values in a dtype."""
    return None if tensor is None else _converted(tensor, dtype)


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.resolve_neg().to(dtype).contiguous()


def _rows(tensor: Tensor) -> Tensor:
    tensor = tensor.resolve_neg()
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] == 1 else tensor.contiguous()
