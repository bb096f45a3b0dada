"""The class ``KANLinear``, which is a KAN layer as a PyTorch module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

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

from ..functional import OUTSIDE, forward, kan_linear, rows_of
from . import grid
from .distributed import (
    GROUP,
    broadcast,
    check_every_rank,
    check_not_sharded,
    gather_samples,
    local,
    on_every_rank,
)
from .from_splines import from_splines
from .grid import MARGIN
from .init import Initialization, assign
from .regularization_loss import regularization_loss
from .tracing import call_as_leaf, leaf
from .value_cache import KnotMetadata

# The remedy in error messages about layers whose tensors are distributed over processes.
BEFORE_SHARDING = (
    "Call it before fully_shard or parallelize_module, or on a full copy of the model, whose state "
    "torch.distributed.checkpoint.state_dict.set_model_state_dict loads into the distributed model"
)


class KANLinear(nn.Module):
    """A Kolmogorov-Arnold layer, which has a learned function for each edge where ``nn.Linear`` has a weight.

        y[..., o] = sum_i phi_io(x[..., i]) (+ bias[o])
        phi_io(x) = (spline_scale_io) sum_b spline_weight[b,i,o] B_b(x) + base_weight[i,o] silu(x)

    The layer follows equations 2.10 to 2.12 of Liu et al., KAN: Kolmogorov-Arnold Networks, 2024. The scales are
    optional.

    Args:
        in_features: the size of the last dimension of the inputs.
        out_features: the size of the last dimension of the outputs.
        grid_size: the number of grid intervals G.
        spline_order: the order k of the splines, from 1 to 5. Splines of order 3 are cubic.
        grid_range: the two ends of the grid, in the units of the inputs.
        base: the function that is added to the spline: ``"silu"``, ``"gelu"``, ``"identity"`` or ``"none"``.
        bias: whether to add a learned bias ``[out]``.
        spline_scale: whether each edge has a trainable factor that multiplies its spline.
        outside: how splines continue outside the grid. With ``"zero"``, a spline falls to zero over the outer knots.
            With ``"linear"``, a spline continues along its tangent.
        device: the device of the parameters.
        dtype: the dtype of the parameters. The knots of a float16 or bfloat16 layer are float32.

    Attributes:
        spline_weight: the spline coefficients ``[G + k, in, out]``.
        base_weight: the weights ``[in, out]`` of the base function, or None if ``base="none"``.
        spline_scale: the factors ``[in, out]`` of the splines, or None.
        bias: the bias ``[out]``, or None.
        knots: a buffer ``[in, G + 2k + 1]`` with the knots, which should be changed by :meth:`set_knots`,
            :meth:`update_grid` or :meth:`refine`. If code writes into the buffer directly, for example to broadcast or
            average models, the new knots take effect at the next eager call. On a GPU, after a write that the version
            counter does not record, such as a write through ``.data``, one call returns NaN first. Compiled code
            returns NaN after a direct write until ``layer.set_knots(layer.knots)`` is called.
        mask: a buffer ``[in, out]`` with the values 0 and 1, or None; see :meth:`set_mask`.

    Raises:
        TypeError, ValueError: if a size, order or range is invalid, or a name is unknown.

    Example:
        >>> layer = KANLinear(2, 5)
        >>> layer(torch.rand(8, 2)).shape
        torch.Size([8, 5])
    """

    knots: Tensor
    mask: Tensor | None
    _outside_count: Tensor | None
    _frozen: frozenset[str] = frozenset()  # The names of the parameters that _freeze_if_idle has frozen.
    _initialization = Initialization()  # The distribution of the initial parameters; networks set their own.

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
        check_knots(knots, spline_order)  # A narrow range can have width 0 after rounding to the dtype.
        self.in_features = in_features
        self.out_features = out_features
        self.spline_order = spline_order
        self.base = base
        self.outside = outside
        self._grid_range = grid_range  # The method _initial_knots() needs the initial range.

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
        # The counts are no buffer, because DistributedDataParallel overwrites the buffers of all ranks but the first.
        self._outside_count = None
        self.reset_parameters()

    @property
    def basis(self) -> Basis:
        """The basis of the layer: the spline order, the base function and, for uniform knots, origin and spacing."""
        return self._known.basis(local(self.knots))

    @property
    def grid_size(self) -> int:
        """The number of grid intervals G."""
        return self.knots.shape[1] - 2 * self.spline_order - 1

    @property
    def grid(self) -> Tensor:
        """The knots ``[in, G + 2k + 1]``, under the name that other packages use."""
        return self.knots

    from_splines: Any = classmethod(from_splines)
    regularization_loss = regularization_loss

    def reset_parameters(self) -> None:
        """Reset the layer to the state of a new layer: draw new parameters from the random number generator of PyTorch,
        move the knots to their initial positions, and remove the mask.

        The number of grid intervals stays as it is. The base weight has the distribution of the initial weight of
        ``nn.Linear``. Each spline interpolates small random values at the G + 1 knots of the grid. All scales are 1,
        and the bias is 0. In a :class:`KAN`, layers have the distribution that is documented there instead, and the
        base weight of a convolution has that of PyTorch's convolution. If inputs outside the grid are counted, the
        counts start again at 0.

        After the call, no value of the layer depends on the memory that the layer had before. A layer that was
        constructed on the device ``"meta"`` and then given memory is therefore ready after this call. If
        ``fully_shard`` has distributed the parameters, the values of the first process are used.

        Raises:
            RuntimeError: if the layer is distributed over processes by ``parallelize_module``, or if a weight is no
                parameter of the layer, because a parametrization or pruning computes the weight. The layer is unchanged
                in these cases.
        """
        self._reset(None)

    def _reset(self, generator: torch.Generator | None) -> None:
        """Do what :meth:`reset_parameters` documents, with random numbers from a generator of the CPU, or from the
        global generator if ``generator`` is None."""
        self._check_resettable()
        self.set_mask(None)
        if self._outside_count is not None:
            self.count_outside()
        self._write_knots(self._initial_knots())
        self._draw_parameters(generator)

    def _check_resettable(self) -> None:
        """Raise an error if :meth:`reset_parameters` cannot write all tensors of the layer."""
        check_not_sharded("reset_parameters", [("knots", self.knots)], BEFORE_SHARDING)
        self._check_own_parameters("reset_parameters", ("spline_weight", "base_weight", "spline_scale", "bias"))

    @torch.no_grad()
    def _draw_parameters(self, generator: torch.Generator | None) -> None:
        """Draw new parameters for the current knots, as :meth:`_reset` does."""
        if self.spline_weight.is_meta:
            return
        initial, knots, (_, inputs, outputs) = self._initialization, self.knots, self.spline_weight.shape
        if self.spline_weight.numel():
            assign(self.spline_weight, initial.spline_weight(knots, self.spline_order, outputs, generator))
            if self.base_weight is not None:
                assign(self.base_weight, initial.base_weight(inputs, outputs, knots.device, generator))
            if self.spline_scale is not None:
                self.spline_scale.fill_(initial.spline_scale(inputs))
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs ``[..., out_features]`` for the inputs ``x [..., in_features]``.

        The outputs have the dtype of x. Under autocast they have the dtype of autocast, as the outputs of ``nn.Linear``
        do, which halves the memory of activations. The features are computed from x without rounding x, and are rounded
        before the matrix product.

        If ``torch.fx`` traces a module that contains the layer, the graph calls the layer and follows all changes. If
        the layer itself is traced, the graph has its tensors, and follows only values that are written into them, as
        optimizers, ``set_knots`` and ``update_grid`` do, but no tensors that are replaced, as by ``set_mask`` and
        ``refine``.

        Raises:
            TypeError, ValueError: if x has the wrong shape, dtype or device.
        """
        if isinstance(x, Proxy):
            return self._traced(x)
        knots = self.knots  # The attribute is read only once, because another thread may replace the knots.
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

    def _traced(self, x: Proxy) -> Any:
        """Record a call in the graph of ``torch.fx``. If the layer is the root, the knots are read at every call."""
        called = call_as_leaf(self, x)
        if called is not None:
            return called
        names = ("knots", "spline_order", "base", "bias", "spline_scale", "mask", "outside")
        options = {name: getattr(self, name) for name in names}
        return traced_kan_linear(x, self.spline_weight, self.base_weight, **options)

    # -- knots and masks ------------------------------------------------------------------------

    @torch.inference_mode(False)
    def set_knots(self, knots: Tensor) -> None:
        """Replace the knots and keep the coefficients, so that the edge functions change.

        Args:
            knots: the new knots ``[in, G + 2k + 1]``, in the units of the inputs, non-decreasing in each row.

        Raises:
            TypeError, ValueError: if ``knots`` has the wrong shape or is not finite, or if a row of ``knots`` decreases
                or spans no interval. The layer is unchanged in these cases.
            RuntimeError: if the knots are distributed over processes by ``parallelize_module``.
        """
        check_not_sharded("set_knots", [("knots", self.knots)], BEFORE_SHARDING)
        check_knots(knots, self.spline_order)
        check_shape("knots", knots, tuple(self.knots.shape))
        if knots.is_meta and not self.knots.is_meta:
            raise ValueError(f"knots must have values, got a tensor on meta for a layer on {self.knots.device}")
        rounded = knots.detach().to(self.knots)
        check_knots(rounded, self.spline_order)
        self._write_knots(rounded)

    @checked(grid_eps=SHARE, margin=SHARE, group=GROUP)
    @torch.inference_mode(False)
    @torch.no_grad()
    def update_grid(
        self,
        x: Tensor,
        *,
        grid_eps: float = 0.02,
        margin: float = MARGIN,
        sample_weight: Tensor | None = None,
        group: Any = None,
    ) -> None:
        """Adapt the knots to samples, and refit the splines by least squares to preserve the edge functions.

        Args:
            x: the samples ``[..., in_features]``, which must be finite. If all samples of an input are equal, the knots
                of the input do not change.
            grid_eps: the weight of evenly spaced points in the new knots. With 0, the knots are at the quantiles of the
                samples. With 1, the knots are evenly spaced over the range of the samples. Values between 0
                and 1 interpolate linearly.
            margin: the distance by which the evenly spaced grid extends beyond the samples at each end, as a
                share of the range.
            sample_weight: weights of the samples, a tensor with the shape of ``x`` without the last dimension. A sample
                of weight 2 counts as two samples, and a sample of weight 0 is ignored.
            group: the process group, usually ``torch.distributed.group.WORLD``, whose ranks all call the method, each
                with its own samples, of which a rank may have none. The samples of all ranks are used, or a selection
                of 10,000 if there are more, and all ranks get the same knots and coefficients. If None, only the
                samples of this process are used. A group cannot be combined with weights.

        Raises:
            TypeError, ValueError: if the samples or their weights have the wrong shape, are empty or are not finite, if
                weights are negative or all 0, if weights are passed together with a group, or if the layers of the
                ranks have different sizes or dtypes. The layer is unchanged in these cases, on all ranks of the
                group.
            RuntimeError: if ``torch.distributed`` runs several processes and ``group`` is None, or if the parameters
                are distributed over processes by ``fully_shard`` or ``parallelize_module``.

        Example:
            >>> layer = KANLinear(2, 5)
            >>> layer.update_grid(torch.randn(1000, 2))
            >>> layer
            KANLinear(2, 5, grid_size=5, spline_order=3, knots=adapted)
        """

        def read() -> dict[str, Any]:
            self._check_own_splines("update_grid")
            if sample_weight is not None and group is not None:
                raise ValueError("sample_weight and group cannot be combined: one of them must be None")
            return {"spline_weight": self.spline_weight, "knots": self.knots}

        check_every_rank("update_grid", read, group)
        samples = gather_samples("update_grid", lambda: self._samples(x, may_be_empty=group is not None), group)
        adapted = on_every_rank(lambda: self._adapted(samples, grid_eps, margin, sample_weight), group)
        self._write_splines(*adapted)
        broadcast([self.spline_weight, self.knots], group)

    def _adapted(
        self, samples: Tensor, grid_eps: float, margin: float = MARGIN, sample_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the coefficients and the knots that :meth:`update_grid` sets for samples ``[N, in_features]``."""
        if sample_weight is not None:
            sample_weight = grid.read_sample_weight(sample_weight, len(samples)).to(samples.device)
            samples, sample_weight = samples[sample_weight > 0], sample_weight[sample_weight > 0]
        knots = grid.adapted_knots(
            samples, self.knots, self.spline_order, self.grid_size, grid_eps, margin, sample_weight
        ).to(self.knots.dtype)
        check_knots(knots, self.spline_order)
        old = self.spline_weight, self.knots
        return grid.refit(*old, knots, self.spline_order, samples, self.outside, sample_weight), knots

    update_grid_from_samples = update_grid  # the name in pykan

    @checked(grid_size=Int(least=1), group=GROUP)
    @torch.inference_mode(False)
    @torch.no_grad()
    def refine(self, grid_size: int, x: Tensor | None = None, *, group: Any = None) -> None:
        """Change the number of grid intervals, and preserve the edge functions.

        If the new size is a multiple of the current size and all samples lie on the grid, the grid is divided evenly:
        the edge functions are exactly the same on the grid, and equally spaced knots stay equally spaced, on which a
        layer with many edges is faster. For any other size that is not smaller, and without samples, all current knots
        are kept, including the outer knots, and knots are inserted between them where the samples are: the edge
        functions are exactly the same everywhere. A layer with ``outside="linear"`` needs no samples for an even
        division, after which its functions are the same everywhere. If the new size is smaller than the current size,
        the splines are refitted by least squares.

        Since ``spline_weight`` is replaced by a new parameter, an optimizer must be constructed after the call.

        Args:
            grid_size: the new number of grid intervals G.
            x: samples ``[..., in_features]`` of the inputs. If None, knots are inserted in the whole grid, and a refit
                uses points spread evenly over the grid.
            group: the process group whose samples are used, as in :meth:`update_grid`. Without samples, no group is
                needed.

        Raises:
            TypeError, ValueError: if ``grid_size`` is below 1, the samples are invalid as in :meth:`update_grid`, or
                the layers of the ranks or their ``grid_size`` differ.
            RuntimeError: if samples are given without a group while ``torch.distributed`` runs several processes, or
                if the parameters are distributed over processes.

        Example:
            >>> layer = KANLinear(2, 5)
            >>> layer.refine(20)
            >>> layer.spline_weight.shape
            torch.Size([23, 2, 5])
        """

        def read() -> dict[str, Any]:
            self._check_own_splines("refine")
            same = {"grid_size": grid_size, "kind of x": "None" if x is None else "samples"}
            return {"spline_weight": self.spline_weight, "knots": self.knots, **same}

        check_every_rank("refine", read, group)
        old = self.spline_weight, self.knots, self.spline_order
        if x is None:
            return self._write_splines(*grid.refine(*old, grid_size, None, self.outside))
        samples = gather_samples("refine", lambda: self._samples(x, may_be_empty=group is not None), group)
        refined = on_every_rank(lambda: grid.refine(*old, grid_size, samples, self.outside), group)
        self._write_splines(*refined)
        broadcast([self.spline_weight, self.knots], group)

    @torch.inference_mode(False)
    @torch.no_grad()
    def set_mask(self, mask: Tensor | None) -> None:
        """Switch off the edges where ``mask [in, out]`` is 0. If ``mask`` is None, remove the mask.

        Raises:
            TypeError, ValueError: if the mask has the wrong shape, or contains values other than 0 and 1.
            RuntimeError: if the knots are distributed over processes by ``parallelize_module``.
        """
        check_not_sharded("set_mask", [("knots", self.knots)], BEFORE_SHARDING)
        if mask is None:
            self.mask = None
            return self._unfreeze_if_active()
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a torch.Tensor or None, got {type(mask).__name__}")
        if mask.is_meta and not self.spline_weight.is_meta:
            raise ValueError(f"mask must have values, got a tensor on meta for a layer on {self.spline_weight.device}")
        self._check_mask(mask)
        self.mask = mask.detach().to(self.spline_weight, copy=True)
        self._unfreeze_if_active()

    def _freeze_if_idle(self) -> None:
        """Set ``requires_grad=False`` on all parameters if the mask switches off every edge.

        A network does not call a layer in which formulas have replaced all splines, so the parameters of the layer get
        no gradients. DistributedDataParallel and ``torch.autograd.grad`` raise an error for parameters that require a
        gradient but get none. The names of the changed parameters are stored, so that :meth:`_unfreeze_if_active` can
        restore ``requires_grad=True``.
        """
        self._unfreeze_if_active()
        if self._is_idle():
            trained = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
            for name in trained:
                self.get_parameter(name).requires_grad_(False)
            self._frozen |= set(trained)

    def _unfreeze_if_active(self) -> None:
        """Set ``requires_grad=True`` on the frozen parameters if at least one edge is on."""
        if self._frozen and not self._is_idle():
            for name in self._frozen:
                self.get_parameter(name).requires_grad_(True)
            self._frozen = frozenset()

    def _is_idle(self) -> bool:
        return self.mask is not None and not self.mask.is_meta and not bool(self.mask.any())

    # -- inputs outside the grid ----------------------------------------------------------------

    @checked(enabled=FLAG)
    @torch.inference_mode(False)
    def count_outside(self, enabled: bool = True) -> None:
        """Start or stop counting the input values that lie outside the grid.

        The counts are reset to 0 when counting starts. Values in calls under a ``torch.func`` transform or an export
        are not counted.

        Raises:
            RuntimeError: if the knots are distributed over processes by ``parallelize_module``.
        """
        check_not_sharded("count_outside", [("knots", self.knots)], BEFORE_SHARDING)
        counters = self.in_features + 1  # The last counter counts the rows.
        self._outside_count = torch.zeros(counters, dtype=torch.int64, device=self.knots.device) if enabled else None

    def outside_share(self) -> Tensor:
        """Return the share ``[in]`` of values outside the grid for each input, since the call of :meth:`count_outside`.

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
        if self._outside_count.device != self.knots.device:  # fully_shard moves buffers without a call of _apply().
            self._outside_count = self._outside_count.to(self.knots.device)
        limits = grid.interior(self.knots, self.spline_order)
        rows = rows_of(x, self.in_features).detach()
        inside = (rows >= limits[:, 0]) & (rows <= limits[:, -1])
        self._outside_count[:-1] += (~inside).sum(0)
        self._outside_count[-1] += len(rows)

    # -- plumbing -------------------------------------------------------------------------------

    def _samples(self, x: Tensor, may_be_empty: bool = False) -> Tensor:
        rows = rows_of(x, self.in_features).detach()
        if len(rows) == 0 and not may_be_empty:
            raise ValueError("x must have at least one sample, got none")
        if x.device != self.knots.device:
            raise ValueError(f"x is on {x.device}, but the layer is on {self.knots.device}")
        check_finite("x", rows)
        return rows

    def _check_mask(self, mask: Tensor) -> None:
        check_tensor("mask", mask, any_dtype=True)
        check_shape("mask", mask, (self.in_features, self.out_features))
        values = local(mask)
        if not mask.is_meta and not bool(((values == 0) | (values == 1)).all()):
            raise ValueError("mask must hold 0 and 1 only")

    def _check_not_sharded(self, what: str) -> None:
        """Raise a RuntimeError, which names the calling method, if tensors are distributed over processes."""
        named = [*self._parameters.items(), ("knots", self.knots)]
        check_not_sharded(what, named, BEFORE_SHARDING)

    def _check_own_splines(self, what: str) -> None:
        self._check_not_sharded(what)
        self._check_own_parameters(what, ("spline_weight",))

    def _check_own_parameters(self, what: str, names: tuple[str, ...]) -> None:
        """Raise a RuntimeError if one of the weights is computed, because values written into it would be lost."""
        for name in names:
            if self._parameters.get(name) is None and getattr(self, name) is not None:
                raise RuntimeError(
                    f"{name} is no parameter of the layer itself: something (a parametrization, pruning) computes it. "
                    f"Remove that, call {what}, and put it back"
                )

    def _write_splines(self, weight: Tensor, knots: Tensor) -> None:
        """Set the coefficients ``weight [G + k, in, out]`` and the knots, in place if their shapes do not change."""
        weight = weight.to(self.spline_weight.dtype).contiguous()
        if weight.shape == self.spline_weight.shape:
            self.spline_weight.copy_(weight)
        else:
            trained = self.spline_weight.requires_grad
            self.spline_weight = nn.Parameter(weight, requires_grad=trained)
        self._write_knots(knots)

    def _initial_knots(self) -> Tensor:
        """Return uniform knots for the grid range that was passed to the constructor."""
        sizes = self.in_features, self.grid_size, self.spline_order
        return uniform_knots(*sizes, self._grid_range, dtype=self.knots.dtype, device=self.knots.device)

    @torch.no_grad()
    def _write_knots(self, knots: Tensor) -> None:
        own = self.knots
        if own.shape == knots.shape and not (own.is_meta or own.is_inference()):
            # Knots and weights are both changed in place, so that modules that share both stay consistent.
            own.copy_(knots)
        else:
            self.knots = knots.detach().to(own, copy=True).contiguous()
        self._known.look(local(self.knots))

    def _apply(self, fn, recurse=True):
        before = self.knots
        super()._apply(fn, recurse)
        if self._outside_count is not None:
            self._outside_count = fn(self._outside_count)
        if self.knots.dtype != _knots_dtype(self.knots.dtype):  # Half precision is too coarse for knots.
            self.knots = before.to(self.knots.device, _knots_dtype(self.knots.dtype))
        if before.is_meta and not self.knots.is_meta:  # The method to_empty() leaves memory uninitialised.
            self.knots = self._initial_knots()
        if self.knots.dtype != before.dtype or self.knots.device != before.device:
            self._known.look(local(self.knots))
        return self

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        knots, mask = state_dict.get(prefix + "knots"), state_dict.get(prefix + "mask")
        try:
            if isinstance(knots, Tensor):
                check_knots(local(knots), self.spline_order)
            if isinstance(mask, Tensor) and mask.shape != (self.in_features, self.out_features):
                raise ValueError(f"mask: {[self.in_features, self.out_features]} expected, got {list(mask.shape)}")
            if mask is not None:
                self._check_mask(mask)
        except (TypeError, ValueError) as error:
            errors.append(f"{prefix}{error}")
            return
        if mask is None and knots is not None:  # The state was saved while the layer had no mask.
            self.mask = None
        elif mask is not None and self.mask is None:
            self.mask = torch.ones_like(mask, device=self.knots.device)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        self._known.look(local(self.knots))
        self._unfreeze_if_active()

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
        if not (self._known.awaits_values or self.basis.uniform):
            parts.append("knots=adapted")
        if self.mask is not None:
            parts.append("masked=True")
        return ", ".join(parts)


@leaf
def traced_kan_linear(x: Any, weight: Tensor, base_weight: Tensor | None, **options: Any) -> Any:
    """Call :func:`kan_linear` in a graph of ``torch.fx``."""
    return kan_linear(x, weight, base_weight, **options)


def _knots_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
