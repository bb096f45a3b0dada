"""``kanpiler``: compilation of a formula into a network that computes the formula.

A function f of one argument is compiled to an edge ``c f(a x + b) + d``, whose parameters are the constants inside and
outside of the function. A sum is compiled to a sum node, and a product is compiled to a multiplication node with one
subnode for each factor. A value that is needed in a later layer is passed on by edges with the identity function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch

from fastkan_kernels import FLAG, ORDER, Int, OneOrEach, Optional, checked

from ...kan import KAN
from ...layers.function_library import IDENTITY
from ...symbolic.variables import EXPRESSION, VARIABLES, in_library, library_name, naming, real_number

MAX_POWER = 5  # highest power of x and of 1/x in the library
ROOTS = {Fraction(1, 2): "sqrt", Fraction(-1, 2): "1/sqrt(x)", Fraction(3, 2): "x^1.5"}


class Link(NamedTuple):
    """An edge ``c f(a x + b) + d`` that starts in the node ``source``. A node is identified by its expression."""

    source: Any
    name: str
    affine: tuple[float, float, float, float]


class Plan(NamedTuple):
    """The plan of a node, whose value is the product of its subnodes, plus ``bias``. The value of a subnode is the sum
    of its links."""

    subnodes: list[list[Link]]
    bias: float = 0.0


@checked(
    input_variables=VARIABLES,
    expr=EXPRESSION,
    grid=OneOrEach(Int(least=1)),
    k=OneOrEach(ORDER),
    auto_save=Optional(FLAG),
)
def kanpiler(
    input_variables: Sequence[Any], expr: Any, grid: int = 5, k: int = 3, auto_save: bool | None = None, **options: Any
) -> KAN:
    """Compile a formula into a network that computes the formula.

    The edges that are needed for the formula are symbolic. All other edges are off, and their splines can be switched
    on by :meth:`KAN.perturb`.

    Args:
        input_variables: list of sympy symbols, one for each column of the input.
        expr: a sympy expression in ``input_variables``. Every function in the expression must be in the library or must
            be expressible by functions in the library, as powers are. Functions can be added to the library by
            :func:`add_symbolic`.
        grid, k: number of grid intervals, and order of the splines.
        auto_save, options: further arguments of :class:`KAN`.

    Raises:
        TypeError, ValueError: if the expression contains other symbols, functions that are not in the library, or
            numbers that are not real.

    Example:
        >>> import sympy
        >>> x, y = sympy.symbols("x y")
        >>> model = kanpiler([x, y], sympy.exp(sympy.sin(sympy.pi * x) + y**2))
        >>> model
        KAN(width=[2, 1, 1], grid=5, k=3), 3 edges symbolic
        >>> round(model(torch.tensor([[0.5, 1.0]])).item(), 4)
        7.3891
    """
    variables = list(input_variables)
    unknown = sorted(map(str, expr.free_symbols - set(variables)))
    if unknown:
        raise ValueError(f"expr must contain only the input_variables {', '.join(map(str, variables))}, "
                         f"but has {', '.join(unknown)}")  # fmt: skip
    if not variables or len(set(variables)) < len(variables):
        raise ValueError(f"input_variables must be different symbols, at least one, got {variables}")
    network = _Network(variables)
    with naming("expr"):
        network.output(expr)
    model = KAN(network.width(), grid=grid, k=k, mult_arity=network.arities(), auto_save=bool(auto_save), **options)
    network.write(model)
    return model


class _Network:
    """The layers of nodes that compute an expression. The layers are planned from the output to the inputs.

    Attributes:
        variables: list of the symbols of the inputs.
        plans: dictionary from the expression of each node to the plan of the node.
        heights: dictionary from the expression of each node to the index of the first layer in which the node can be
            placed. The height of an input is 0.
        layers: for each layer, a dictionary from the expression of each node to the plan of the node. The plan of an
            input is None.
    """

    def __init__(self, variables: list[Any]) -> None:
        self.variables = variables
        self.plans: dict[Any, Plan] = {}
        self.heights: dict[Any, int] = dict.fromkeys(variables, 0)
        self.layers: list[dict[Any, Plan | None]] = []

    def output(self, expression: Any) -> None:
        """Plan all nodes that are needed for an expression, and place the nodes in layers."""
        import sympy

        # A node needs at least one edge, so a constant is compiled to the parameter d of an edge with the function 0.
        if expression.is_number:
            value = real_number(expression)
            target: Any = sympy.Dummy()
            self._add(target, Plan([[Link(self.variables[0], "0", (1.0, 0.0, 1.0, value))]]))
        else:
            target, scale, bias = _split_affine(expression)
            self._plan(target)
            plan = self.plans.get(target) or Plan([[Link(target, "x", IDENTITY)]])
            target, (first, *others) = sympy.Dummy(), plan.subnodes
            if others:
                self._add(target, Plan([_scale_links(first, scale, 0.0), *others], bias))
            else:
                self._add(target, Plan([_scale_links(first, scale, bias)]))
        height = self.heights[target]
        self.layers = [{} for _ in range(height + 1)]
        self.layers[0] = dict.fromkeys(self.variables)
        self.layers[height][target] = self.plans[target]
        for layer in range(height, 1, -1):
            needed = [link.source for plan in self.layers[layer].values() if plan for subnode in plan.subnodes
                      for link in subnode]  # fmt: skip
            for source in dict.fromkeys(needed):
                lifted = self.heights[source] < layer - 1
                self.layers[layer - 1][source] = Plan([[Link(source, "x", IDENTITY)]]) if lifted else self.plans[source]

    def width(self) -> list[list[int]]:
        """Return the numbers ``[sums, multiplications]`` of sum nodes and of multiplication nodes in each layer."""
        return [list(map(len, self._kinds(layer))) for layer in range(len(self.layers))]

    def arities(self) -> list[list[int]]:
        """Return a list for each layer with the number of factors of each multiplication node."""
        counts = ([len(plan.subnodes) for plan in nodes.values() if plan] for nodes in self.layers)
        return [[count for count in layer if count > 1] for layer in counts]

    def _kinds(self, layer: int) -> tuple[list[Any], list[Any]]:
        nodes = self.layers[layer]
        products = [key for key, plan in nodes.items() if plan and len(plan.subnodes) > 1]
        return [key for key in nodes if key not in products], products

    @torch.no_grad()
    def write(self, model: KAN) -> None:
        """Set the edges and biases of a network according to the plans, and switch all other edges off."""
        kinds = map(self._kinds, range(len(self.layers)))
        numbers = [{key: number for number, key in enumerate([*sums, *products])} for sums, products in kinds]
        for layer in model.layers:
            layer.set_mask(torch.zeros(layer.in_features, layer.out_features))
        for layer in range(model.depth):
            groups = model.architecture.factors(layer + 1)
            for key, node in numbers[layer + 1].items():
                plan = self.layers[layer + 1][key]
                assert plan is not None
                for subnode, links in zip(groups[node], plan.subnodes):
                    for link in links:
                        model.symbolic[layer].fix(numbers[layer][link.source], subnode, link.name, link.affine)
                model.node_bias[layer][node] = plan.bias

    # -- planning ----------------------------------------------------------------------------------

    def _plan(self, expression: Any) -> None:
        """Plan the node of an expression, unless the node has already been planned."""
        if expression in self.heights:
            return
        factors = expression.args if expression.is_Mul else [expression]
        self._add(expression, Plan([self._sum_of(each.args if each.is_Add else [each]) for each in factors]))

    def _add(self, key: Any, plan: Plan) -> None:
        self.plans[key] = plan
        self.heights[key] = 1 + max(self.heights[link.source] for subnode in plan.subnodes for link in subnode)

    def _sum_of(self, terms: Sequence[Any]) -> list[Link]:
        """Return a list of links whose sum equals the sum of the terms. Each link starts in a different node."""
        constant = sum(real_number(term) for term in terms if term.is_number)
        links: list[Link] = []
        for term in terms:
            if term.is_number:
                continue
            link = self._link(term)
            # Between two nodes there is only one edge with one function, so a second link from the same source starts
            # in a separate node.
            if any(link.source == other.source for other in links):
                inner, scale, bias = _split_affine(term)
                node = _SeparateNode(inner)
                self._add(node, Plan([[self._link(inner)]]))
                link = Link(node, "x", (1.0, 0.0, scale, bias))
            links.append(link)
        if constant:
            links[0] = _scale_links([links[0]], 1.0, constant)[0]
        return links

    def _link(self, term: Any) -> Link:
        """Return the edge that computes a term. The edge has the outermost function of the term and starts in the node
        of the argument of the function."""
        import sympy

        inner, scale, bias = _split_affine(term)
        if inner.is_Symbol or inner.is_Mul or inner.is_Add:
            argument, name = inner, "x"
        elif inner.is_Pow:
            argument, name = self._power(inner)
        else:
            known = inner if not inner.is_Function else in_library(inner)
            if known != inner:
                return self._link(scale * known + bias)
            name = "exp" if isinstance(inner, sympy.exp) else library_name(inner)
            argument = inner.args[0]
        if name == "x" and argument == inner:
            source, a, b = inner, 1.0, 0.0
        else:
            source, a, b = _split_affine(argument)
        self._plan(source)
        return Link(source, name, (a, b, scale, bias))

    def _power(self, power: Any) -> tuple[Any, str]:
        """Return a tuple of the argument and the name of a library function that computes a power.

        If the library has no function for the power, the power is rewritten as a product, as the inverse of a product,
        or as an exponential function.
        """
        import sympy

        base, exponent = power.base, power.exp
        if base.is_number:  # for example 2^x
            if not base.is_positive:
                raise ValueError(f"{power} is not real everywhere: its base must be positive")
            return sympy.expand_mul(exponent * sympy.Float(math.log(real_number(base)))), "exp"
        if not exponent.is_number:
            return sympy.Mul(exponent, sympy.log(base)), "exp"
        value = Fraction(real_number(exponent))
        if value.denominator == 1:
            n = int(value)
            if abs(n) <= MAX_POWER:
                return base, f"x^{n}" if n > 1 else "1/x" if n == -1 else f"1/x^{-n}"
            factors = [sympy.Pow(base, MAX_POWER, evaluate=False)] * (abs(n) // MAX_POWER)
            rest = abs(n) % MAX_POWER
            if rest:
                factors.append(base if rest == 1 else sympy.Pow(base, rest, evaluate=False))
            return sympy.Mul(*factors, evaluate=False), "x" if n > 0 else "1/x"
        if value in ROOTS:
            return base, ROOTS[value]
        return real_number(exponent) * sympy.log(base), "exp"


class _SeparateNode(NamedTuple):
    """The name of a separate node for an expression, which is needed if two edges with different functions would
    connect the same two nodes."""

    expression: Any


def _split_affine(expression: Any) -> tuple[Any, float, float]:
    """Split an expression into a tuple of ``inner``, ``scale`` and ``bias`` such that the expression equals
    ``scale * inner + bias``. All constant factors and terms become part of ``scale`` and ``bias``."""
    import sympy

    scale, bias = sympy.Integer(1), sympy.Integer(0)
    while expression.is_Add or expression.is_Mul:
        numbers = [part for part in expression.args if part.is_number]
        if not numbers:
            break
        rest = [part for part in expression.args if not part.is_number]
        inner = rest[0] if len(rest) == 1 else expression.func(*rest, evaluate=False)
        if expression.is_Add:
            bias = bias + scale * sympy.Add(*numbers)
        else:
            scale = scale * sympy.Mul(*numbers)
        expression = inner
    return expression, real_number(scale), real_number(bias)


def _scale_links(links: list[Link], scale: float, bias: float) -> list[Link]:
    """Return links whose sum is ``scale`` times the sum of the given links, plus ``bias``."""
    scaled = []
    for link in links:
        a, b, c, d = link.affine
        scaled.append(link._replace(affine=(a, b, scale * c, scale * d + bias)))
        bias = 0.0
    return scaled


expr2kan = sf2kan = kanpiler
