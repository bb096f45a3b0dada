"""Read-only views of a network's layers under pykan's names and in pykan's order of dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layers.edge_functions import mask_of
from ..layers.function_library import SYMBOLIC_LIB
from ..layers.linear import KANLinear
from ..layers.symbolic import SymbolicEdges

if TYPE_CHECKING:
    from ..network.core import Network


class ActFun:
    """A view of the splines and base functions of one layer, with the attribute names of pykan's ``KANLayer``.

    Some properties return copies, and values that are written into a copy do not reach the network. To change the
    network, write to ``model.layers`` or use the methods of :class:`KAN`.

    Attributes:
        in_dim, out_dim: the number of inputs and the number of outputs.
        num: the number of intervals of the grid.
        k: the order of the splines.
        base_fun: the name of the base function.

    Example:
        >>> KAN([2, 5, 1], grid=4, seed=0).act_fun[0].coef.shape
        torch.Size([2, 5, 7])
    """

    def __init__(self, layer: KANLinear) -> None:
        self._layer = layer
        self.in_dim, self.out_dim = layer.in_features, layer.out_features
        self.num, self.k = layer.grid_size, layer.spline_order
        self.base_fun = layer.base

    @property
    def grid(self) -> Tensor:
        """The knots ``[in, G + 2k + 1]``."""
        return self._layer.knots

    @property
    def coef(self) -> Tensor:
        """The coefficients ``[in, out, G + k]`` of the splines."""
        return self._layer.spline_weight.permute(1, 2, 0)

    @property
    def scale_base(self) -> Tensor:
        """The weights ``[in, out]`` of the base function, or zeros if the layer has no base function."""
        weight = self._layer.base_weight
        return self._layer.spline_weight.new_zeros(self.in_dim, self.out_dim) if weight is None else weight

    @property
    def scale_sp(self) -> Tensor:
        """The scales ``[in, out]`` of the splines, or ones if the layer has no scales."""
        scale = self._layer.spline_scale
        return self._layer.spline_weight.new_ones(self.in_dim, self.out_dim) if scale is None else scale

    @property
    def mask(self) -> Tensor:
        """A copy of the mask ``[in, out]``, which is 1 for edges that are on and 0 for edges that are off."""
        return mask_of(self._layer).to(self._layer.spline_weight.dtype)

    def __repr__(self) -> str:
        return f"ActFun(in_dim={self.in_dim}, out_dim={self.out_dim}, num={self.num}, k={self.k})"


class SymbolicFun:
    """A view of the formulas of one layer, with the attribute names of pykan's ``Symbolic_KANLayer``.

    All attributes are copies. To change the network, use :meth:`KAN.fix_symbolic` or ``model.symbolic``. In the shapes,
    outputs come before inputs, as in pykan.

    Attributes:
        in_dim, out_dim: the number of inputs and the number of outputs.
        mask: a mask ``[out, in]``, which is 1 for edges that are formulas and 0 for other edges.
        affine: the numbers (a, b, c, d) ``[out, in, 4]`` of the formulas c f(a x + b) + d.
        funs_name: for each output, a list of the names of the functions on its edges. The name is ``"0"`` for an edge
            without a formula.
        funs, funs_sympy: nested lists like ``funs_name``, with functions of tensors and functions of sympy expressions
            in place of the names.

    Example:
        >>> model = KAN([1, 2], seed=0)
        >>> model.fix_symbolic(0, 0, 1, "sin", fit_params_bool=False)
        >>> model.symbolic_fun[0].funs_name
        [['0'], ['sin']]
    """

    def __init__(self, symbolic: SymbolicEdges) -> None:
        self.in_dim, self.out_dim = symbolic.in_features, symbolic.out_features
        shape = self.out_dim, self.in_dim
        self.mask = symbolic.affine.new_zeros(shape)
        self.affine = symbolic.affine.new_zeros(*shape, 4)
        self.funs_name = [["0"] * self.in_dim for _ in range(self.out_dim)]
        with torch.no_grad():
            for edge, row in zip(symbolic.edges, symbolic.affine):
                self.mask[edge.j, edge.i] = 1
                self.affine[edge.j, edge.i] = row
                self.funs_name[edge.j][edge.i] = edge.name
        self.funs = [[SYMBOLIC_LIB[name].fun for name in names] for names in self.funs_name]
        self.funs_sympy = [[SYMBOLIC_LIB[name].sympy_fun for name in names] for names in self.funs_name]

    def __repr__(self) -> str:
        return f"SymbolicFun(in_dim={self.in_dim}, out_dim={self.out_dim}, funs_name={self.funs_name})"


def act_fun(model: Network) -> list[ActFun]:
    """The read-only views of the splines and base functions of each layer, under pykan's names."""
    return [ActFun(layer) for layer in model.layers]


def symbolic_fun(model: Network) -> list[SymbolicFun]:
    """The read-only views of the formulas of each layer, under pykan's names."""
    return [SymbolicFun(symbolic) for symbolic in model.symbolic]
