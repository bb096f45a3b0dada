"""One contraction as the kernels take it: operands in their dtypes and layouts, and compile-time constants."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...basis import Basis, working_dtype
from ...bspline.cox_de_boor import check_base_derivative
from ...trilinear import Operands
from . import hardware


class Problem(NamedTuple):
    """Operands of a contraction, converted and contiguous, with its constants.

    ``x [N, I]`` and ``v`` have unit stride along I and keep their dtype, which the kernels convert to the working
    dtype. ``knots`` have the working dtype, and ``weight``, ``base_weight`` and ``g`` have ``matmul_dtype``.
    """

    name: str  # "F", "G" or "H"
    x: Tensor
    knots: Tensor
    v: Tensor | None
    weight: Tensor | None
    base_weight: Tensor | None
    g: Tensor | None
    basis: Basis
    derivative: int
    matmul_dtype: torch.dtype  # of the factors of products; sums are in ``work``
    precision: str  # of float32 products, as tl.dot calls it
    form: str  # of the splines, see kernels/spline.py: "cardinal" or "local", or "none" above the order
    capability: int  # of the GPU: 80, 90, ...
    spline_count: int  # K

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
        """The base function that is computed; "none" for F and H without a base weight."""
        return self.basis.base if self.name == "G" or self.base_weight is not None else "none"

    def base_rounded(self, way: str = "") -> str:
        """Name of the base function for kernels. A "16" is appended if autocast asks for float16 but the products of
        this way are in a wider dtype: values are then rounded to float16, so that those beyond 65504 are infinite in
        every way.
        """
        asked = self.basis.matmul_dtype == torch.float16 and self.derivative == 0 and self.base != "none"
        wider = self.matmul_dtype != torch.float16 or way == "gather"
        return self.base + "16" if asked and wider else self.base

    @property
    def work(self) -> torch.dtype:
        """The working dtype, of features and sums."""
        return torch.float64 if self.matmul_dtype == torch.float64 else torch.float32

    @property
    def knot_count(self) -> int:
        return self.knots.shape[1]

    def part(self, rows: slice) -> Problem:
        """The same problem on some rows."""
        return self._replace(x=self.x[rows], v=None if self.v is None else self.v[rows])

    @property
    def waits(self) -> bool:
        """Whether a product with features in registers must end within its iteration; see tiles.await_product."""
        return self.work != torch.float64 and hardware.needs_wgmma_wait(self.capability)

    def x_and_knots(self) -> dict[str, Any]:
        """The arguments x and knots of every kernel."""
        return {"x_ptr": self.x, "knots_ptr": self.knots, "stride_x": self.x.stride(0)}

    def multiplier(self) -> dict[str, Any]:
        """The argument v of kernels that have one. If v is None, x is passed in its place and not read."""
        if self.v is None:
            return {"v_ptr": self.x, "stride_v": 0}
        return {"v_ptr": self.v, "stride_v": self.v.stride(0)}

    def sizes(self, base: bool = False) -> dict[str, int]:
        """The arguments N, I, K and M; with ``base`` K is 1, for the base function alone."""
        return {"N": self.rows, "I": self.inputs, "K": 1 if base else self.spline_count, "M": self.knot_count}

    def weights(self) -> tuple[Tensor, Tensor]:
        """Both parts of W. Without a base weight, ``weight`` is passed in its place and not read."""
        assert self.weight is not None
        return self.weight, self.weight if self.base_weight is None else self.base_weight

    @property
    def search(self) -> int:
        """Number of steps of a bisection over the knots."""
        return self.knot_count.bit_length()

    def constants(self) -> dict[str, Any]:
        """Constants of kernels that compute splines and base function together."""
        search = self.search if self.form == "local" else 0
        return {
            "ORDER": self.basis.order,
            "D": self.derivative,
            "BASE": self.base_rounded(),
            "FORM": self.form,
            "SEARCH": search,
        }

    def constants_of(self, base: bool) -> dict[str, Any]:
        """Constants of kernels that compute either the base function or the splines."""
        alone = {"FORM": "base", "SEARCH": 0} if base else {"BASE": "none"}
        return {**self.constants(), **alone}


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
    """Prepare a contraction. By default, ``capability`` is that of x's device, and ``precision`` is set by PyTorch."""
    v, weight, base_weight, g = operands
    if name == "G" or base_weight is not None:
        check_base_derivative(basis.base, derivative)
    matmul_dtype, is_tf32 = product_dtype(name, x, basis, derivative, v is not None)

    def converted(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.resolve_neg().to(matmul_dtype).contiguous()

    return Problem(
        name,
        _rows(x),
        knots.resolve_neg().to(working_dtype(x.dtype)).contiguous(),
        None if v is None else _rows(v),
        converted(weight),
        converted(base_weight),
        converted(g),
        basis,
        derivative,
        matmul_dtype,
        precision or ("tf32" if is_tf32 else hardware.precision(matmul_dtype)),
        form_of(basis, derivative),
        hardware.capability(x.device) if capability is None else capability,
        basis.splines_of(knots),
    )


def form_of(basis: Basis, derivative: int) -> str:
    """The form in which kernels compute splines; see :mod:`.kernels.spline`."""
    if derivative > basis.order:
        return "none"
    return "cardinal" if basis.uniform and derivative < basis.order else "local"


def product_dtype(name: str, x: Tensor, basis: Basis, derivative: int, multiplied: bool) -> tuple[torch.dtype, bool]:
    """The dtype in which features and weights are multiplied, and whether tf32 replaces float16.

    The dtype is that of autocast, or else of x. tf32 has as many digits as float16, but the range of float32. It
    replaces float16 where a factor may leave the range of float16: for gradients and v under autocast, where they are
    not float16 themselves, and for derivatives where the cells of the inputs differ in width, so that no unit fits all
    of them.
    """
    dtype = x.dtype if basis.matmul_dtype is None or x.dtype == torch.float64 else basis.matmul_dtype
    if dtype == torch.float16:
        wide = x.dtype != torch.float16 and (name != "F" or multiplied or derivative > 0)
        if wide or (0 < derivative <= basis.order and basis.uniform_grid is None):
            return torch.float32, True
    return dtype, False


def _rows(tensor: Tensor) -> Tensor:
    tensor = tensor.resolve_neg()
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] == 1 else tensor.contiguous()
