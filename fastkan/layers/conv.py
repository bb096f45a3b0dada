"""The classes ``KANConv1d``, ``KANConv2d`` and ``KANConv3d``, which are convolutions with learned edge functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional

from fastkan_kernels import (
    BASE,
    DEVICE,
    DTYPE,
    FLAG,
    ORDER,
    Bounds,
    Choice,
    Int,
    Kind,
    Window,
    check_tensor,
    checked,
    is_sequence,
)

from ..functional import OUTSIDE, forward
from .init import Initialization
from .linear import KANLinear
from .tracing import call_as_leaf

# Maps each choice for the pixels beyond the border to the mode of torch.nn.functional.pad, or to None if these pixels
# contribute nothing.
PADDING_MODES = {
    "zeros": None,
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
    "zero_inputs": "constant",
}


class _PerDimension(Kind):
    """An argument kind that accepts an int or a sequence of ints, or one of the given words."""

    def __init__(self, least: int, words: tuple[str, ...] = ()) -> None:
        self.kind, self.words = Int(least), words

    def read(self, name: str, value: Any) -> Any:
        if isinstance(value, str) and self.words:
            return Choice(self.words).read(name, value)
        if is_sequence(value):
            return tuple(self.kind.read(f"{name}[{place}]", each) for place, each in enumerate(value))
        return self.kind.read(name, value)


class KANConv(KANLinear):
    """The base class of the convolutions of one, two and three dimensions; see :class:`KANConv2d`."""

    _dimensions: int

    @checked(
        in_channels=Int(least=1), out_channels=Int(least=1), kernel_size=_PerDimension(1), stride=_PerDimension(1),
        padding=_PerDimension(0, ("same", "valid")), dilation=_PerDimension(1), groups=Int(least=1), bias=FLAG,
        padding_mode=Choice(tuple(PADDING_MODES)), grid_size=Int(least=1), spline_order=ORDER, grid_range=Bounds(),
        base=BASE, spline_scale=FLAG, outside=OUTSIDE, device=DEVICE, dtype=DTYPE,
    )  # fmt: skip
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        *,
        grid_size: int = 5,
        spline_order: int = 3,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        base: str = "silu",
        spline_scale: bool = False,
        outside: str = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name} must be a multiple of groups={groups}, got {channels}")
        kernel = self._each("kernel_size", kernel_size)
        steps, spacing = self._each("stride", stride), self._each("dilation", dilation)
        if padding == "same" and max(steps) > 1:
            raise ValueError(f"padding='same' needs a stride of 1, got {stride}")
        if padding == "same":
            total = [each * (size - 1) for each, size in zip(spacing, kernel)]
            border = [(each // 2, each - each // 2) for each in total]
        else:
            border = [(each, each) for each in self._each("padding", 0 if isinstance(padding, str) else padding)]
        # The base weight has the distribution of the initial weight of PyTorch's convolution, whose outputs are sums of
        # in_channels / groups * taps inputs. The constructor of the parent class draws it.
        self._initialization = Initialization(base_half_width=math.sqrt(groups / math.prod(kernel)))
        super().__init__(
            in_channels, out_channels // groups * math.prod(kernel), grid_size, spline_order, grid_range=grid_range,
            base=base, spline_scale=spline_scale, outside=outside, device=device, dtype=dtype,
        )  # fmt: skip
        if bias:
            self.bias = nn.Parameter(self.spline_weight.detach().new_zeros(out_channels))
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.dilation, self.groups = kernel, steps, spacing, groups
        self.padding = padding if isinstance(padding, str) else tuple(before for before, _ in border)
        self.padding_mode = padding_mode
        self._padding_pairs = border

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs ``[N, out_channels, *size]`` for the inputs ``x [N, in_channels, *size]``.

        The first dimension may be missing.

        Raises:
            TypeError, ValueError: if x has the wrong shape, dtype or device, or is smaller than the kernel.
        """
        if isinstance(x, Proxy):
            called: Any = call_as_leaf(self, x)
            if called is None:
                raise TypeError("torch.fx cannot trace a convolution itself: trace torch.nn.Sequential(layer) instead")
            return called
        self._check_images(x)
        images = x if x.ndim == self._dimensions + 2 else x.unsqueeze(0)
        window, crop = self._window(images.shape[2:])
        mode = PADDING_MODES[self.padding_mode]
        if mode is not None and any(map(max, self._padding_pairs)):
            images = functional.pad(images, [each for pair in reversed(self._padding_pairs) for each in pair], mode)
        knots = self.knots  # The attribute is read only once, because another thread may replace the knots.
        basis, _ = self._known.basis_and_pieces(knots)
        weight, base_weight = self._known.checked(knots, basis, self.spline_weight, self.base_weight)
        y = forward(
            images, weight, base_weight, self.spline_scale, self.mask, self.bias, knots, basis, self.outside, None,
            window,
        )  # fmt: skip
        for dimension, first in enumerate(crop, 2):
            y = y.narrow(dimension, first, y.shape[dimension] - first) if first else y
        if self._outside_count is not None:
            self._count_outside(x)
        return y if x.ndim == images.ndim else y.squeeze(0)

    def _window(self, size: Sequence[int]) -> tuple[Window, list[int]]:
        """Return the geometry for an input, and the number of outputs to cut off at the start of each dimension.

        A window pads both sides of a dimension equally. If padding="same" needs one pixel more at the end, the window
        has one more at both ends, and the first output is cut off.
        """
        border = self._padding_pairs
        is_padded = PADDING_MODES[self.padding_mode] is not None
        padding = (0,) * len(border) if is_padded else tuple(after for _, after in border)
        crop = [0 if is_padded else after - before for before, after in border]
        window = Window(self.kernel_size, self.stride, padding, self.dilation, self.groups)
        full = [n + before + after for n, (before, after) in zip(size, border)] if is_padded else size
        if min(window.out_size(full)) < 1:
            raise ValueError(
                f"x must be at least as large as the kernel, got the size {list(size)} for kernel_size="
                f"{self.kernel_size}, dilation={self.dilation}, padding={self.padding!r}"
            )
        return window, crop

    def _check_images(self, x: Tensor) -> None:
        check_tensor("x", x)
        count = x.ndim - self._dimensions
        if count not in (1, 2) or x.shape[count - 1] != self.in_channels:
            sizes = ["depth", "height", "width"][-self._dimensions :]
            shape = ", ".join([f"in_channels={self.in_channels}", *sizes])
            raise ValueError(f"x must have the shape [N, {shape}] or [{shape}], got {list(x.shape)}")

    def pixels(self, x: Tensor) -> Tensor:
        """Return images as rows ``[N * pixels, in_channels]``."""
        self._check_images(x)
        return x.movedim(-self._dimensions - 1, -1).flatten(0, -2)

    def _samples(self, x: Tensor, may_be_empty: bool = False) -> Tensor:
        return super()._samples(self.pixels(x), may_be_empty)

    def _count_outside(self, x: Tensor) -> None:
        super()._count_outside(self.pixels(x))

    @classmethod
    def from_splines(cls, *_: Any, **__: Any) -> Any:
        """Refuse: the shapes of coefficients do not determine the size and the geometry of a kernel.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{cls.__name__} cannot be constructed by from_splines, because shapes do not determine kernel_size: "
            f"construct the layer by {cls.__name__}(in_channels, out_channels, kernel_size, ...), and copy the "
            "coefficients [G + k, in_channels, out_channels / groups * taps] to spline_weight by load_state_dict, and "
            "the knots by set_knots"
        )

    def _each(self, name: str, value: int | Sequence[int]) -> tuple[int, ...]:
        """Return one number for each dimension."""
        each = tuple(value) if isinstance(value, Sequence) else (value,) * self._dimensions
        if len(each) != self._dimensions:
            raise ValueError(f"{name} must have {self._dimensions} entries, got {len(each)}")
        return each

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        ones = (1,) * self._dimensions
        defaults = {"stride": ones, "padding": (0,) * self._dimensions, "dilation": ones, "groups": 1}
        for name, default in {**defaults, "padding_mode": "zeros"}.items():
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(parts + super().extra_repr().split(", ")[2:])


class KANConv1d(KANConv):
    """A one-dimensional convolution with learned functions in place of weights; see :class:`KANConv2d`.

    The inputs are ``[N, in_channels, length]`` or ``[in_channels, length]``.

    Example:
        >>> KANConv1d(2, 4, kernel_size=3, padding="same")(torch.rand(8, 2, 10)).shape
        torch.Size([8, 4, 10])
    """

    _dimensions = 1


class KANConv2d(KANConv):
    """A two-dimensional convolution that has a learned function wherever ``torch.nn.Conv2d`` has a weight.

        y[n,o,p] = sum_{c,t} phi_cot(x[n,c, p * stride + t * dilation - padding]) (+ bias[o])

    The sum is over the input channels c of the group of output channel o and over the taps t of the kernel, and each
    edge function phi_cot is a spline plus a base function as in :class:`KANLinear`. All taps of a channel share its
    knots. The features of a pixel are evaluated once for all taps, in blocks of bounded memory, and are then the input
    channels of one ordinary convolution.

    The layer is a :class:`KANLinear` from ``in_channels`` inputs to ``out_channels / groups * taps`` outputs, with its
    own ``forward``. Its other methods are the same. The samples of :meth:`update_grid` and :meth:`refine` are images,
    whose pixels are the samples of each channel. Masks and weights have the outputs and taps in their last dimension;
    ``layer.spline_weight.unflatten(2, (-1, *layer.kernel_size))`` has a dimension for each,
    ``[G + k, in_channels, out_channels / groups, height, width]``.

    Args:
        in_channels: the number of channels of the inputs.
        out_channels: the number of channels of the outputs.
        kernel_size: the size of the kernel, an int or one int for each dimension.
        stride: the distance between windows, likewise.
        padding: the number of pixels beyond each border that windows may reach, likewise, or ``"valid"``, which is 0,
            or ``"same"``, which gives outputs of the size of the inputs.
        dilation: the distance between taps, likewise.
        groups: the number of groups of channels. Outputs of a group depend only on the inputs of the same group.
        bias: whether to add a learned bias ``[out_channels]``.
        padding_mode: the pixels beyond the border. With ``"zeros"``, they contribute nothing, as in
            ``torch.nn.Conv2d``. With ``"zero_inputs"``, they have the value 0, and each contributes phi(0). The modes
            ``"reflect"``, ``"replicate"`` and ``"circular"`` are those of ``torch.nn.Conv2d``.
        grid_size, spline_order, grid_range, base, spline_scale, outside, device, dtype: the arguments of
            :class:`KANLinear`.

    Attributes:
        spline_weight: the spline coefficients ``[G + k, in_channels, out_channels / groups * taps]``.
        base_weight: the weights ``[in_channels, out_channels / groups * taps]`` of the base function, or None.
        spline_scale: the factors of the splines, with the shape of the base weight, or None.
        bias: the bias ``[out_channels]``, or None.
        knots: a buffer ``[in_channels, G + 2k + 1]`` with the knots; see :class:`KANLinear`.
        mask: a buffer with the shape of the base weight and the values 0 and 1, or None.

    Raises:
        TypeError, ValueError: if an argument is invalid.

    Example:
        >>> layer = KANConv2d(3, 16, kernel_size=3, padding=1)
        >>> layer(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 16, 32, 32])
        >>> layer.update_grid(torch.randn(8, 3, 32, 32))
        >>> layer
        KANConv2d(3, 16, kernel_size=(3, 3), padding=(1, 1), grid_size=5, spline_order=3, knots=adapted)
    """

    _dimensions = 2


class KANConv3d(KANConv):
    """A three-dimensional convolution with learned functions in place of weights; see :class:`KANConv2d`.

    The inputs are ``[N, in_channels, depth, height, width]``, and the first dimension may be missing.

    Example:
        >>> KANConv3d(1, 4, kernel_size=2, stride=2)(torch.rand(8, 1, 6, 6, 6)).shape
        torch.Size([8, 4, 3, 3, 3])
    """

    _dimensions = 3
