"""The contractions F, G and H of convolutions, computed by PyTorch's convolutions of features.

In a convolutional layer, every tap t of the kernel has its own edge functions. The form of a layer gets one more sum,
over taps, where q(p, t) = p * stride + t * dilation - padding is the pixel that tap t sees from the output pixel p:

    T_d = sum over n, p, c, t, b, o of  v[n,c,q] * psi_b^(d)(x[n,c,q]) * W[b,c,o,t] * g[n,o,p]

A pixel beyond the border has no features, so it contributes nothing. The features do not depend on the tap. They are
evaluated once for each pixel, and each contraction is a convolution that has features as its input channels: F is the
convolution itself, G its gradient with respect to the weights, and H its gradient with respect to the input, times
psi^(d), summed over b. The form is trilinear in v, W and g as for rows, so the table of derivatives in
:mod:`..trilinear` holds for convolutions too.

The features of a block of images and channels are stored at once. Blocks bound the memory, except that the features of
one channel of one image are never divided.

A weight ``[K, C, O / groups * taps]`` has the outputs of its channel's group and all taps in its last dimension. The
taps are in the order of the weight of ``torch.nn.Conv2d``: a view ``[K, C, O / groups, *kernel_size]`` has one
dimension for each dimension of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..basis import Basis, working_dtype
from ..bspline import cox_de_boor
from ..trilinear import Operands
from .cpu import dense

# Maximum number of features in a block: 8 MiB in float32. A step holds up to six times as much. PyTorch's convolution
# arranges its operands anew for each block: on one CPU thread, a step of 64 x 16 x 32 x 32 pixels takes 282, 189, 175,
# 166 and 188 ms with 2**18, 2**19, 2**20, 2**21 and 2**22 features in a block.
BLOCK_ELEMENTS = 1 << 21
GPU_ELEMENTS = 1 << 25  # A block has to be large enough to occupy the device.

Splines = Callable[[Tensor, Tensor, Basis, int], Tensor]


class Window(NamedTuple):
    """The geometry of a convolution with one number for each spatial dimension, as in ``torch.nn.Conv2d``."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def taps(self) -> int:
        """The number of taps of the kernel."""
        return math.prod(self.kernel_size)

    def out_size(self, size: Sequence[int]) -> list[int]:
        """Return the size of the output for the spatial size of an input."""
        each = zip(size, self.kernel_size, self.stride, self.padding, self.dilation)
        return [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, padding, dilation in each]

    def out_channels(self, weight: Tensor) -> int:
        """Return the number of output channels that a weight ``[..., O / groups * taps]`` belongs to."""
        return weight.shape[-1] // self.taps * self.groups

    def flat(self) -> list[int]:
        """Return all numbers in one list."""
        return [number for each in self[:-1] for number in each] + [self.groups]

    @classmethod
    def from_flat(cls, numbers: Sequence[int]) -> Window:
        """Return the window whose numbers :meth:`flat` has listed."""
        count = len(numbers) // 4
        kernel_size, stride, padding, dilation = (tuple(numbers[n * count : (n + 1) * count]) for n in range(4))
        return cls(kernel_size, stride, padding, dilation, numbers[-1])

    def convolve(self, image: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution of images with the weight ``[O, C / groups, *kernel_size]`` of ``torch.nn.Conv2d``."""
        zero = (0,) * len(self.stride)
        return torch.convolution(
            image, weight, None, self.stride, self.padding, self.dilation, False, zero, self.groups
        )

    def convolve_base(self, base: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution of images ``[N, C, *size]`` with the weight ``[C, O / groups * taps]`` of a layer."""
        return self.convolve(base, _kernel(weight.unsqueeze(0), self))

    def vjp(self, g: Tensor, image: Tensor, weight: Tensor, by_weight: bool) -> Tensor:
        """Return the gradient of :meth:`convolve` with respect to the weight or, otherwise, the image."""
        zero = (0,) * len(self.stride)
        found = torch.ops.aten.convolution_backward(
            g, image, weight, None, self.stride, self.padding, self.dilation, False, zero, self.groups,
            (not by_weight, by_weight, False),
        )  # fmt: skip
        return found[1 if by_weight else 0]


class _Block(NamedTuple):
    """Slices of images, channels and the outputs of the channels' groups, and a window with only the block's groups."""

    images: slice
    channels: slice
    outputs: slice
    window: Window


class _Call:
    """The features of a contraction, and the blocks in which they are evaluated.

    Args:
        x: the images ``[N, C, *size]``.
        outputs: the number of output channels.
        splines: the ``features`` function of a backend. If None, the features are evaluated by their definition, in one
            block, and can be differentiated by PyTorch.
    """

    def __init__(
        self,
        x: Tensor,
        knots: Tensor,
        basis: Basis,
        derivative: int,
        window: Window,
        splines: Splines | None,
        outputs: int,
    ) -> None:
        self.x, self.basis, self.derivative, self.window = x, basis, derivative, window
        self.dtype = working_dtype(x.dtype)
        self.knots = knots.to(self.dtype)
        self.splines, self.outputs = splines, outputs
        self.count = basis.splines_of(knots) + (basis.base != "none")
        self._kernels: dict[int, Tensor] = {}

    def blocks(self) -> list[_Block]:
        """Return all blocks. Blocks that differ in channels but not in outputs follow each other."""
        images, channels = self.x.shape[:2]
        groups, pixels = self.window.groups, self.count * math.prod(self.x.shape[2:])
        of_group = channels // groups
        limit = BLOCK_ELEMENTS if self.x.is_cpu else GPU_ELEMENTS
        if self.dtype == torch.float64 and self.x.is_cpu:  # PyTorch stores a copy of float64 features for each tap.
            limit //= self.window.taps
        if self.splines is None or images * channels * pixels <= limit:
            return [_Block(slice(0, images), slice(0, channels), slice(0, self.outputs), self.window)]
        at_once, step = max(1, limit // (channels * pixels)), max(1, limit // pixels)
        at_once = math.ceil(images / math.ceil(images / at_once))  # blocks of equal size
        parts: list[tuple[slice, int]] = []  # the channels and the number of their groups
        if step >= of_group:
            number = step // of_group
            for first in range(0, groups, number):
                last = min(first + number, groups)
                parts.append((slice(first * of_group, last * of_group), last - first))
        else:
            for first in range(0, channels, of_group):
                end = first + of_group
                parts += [(slice(start, min(start + step, end)), 1) for start in range(first, end, step)]
        return [
            _Block(
                slice(n, min(n + at_once, images)),
                some,
                self._outputs_of(some, number),
                self.window._replace(groups=number),
            )
            for n in range(0, images, at_once)
            for some, number in parts
        ]

    def _outputs_of(self, channels: slice, number: int) -> slice:
        """Return the output channels of ``number`` groups, the first of which contains the first of the channels."""
        groups = self.window.groups
        first, outputs = channels.start // (self.x.shape[1] // groups), self.outputs // groups
        return slice(first * outputs, (first + number) * outputs)

    def parts(self, block: _Block) -> tuple[Tensor, Tensor | None]:
        """Return the splines ``[rows, K, C]`` and the base function ``[rows, C]``, or None, of a block's pixels."""
        x = _pixels(_part(self.x, block.images, block.channels)).to(self.dtype)
        knots, order = self.knots[block.channels], self.derivative
        if self.splines is None:
            return cox_de_boor.features(x, knots, self.basis, order)
        if order > self.basis.order:
            psi = cox_de_boor.splines(x, knots, self.basis.order, order)
        else:
            psi = self.splines(x, knots, self.basis, order)
        return psi, None if self.basis.base == "none" else dense.base_values(x, self.basis, order)

    def features(self, block: _Block, v: Tensor | None = None) -> Tensor:
        """Return the features of a block, times v, as images ``[n, groups * count * C / groups, *size]``."""
        psi, base = self.parts(block)
        if base is not None:
            psi = torch.cat([psi, base.unsqueeze(1)], 1)
        if v is not None:
            psi = psi * _pixels(_part(v, block.images, block.channels)).to(self.dtype).unsqueeze(1)
        groups = block.window.groups
        psi = psi.unflatten(2, (groups, -1)).transpose(1, 2)
        images = block.images.stop - block.images.start
        return psi.reshape(images, *self.x.shape[2:], -1).movedim(-1, 1)

    def upstream(self, g: Tensor, block: _Block) -> Tensor:
        """Return the part of ``g [N, O, *size]`` that belongs to a block, in the working dtype."""
        return _part(g, block.images, block.outputs).to(self.dtype)

    def kernel(self, operands: Operands, block: _Block) -> Tensor:
        """Return the weight of a convolution of features, ``[outputs, count * C / groups, *kernel_size]``."""
        first = block.channels.start
        if first not in self._kernels:
            product = self.basis.matmul_dtype
            weight = cox_de_boor.round_weights(operands.weight[:, block.channels], product, self.dtype)
            if operands.base_weight is not None:
                base = cox_de_boor.round_weights(operands.base_weight[block.channels], product, self.dtype)
                weight = torch.cat([weight, base.unsqueeze(0)])
            self._kernels[first] = _kernel(weight, block.window)
        return self._kernels[first]


def contract_out(
    x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int, window: Window, splines: Splines | None
) -> Tensor:
    """Compute F_d(x, W, v) = y[n,o,p], a sum over b, c and t."""
    call = _Call(x, knots, basis, derivative, window, splines, window.out_channels(operands.weight))
    shape = x.shape[0], call.outputs, *window.out_size(x.shape[2:])
    if x.numel() * math.prod(shape) == 0:
        return x.new_zeros(shape)
    blocks = call.blocks()
    if len(blocks) == 1:
        y = blocks[0].window.convolve(call.features(blocks[0], operands.v), call.kernel(operands, blocks[0]))
        return y.to(x.dtype, memory_format=_memory_format(x))
    y = torch.empty(shape, dtype=call.dtype, device=x.device, memory_format=_memory_format(x))
    for block in blocks:
        part = block.window.convolve(call.features(block, operands.v), call.kernel(operands, block))
        target = y[block.images, block.outputs]
        if block.channels.start % (x.shape[1] // window.groups) == 0:  # the first channels of their groups
            target.copy_(part)
        else:
            target.add_(part)
    return y.to(x.dtype)


def contract_weight(
    x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int, window: Window, splines: Splines | None
) -> tuple[Tensor, Tensor | None]:
    """Compute G_d(x, g, v) = dW[b,c,o,t], a sum over n and p, as a tensor for the splines and one for the base."""
    g = operands.g
    call = _Call(x, knots, basis, derivative, window, splines, g.shape[1])
    last = g.shape[1] // window.groups * window.taps
    if x.numel() * g.numel() == 0:
        dw = x.new_zeros(call.count, x.shape[1], last)
    else:
        blocks = call.blocks()
        dw = torch.empty(0)
        for block in blocks:
            groups, inputs = block.window.groups, (block.channels.stop - block.channels.start) // block.window.groups
            outputs = (block.outputs.stop - block.outputs.start) // groups
            # Only the shape and the layout of the weight matter for the gradient.
            like = g.new_empty(groups * outputs, call.count * inputs, *window.kernel_size, dtype=call.dtype)
            part = block.window.vjp(call.upstream(g, block), call.features(block, operands.v), like, by_weight=True)
            part = part.reshape(groups, outputs, call.count, inputs, -1).permute(2, 0, 3, 1, 4)
            part = part.reshape(call.count, groups * inputs, -1)
            if len(blocks) == 1:
                dw = part
                break
            if block is blocks[0]:
                dw = part.new_zeros(call.count, x.shape[1], last)
            dw[:, block.channels] += part
    number = basis.splines_of(knots)
    # A backend may return NaN for the active splines only, but all splines of an x that is NaN must be NaN.
    spline_dw = dw[:number].masked_fill(dw[:number].isnan().any(0), torch.nan)
    return spline_dw.to(x.dtype), None if basis.base == "none" else dw[number].to(x.dtype)


def contract_in(
    x: Tensor, knots: Tensor, operands: Operands, basis: Basis, derivative: int, window: Window, splines: Splines | None
) -> Tensor:
    """Compute H_d(x, W, g) = h[n,c,q], a sum over b, o and t."""
    call = _Call(x, knots, basis, derivative, window, splines, operands.g.shape[1])
    if x.numel() * operands.g.numel() == 0:
        return torch.zeros_like(x)
    blocks = call.blocks()
    h = None if len(blocks) == 1 else torch.empty_like(x)
    for block in blocks:
        kernel, (psi, base), groups = call.kernel(operands, block), call.parts(block), block.window.groups
        images, channels = block.images.stop - block.images.start, block.channels.stop - block.channels.start
        # Only the shape and the layout of the features matter for the gradient.
        like = psi.new_empty(images, *x.shape[2:], call.count * channels).movedim(-1, 1)
        product = block.window.vjp(call.upstream(operands.g, block), like, kernel, by_weight=False)
        del like
        product = product.movedim(1, -1).reshape(psi.shape[0], groups, call.count, channels // groups)
        of_splines = product if base is None else product[:, :, :-1]
        psi = psi.reshape(psi.shape[0], -1, groups, channels // groups).transpose(1, 2)
        part = (of_splines * psi if splines is None else of_splines.mul_(psi)).sum(2)
        if base is not None:
            part = part + product[:, :, -1] * base.reshape(part.shape)
        part = part.reshape(images, *x.shape[2:], channels).movedim(-1, 1)
        if h is None:
            return part.to(x.dtype, memory_format=_memory_format(x))
        h[block.images, block.channels] = part.to(x.dtype)
    assert h is not None
    return h


CONTRACTIONS: dict[str, Callable] = {"F": contract_out, "G": contract_weight, "H": contract_in}


def _part(x: Tensor, images: slice, channels: slice) -> Tensor:
    """Return some images and channels. Views of batched gradients are avoided, since PyTorch cannot batch slices."""
    if images == slice(0, x.shape[0]) and channels == slice(0, x.shape[1]):
        return x
    return x[images, channels]


def _pixels(x: Tensor) -> Tensor:
    """Return images ``[N, C, *size]`` as rows ``[N * pixels, C]``."""
    return x.movedim(1, -1).flatten(0, -2)


def _kernel(weight: Tensor, window: Window) -> Tensor:
    """Return weights ``[P, C, O / groups * taps]`` as the kernel ``[O, groups' P C, *kernel_size]`` of features."""
    count, channels, _ = weight.shape
    weight = weight.reshape(count, window.groups, channels // window.groups, -1, window.taps).permute(1, 3, 0, 2, 4)
    outputs = window.groups * weight.shape[1]
    return weight.reshape(outputs, count * channels // window.groups, *window.kernel_size)


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of x, which the result also gets, as in ``torch.nn.Conv2d``."""
    for dimensions, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.ndim == dimensions and not x.is_contiguous() and x.is_contiguous(memory_format=layout):
            return layout
    return torch.contiguous_format
