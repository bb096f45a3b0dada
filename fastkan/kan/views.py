"""A network's layers as pykan names and orders what is in them, for reading."""

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
    """The numeric edges of one layer, as ``act_fun`` of pykan has them.

    What a property gives is made when it is asked for, so writing into it is lost where it is a copy: change
    ``model.layers`` instead, or use the methods of :class:`KAN`.

    Attributes:
        in_dim, out_dim, num, k: inputs, outputs, intervals of the grid, and order.

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
        """The knots, ``[in, G + 2k + 1]``."""
        return self._layer.knots

    @property
    def coef(self) -> Tensor:
        """Coefficients of the splines, ``[in, out, G + k]``."""
        return self._layer.spline_weight.permute(1, 2, 0)

    @property
    def scale_base(self) -> Tensor:
        """Weights of the base function, ``[in, out]``; zeros where there is none."""
        weight = self._layer.base_weight
        return self._layer.spline_weight.new_zeros(self.in_dim, self.out_dim) if weight is None else weight

    @property
    def scale_sp(self) -> Tensor:
        """Scales of the splines, ``[in, out]``; ones where there are none."""
        scale = self._layer.spline_scale
        return self._layer.spline_weight.new_ones(self.in_dim, self.out_dim) if scale is None else scale

    @property
    def mask(self) -> Tensor:
        """Which edges are on, ``[in, out]`` of 0 and 1, a copy."""
        return mask_of(self._layer).to(self._layer.spline_weight.dtype)

    def __repr__(self) -> str:
        return f"ActFun(in_dim={self.in_dim}, out_dim={self.out_dim}, num={self.num}, k={self.k})"


class SymbolicFun:
    """The edges of one layer that are formulas, as ``symbolic_fun`` of pykan has them: outputs first.

    All are copies; :meth:`KAN.fix_symbolic` and ``model.symbolic`` change the model.

    Attributes:
        in_dim, out_dim: inputs and outputs.
        mask: which edges are formulas, ``[out, in]`` of 0 and 1.
        affine: (a, b, c, d) of each, ``[out, in, 4]``.
        funs_name: their names, ``"0"`` where there is none, a list for each output.
        funs, funs_sympy: the same as functions of tensors, and of sympy expressions.

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
    """The numeric edges of each layer, as pykan names and orders what is in them, for reading."""
    return [ActFun(layer) for layer in model.layers]


def symbolic_fun(model: Network) -> list[SymbolicFun]:
    """The edges that are formulas, of each layer, as pykan names and orders what is in them, for reading."""
    return [SymbolicFun(symbolic) for symbolic in model.symbolic]
