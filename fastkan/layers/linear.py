"""``KANLinear``: the layer as a module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastkan_kernels import (
    BASE,
    DEVICE,
    DTYPE,
    FLAG,
    INDEX,
    ORDER,
    SHARE,
    Basis,
    Bounds,
    Int,
    check_finite,
    check_knots,
    check_shape,
    check_tensor,
    checked,
    needs_composite,
    uniform_knots,
)

from ..functional import OUTSIDE, forward, rows_of
from . import grid
from .distributed import check_one_process
from .resting import wake
from .value_cache import KnotMetadata

INITIAL_NOISE = 0.1  # of a fresh spline's values, times 1 / grid_size


class KANLinear(nn.Module):
    """A Kolmogorov-Arnold layer: a learned function on each edge, where ``nn.Linear`` has a number.

        y[..., o] = sum_i phi_io(x[..., i]) (+ bias[o])
        phi_io(x) = (spline_scale_io) sum_b spline_weight[b,i,o] B_b(x) + base_weight[i,o] silu(x)

    (Liu et al., KAN: Kolmogorov-Arnold Networks, 2024, eq. 2.10 to 2.12, with the scales optional.)

    Args:
        in_features, out_features: sizes of the last dimension of input and output.
        grid_size: G, intervals of the grid.
        spline_order: k, 1 to 5; 3 is cubic.
        grid_range: ends of the grid, in the units of the input.
        base: the function beside the spline: ``"silu"``, ``"identity"`` or ``"none"``.
        bias: whether to add a learned ``[out]``.
        spline_scale: whether each edge has a trainable factor of its spline.
        outside: beyond the grid a spline runs out to ``"zero"`` along the outer knots, or goes on
            ``"linear"``, by its tangent.
        device, dtype: of the parameters. The knots stay float32 in a float16 or bfloat16 layer.

    Attributes:
        spline_weight: ``[G + k, in, out]``.
        base_weight: ``[in, out]``, or None with ``base="none"``.
        spline_scale: ``[in, out]``, or None.
        bias: ``[out]``, or None.
        knots: ``[in, G + 2k + 1]``, a buffer; change them by the methods, or by :meth:`set_knots`. A write
            into the buffer itself (an average of models, a broadcast) is noticed by the next eager call; where
            nothing counts it (``.data``), a GPU gives NaN once first. Compiled code gives NaN after it, until a
            ``layer.set_knots(layer.knots)``.
        mask: ``[in, out]`` of 0 and 1, a buffer, or None; see :meth:`set_mask`.

    Raises:
        TypeError, ValueError: for sizes, orders, ranges or names out of range.

    Example:
        >>> layer = KANLinear(2, 5)
        >>> layer(torch.rand(8, 2)).shape
        torch.Size([8, 5])
    """

    knots: Tensor
    mask: Tensor | None
    _outside_count: Tensor | None
    resting: frozenset[str] = frozenset()  # see fastkan/resting.py

    @checked(
        in_features=INDEX, out_features=INDEX, grid_size=Int(least=1), spline_order=ORDER,
        grid_range=Bounds(), base=BASE, bias=FLAG, spline_scale=FLAG, outside=OUTSIDE,
        device=DEVICE, dtype=DTYPE,
    )  # fmt: skip
    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid_size: int = 5,
        spline_order: int = 3,
        *,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        base: str = "silu",
        bias: bool = False,
        spline_scale: bool = False,
        outside: str = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dtype = torch.get_default_dtype() if dtype is None else dtype
        knots = uniform_knots(
            in_features, grid_size, spline_order, grid_range, dtype=_knots_dtype(dtype), device=device
        )
        check_knots(knots, spline_order)  # in their own dtype a range may have no width
        self.in_features = in_features
        self.out_features = out_features
        self.spline_order = spline_order
        self.base = base
        self.outside = outside
        self._grid_range = grid_range  # the initial one

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        edges = (in_features, out_features)
        self.spline_weight = parameter(grid_size + spline_order, *edges)
        self.base_weight = parameter(*edges) if base != "none" else None
        self.spline_scale = parameter(*edges) if spline_scale else None
        self.bias = parameter(out_features) if bias else None
        self.register_buffer("knots", knots)
        self.register_buffer("mask", None)
        self._known = KnotMetadata(knots, spline_order, base)
        self.register_buffer("_outside_count", None, persistent=False)
        self.reset_parameters()

    @property
    def basis(self) -> Basis:
        """What the features are, with what is known of the knots as they are now."""
        return self._known.basis(self.knots)

    @property
    def grid_size(self) -> int:
        """G, the number of intervals of the grid."""
        return self.knots.shape[1] - 2 * self.spline_order - 1

    def reset_parameters(self) -> None:
        """Fresh parameters from torch's generator: a base weight as ``nn.Linear``'s weight, splines
        through small noise at the G + 1 knots of the grid, scales of 1, a bias of 0."""
        if self.base_weight is not None and self.base_weight.numel():
            bound = 1 / math.sqrt(self.in_features)  # what kaiming_uniform_(a=sqrt(5)) comes to
            nn.init.uniform_(self.base_weight, -bound, bound)
        if self.spline_scale is not None:
            nn.init.ones_(self.spline_scale)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.spline_weight.is_meta or self.spline_weight.numel() == 0:
            return
        at_knots = (self.grid_size + 1, self.in_features, self.out_features)
        with torch.no_grad():
            noise = torch.rand(at_knots, device=self.knots.device, dtype=torch.float32).sub_(0.5)
            noise *= INITIAL_NOISE / self.grid_size
            self.spline_weight.copy_(grid.through(noise, self.knots, self.spline_order))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        knots = self.knots  # which another thread may replace
        basis, pieces = self._known.basis_and_pieces(knots)
        weight, base_weight = self._known.checked(knots, basis, self.spline_weight, self.base_weight)
        y = forward(
            x,
            weight,
            base_weight,
            self.spline_scale,
            self.mask,
            self.bias,
            knots,
            basis,
            self.outside,
            pieces,
        )
        if self._outside_count is not None:
            self._count_outside(x)
        return y

    # -- knots and masks ------------------------------------------------------------------------

    @torch.inference_mode(False)
    def set_knots(self, knots: Tensor) -> None:
        """Replace the knots, keeping the coefficients; for as many knots as there are.

        Raises:
            TypeError, ValueError: if they are no knots of this layer; nothing has changed then.
        """
        check_knots(knots, self.spline_order)
        check_shape("knots", knots, tuple(self.knots.shape))
        if knots.is_meta and not self.knots.is_meta:
            raise ValueError(f"knots must have values, got a tensor on meta for a layer on {self.knots.device}")
        rounded = knots.detach().to(self.knots)
        check_knots(rounded, self.spline_order)
        self.replace_knots(rounded)

    @checked(grid_eps=SHARE, margin=SHARE)
    @torch.inference_mode(False)
    @torch.no_grad()
    def update_grid(self, x: Tensor, *, grid_eps: float = 0.02, margin: float = 0.01) -> None:
        """Move the knots to where samples lie, and refit the splines there by least squares.

        Args:
            x: ``[..., in_features]`` samples, finite. An input whose samples all are one value keeps
                its knots.
            grid_eps: 1 spaces the knots evenly over the samples' range, 0 by their quantiles.
            margin: by what share of the range the even spacing is wider on each side.

        Raises:
            TypeError, ValueError: for samples of another shape, none, or with NaN; nothing has
                changed then.
            RuntimeError: under ``torch.distributed`` with several processes, whose samples would differ.

        Example:
            >>> layer = KANLinear(2, 5)
            >>> layer.update_grid(torch.randn(1000, 2))
            >>> layer
            KANLinear(2, 5, grid_size=5, spline_order=3, knots=adapted)
        """
        check_one_process("update_grid")
        self._check_own_splines()
        samples = self._samples(x)
        knots = grid.adapted_knots(samples, self.knots, self.spline_order, self.grid_size, grid_eps, margin).to(
            self.knots.dtype
        )
        check_knots(knots, self.spline_order)
        weight = grid.refitted(self.spline_weight, self.knots, knots, self.spline_order, samples, self.outside)
        self.replace_splines(weight, knots)

    @checked(grid_size=Int(least=1))
    @torch.inference_mode(False)
    @torch.no_grad()
    def refine(self, grid_size: int, x: Tensor | None = None) -> None:
        """Give every spline ``grid_size`` intervals, and the same function.

        For a multiple of the present grid size the knots nest, and the function on the grid stays
        exactly as it is. Else the splines are refitted by least squares, at ``x`` or, without it,
        evenly over the grid. ``spline_weight`` becomes a new parameter: make the optimizer after.

        Args:
            grid_size: the new G.
            x: ``[..., in_features]`` samples, for a refit.

        Raises:
            TypeError, ValueError: for a size below 1, or samples as in :meth:`update_grid`.
            RuntimeError: for samples, as in :meth:`update_grid`.

        Example:
            >>> layer = KANLinear(2, 5)
            >>> layer.refine(20)
            >>> layer.spline_weight.shape
            torch.Size([23, 2, 5])
        """
        if x is not None:
            check_one_process("refine at samples")
        self._check_own_splines()
        samples = None if x is None else self._samples(x)
        order = self.spline_order
        old = grid.interior(self.knots, order).double()
        finer = grid.extend(grid.subdivided(old, grid_size), order).to(self.knots.dtype)
        check_knots(finer, order)
        if grid.nests(self.knots, finer, order):
            weight = grid.inserted(self.spline_weight, self.knots, finer.double(), order)
        else:
            weight = grid.refitted(self.spline_weight, self.knots, finer, order, samples, self.outside)
        self.replace_splines(weight, finer)

    @torch.inference_mode(False)
    @torch.no_grad()
    def set_mask(self, mask: Tensor | None) -> None:
        """Switch edges off where ``mask [in, out]`` is 0; None takes the mask away.

        Raises:
            TypeError, ValueError: for another shape or values other than 0 and 1.
        """
        if mask is None:
            self.mask = None
            return wake(self)
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a torch.Tensor or None, got {type(mask).__name__}")
        if mask.is_meta and not self.spline_weight.is_meta:
            raise ValueError(f"mask must have values, got a tensor on meta for a layer on {self.spline_weight.device}")
        self._check_mask(mask)
        self.mask = mask.detach().to(self.spline_weight, copy=True)
        wake(self)

    # -- inputs outside the grid ----------------------------------------------------------------

    @checked(enabled=FLAG)
    @torch.inference_mode(False)
    def count_outside(self, enabled: bool = True) -> None:
        """Start (from zero) or stop counting the inputs that lie outside the grid in each forward.

        What runs under a ``torch.func`` transform or an export is not counted.
        """
        counters = self.in_features + 1  # the last one is for rows
        self._outside_count = torch.zeros(counters, dtype=torch.int64, device=self.knots.device) if enabled else None

    def outside_share(self) -> Tensor:
        """Share of the inputs since :meth:`count_outside` that lay outside the grid, ``[in]``.

        Raises:
            RuntimeError: if nothing has been counted.
        """
        if self._outside_count is None or self._outside_count[-1] == 0:
            raise RuntimeError("nothing was counted: call count_outside() and then the layer")
        return self._outside_count[:-1] / self._outside_count[-1]

    @torch.no_grad()
    def _count_outside(self, x: Tensor) -> None:
        assert self._outside_count is not None
        if needs_composite(self.knots) is not None:
            return
        limits = grid.interior(self.knots, self.spline_order)
        rows = rows_of(x, self.in_features).detach()
        inside = (rows >= limits[:, 0]) & (rows <= limits[:, -1])
        self._outside_count[:-1] += (~inside).sum(0)
        self._outside_count[-1] += len(rows)

    # -- plumbing -------------------------------------------------------------------------------

    def _samples(self, x: Tensor) -> Tensor:
        rows = rows_of(x, self.in_features).detach()
        if len(rows) == 0:
            raise ValueError("x must have at least one sample, got none")
        if x.device != self.knots.device:
            raise ValueError(f"x is on {x.device}, but the layer is on {self.knots.device}")
        check_finite("x", rows)
        return rows

    def _check_mask(self, mask: Tensor) -> None:
        check_tensor("mask", mask, any_dtype=True)
        check_shape("mask", mask, (self.in_features, self.out_features))
        if not mask.is_meta and not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("mask must hold 0 and 1 only")

    def _check_own_splines(self) -> None:
        if self._parameters.get("spline_weight") is None:
            raise RuntimeError(
                "spline_weight is no parameter of the layer itself: something (a parametrization, pruning) "
                "computes it. Remove that, change the grid, and put it back"
            )

    def replace_splines(self, weight: Tensor, knots: Tensor) -> None:
        weight = weight.to(self.spline_weight.dtype).contiguous()
        if weight.shape == self.spline_weight.shape:
            self.spline_weight.copy_(weight)
        else:
            trained = self.spline_weight.requires_grad
            self.spline_weight = nn.Parameter(weight, requires_grad=trained)
        self.replace_knots(knots)

    def initial_knots(self) -> Tensor:
        sizes = self.in_features, self.grid_size, self.spline_order
        return uniform_knots(*sizes, self._grid_range, dtype=self.knots.dtype, device=self.knots.device)

    @torch.no_grad()
    def replace_knots(self, knots: Tensor) -> None:
        own = self.knots
        if own.shape == knots.shape and not (own.is_meta or own.is_inference()):
            own.copy_(knots)  # in place, as the weights are written: whoever shares both has one function
        else:
            self.knots = knots.detach().to(own, copy=True).contiguous()
        self._known.look(self.knots)

    def _apply(self, fn, recurse=True):
        before = self.knots
        super()._apply(fn, recurse)
        if self.knots.dtype != _knots_dtype(self.knots.dtype):  # a grid in half precision is no grid
            self.knots = before.to(self.knots.device, _knots_dtype(self.knots.dtype))
        if before.is_meta and not self.knots.is_meta:  # memory that nobody has filled
            self.knots = self.initial_knots()
        if self.knots.dtype != before.dtype or self.knots.device != before.device:
            self._known.look(self.knots)
        return self

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        knots, mask = state_dict.get(prefix + "knots"), state_dict.get(prefix + "mask")
        try:
            if isinstance(knots, Tensor):
                check_knots(knots, self.spline_order)
            if isinstance(mask, Tensor) and mask.shape != (self.in_features, self.out_features):
                raise ValueError(f"mask: {[self.in_features, self.out_features]} expected, got {list(mask.shape)}")
            if mask is not None:
                self._check_mask(mask)
        except (TypeError, ValueError) as error:
            errors.append(f"{prefix}{error}")
            return
        if mask is None and knots is not None:  # this layer's state, of a time without a mask
            self.mask = None
        elif mask is not None and self.mask is None:
            self.mask = torch.ones_like(mask, device=self.knots.device)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        self._known.look(self.knots)
        wake(self)

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_features}, {self.out_features}",
            f"grid_size={self.grid_size}, spline_order={self.spline_order}",
        ]
        if self.base != "silu":
            parts.append(f"base={self.base!r}")
        parts += [f"{name}=True" for name in ("bias", "spline_scale") if getattr(self, name) is not None]
        if self.outside != "zero":
            parts.append(f"outside={self.outside!r}")
        if not self.basis.uniform:
            parts.append("knots=adapted")
        if self.mask is not None:
            parts.append("masked=True")
        return ", ".join(parts)


def _knots_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
