"""One contraction as the kernels take it: operands in their dtypes and layouts, and what is fixed at compile time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...basis import Basis, working_dtype
from ...bspline.cox_de_boor import check_base_derivative
from ...trilinear import Operands
from . import hardware


class Problem(NamedTuple):
    """A contraction's operands, contiguous and converted, with its constants.

    ``x [N, I]`` and ``v`` have unit stride along I and keep their dtype: kernels widen them. ``knots`` have the
    working dtype, ``weight``, ``base_weight`` and ``g`` the product's.
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
    matmul_dtype: torch.dtype  # of what is multiplied; sums are float32, or float64 if it is that
    precision: str  # of float32 products, as tl.dot names it
    form: str  # how splines are made: "cardinal" or "local"; "none" above the order
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
        """The base function of this contraction; "none" where no weight asks for it."""
        return self.basis.base if self.name == "G" or self.base_weight is not None else "none"

    def base_rounded(self, way: str = "") -> str:
        """:attr:`base` as kernels take it: with "16" behind it where float16 is what autocast asks for, but its values
        are multiplied in a wider dtype. Beyond 65504 they are infinite then, as by every other way.
        """
        asked = self.basis.matmul_dtype == torch.float16 and self.derivative == 0 and self.base != "none"
        wider = self.matmul_dtype != torch.float16 or way == "gather"
        return self.base + "16" if asked and wider else self.base

    @property
    def work(self) -> torch.dtype:
        """In which features are made and sums are held."""
        return torch.float64 if self.matmul_dtype == torch.float64 else torch.float32

    @property
    def knot_count(self) -> int:
        return self.knots.shape[1]

    def part(self, rows: slice) -> Problem:
        """The same on some rows."""
        return self._replace(x=self.x[rows], v=None if self.v is None else self.v[rows])

    @property
    def waits(self) -> bool:
        """Whether a product on features in registers must end within its iteration; see tiles.await_product."""
        return self.work != torch.float64 and hardware.needs_wgmma_wait(self.capability)

    def x_and_knots(self) -> dict[str, Any]:
        """Arguments of every kernel."""
        return {"x_ptr": self.x, "knots_ptr": self.knots, "stride_x": self.x.stride(0)}

    def multiplier(self) -> dict[str, Any]:
        """Arguments of kernels that take a v; without one x stands there, and isn't read."""
        if self.v is None:
            return {"v_ptr": self.x, "stride_v": 0}
        return {"v_ptr": self.v, "stride_v": self.v.stride(0)}

    def sizes(self, base: bool = False) -> dict[str, int]:
        """N, I, K and M; ``base`` is of the base function alone, one feature."""
        return {"N": self.rows, "I": self.inputs, "K": 1 if base else self.spline_count, "M": self.knot_count}

    def weights(self) -> tuple[Tensor, Tensor]:
        """W's two parts; without a base function the splines' stands for it, and isn't read."""
        assert self.weight is not None
        return self.weight, self.weight if self.base_weight is None else self.base_weight

    @property
    def search(self) -> int:
        """Steps of a bisection over the knots."""
        return self.knot_count.bit_length()

    def constants(self) -> dict[str, Any]:
        """Of kernels that contract splines and base function together."""
        search = self.search if self.form == "local" else 0
        return {
            "ORDER": self.basis.order,
            "D": self.derivative,
            "BASE": self.base_rounded(),
            "FORM": self.form,
            "SEARCH": search,
        }

    def constants_of(self, base: bool) -> dict[str, Any]:
        """Of kernels that make the base function, or else the splines."""
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
    """Prepare a contraction; ``capability`` and ``precision`` are the machine's and PyTorch's if not given."""
    v, weight, base_weight, g = operands
    if name == "G" or base_weight is not None:
        check_base_derivative(basis.base, derivative)
    product, narrow = product_dtype(name, x, basis, derivative, v is not None)

    def converted(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.resolve_neg().to(product).contiguous()

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
        product,
        precision or ("tf32" if narrow else hardware.precision(product)),
        form_of(basis, derivative),
        hardware.capability(x.device) if capability is None else capability,
        basis.splines_of(knots),
    )


def form_of(basis: Basis, derivative: int) -> str:
    """How splines are made in registers; see :mod:`.spline`."""
    if derivative > basis.order:
        return "none"
    return "cardinal" if basis.uniform and derivative < basis.order else "local"


def product_dtype(name: str, x: Tensor, basis: Basis, derivative: int, multiplied: bool) -> tuple[torch.dtype, bool]:
    """In which features and weights are multiplied, autocast's or x's own; and whether float32 stands for float16.

    float16 has the digits of tf32 and not its range. What may leave it is multiplied in tf32: under autocast
    whatever meets a gradient or v, which are not float16, and derivatives where inputs' cells differ in
    width, so that no unit fits them all.
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
