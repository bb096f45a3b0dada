"""Tests of a function's structure: whether it is a sum or product, and whether inputs act through one quantity.

All of them use derivatives at the rows of x, so they don't need a formula. They accept a KAN, an MLP or any function
from ``[N, in]`` to ``[N, 1]`` whose output rows each depend only on the input row of the same number.
"""

# ruff: noqa: PT028  (functions named test_... are for users; they are marked below so that pytest ignores them)

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastkan_kernels import INDEX, Callback, Choice, Each, Flag, Int, OneOrEach, Optional, Real, checked

from .derivatives import batch_hessian, batch_jacobian, check_rows
from .variables import EXPRESSION, VARIABLES, naming, values_of

MODE = Choice(("add", "mul"))
MODEL, GROUP, GROUPS = Callback(), Each(INDEX), Each(Each(INDEX))
EPSILON = 1e-6  # added to a gradient's norm, which may be 0
MIN_COSINE = 0.9  # cosine above which two gradients count as parallel
MIN_SHARE = 0.9  # share of rows with parallel gradients above which symmetry is suggested

Function = Callable[[Tensor], Tensor]


def interactions(model: Function, x: Tensor, mode: str, bias: float = 0.0) -> Tensor:
    """Strength of the interaction of each pair of inputs, ``[in, in]``.

    It is the median over the rows of the absolute second derivative of the function, or for ``"mul"`` of its logarithm,
    times the standard deviations of the two inputs.
    """
    check_rows(x, least=2)
    f = model if mode == "add" else lambda rows: (model(rows) + bias).abs().log()
    std = x.std(0)
    return (batch_hessian(f, x) * std * std.unsqueeze(1)).abs().median(0).values


@checked(
    model=MODEL, mode=MODE, score_th=Real(least=0), res_th=Real(least=0),
    n_clusters=Optional(OneOrEach(Int(least=1))), bias=Real(), verbose=Flag(),
)  # fmt: skip
def detect_separability(
    model: Function,
    x: Tensor,
    mode: str = "add",
    score_th: float = 1e-2,
    res_th: float = 1e-2,
    n_clusters: int | Sequence[int] | None = None,
    bias: float = 0.0,
    verbose: bool = False,
) -> dict[str, Any]:
    """Split the inputs into as many groups as possible such that a function is a sum or product of functions of one
    group each.

    Starting from single inputs, the two groups that interact most are merged, until the interactions that remain
    between groups are negligible. The result is printed too.

    Args:
        model: a function from ``[N, in]`` to ``[N, 1]``.
        x: ``[N, in]``, rows at which derivatives are computed.
        mode: ``"add"`` for a sum, ``"mul"`` for a product.
        score_th: interactions below this count as 0 in the choice of the groups to merge.
        res_th: share of all interactions that may remain between groups.
        n_clusters: number of groups to accept, or the least and the greatest; None for any number.
        bias: number added to the function before it is tested as a product.
        verbose: whether to print the share that remains between groups, for each number of groups.

    Returns:
        ``hessian`` ``[in, in]``, the interactions; ``n_groups``; ``labels``, the group of each input; and ``groups``,
        the inputs of each group.

    Raises:
        TypeError, ValueError: for arguments of another type, or out of range.

    Example:
        >>> x = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
        >>> found = detect_separability(lambda x: x[:, [0]] ** 2 + torch.exp(x[:, [1]] + x[:, [2]]), x)
        add separability detected
        >>> found["groups"]
        [[0], [1, 2]]
    """
    score = interactions(model, x, mode, bias)
    count = len(score)
    tried = range(1, count + 1) if n_clusters is None else _group_counts(n_clusters, count)
    groups, best = [[i] for i in range(count)], [list(range(count))]
    joined = torch.where(score < score_th, 0.0, score)
    whole = score.sum()
    while True:
        inside = sum(score[group][:, group].sum() for group in groups)
        share = float((whole - inside) / whole) if whole > 0 else 0.0
        if verbose and len(groups) in tried:
            print(f"n_group={len(groups)}, residual_ratio={share}")
        if len(groups) in tried and share < res_th:
            best = groups
        if best is groups or len(groups) <= 1:
            break
        pairs = itertools.combinations(range(len(groups)), 2)
        one, other = max(pairs, key=lambda pair: float(joined[groups[pair[0]]][:, groups[pair[1]]].sum()))
        merged = sorted(groups[one] + groups[other])
        groups = sorted([*(group for n, group in enumerate(groups) if n not in (one, other)), merged])
    labels = [next(n for n, group in enumerate(best) if i in group) for i in range(count)]
    print(f"{mode} separability {'detected' if len(best) > 1 else 'not detected'}")
    return {"hessian": score, "n_groups": len(best), "labels": labels, "groups": best}


def _group_counts(n_clusters: int | Sequence[int], count: int) -> range:
    ends = [n_clusters] * 2 if isinstance(n_clusters, int) else list(n_clusters)
    if len(ends) != 2:
        raise ValueError(f"n_clusters must be one number, or the least and the greatest, got {n_clusters}")
    least, most = ends
    if not 1 <= least <= most <= count:
        raise ValueError(f"n_clusters must be from 1 to {count}, the number of inputs, got {n_clusters}")
    return range(least, most + 1)


@checked(model=MODEL, group=GROUP, create_graph=Flag())
def batch_grad_normgrad(model: Function, x: Tensor, group: Sequence[int], create_graph: bool = False) -> Tensor:
    """Derivatives, with respect to the other inputs, of the normalized gradient with respect to a group of inputs.

    Args:
        model: a function from ``[N, in]`` to ``[N, 1]``.
        x: ``[N, in]``, rows at which derivatives are computed.
        group: indices of the inputs in the group.
        create_graph: whether the result can be differentiated again.

    Returns:
        ``[N, inputs of the group, other inputs]``. It is zero if the group acts through one quantity, since the
        gradient's direction then depends on the group alone.

    Raises:
        ValueError: for indices that don't exist.

    Example:
        >>> x = torch.rand(4, 3)
        >>> batch_grad_normgrad(lambda x: x[:, [0]] * (x[:, [1]] + x[:, [2]]), x, [1, 2]).shape
        torch.Size([4, 2, 1])
    """
    check_rows(x)
    inside, others = _split(group, x.shape[1])
    if not inside:
        raise ValueError("group must name at least one input, got none")

    def direction(rows: Tensor) -> Tensor:
        slope = batch_jacobian(model, rows, create_graph=True)[:, inside]
        return slope / (slope.norm(dim=1, keepdim=True) + EPSILON)

    return batch_jacobian(direction, x, create_graph=create_graph, mode="vector")[:, :, others]


def _split(group: Sequence[int], count: int, name: str = "group") -> tuple[list[int], list[int]]:
    inside = list(group)
    if len(set(inside)) < len(inside) or not set(inside) <= set(range(count)):
        raise ValueError(f"{name} must name inputs from 0 to {count - 1}, each once, got {inside}")
    return inside, [i for i in range(count) if i not in inside]


@checked(model=MODEL, group=GROUP)
def get_dependence(model: Function, x: Tensor, group: Sequence[int]) -> Tensor:
    """Dependence of a group's normalized gradient on the other inputs.

    Args:
        model, x, group: as in :func:`batch_grad_normgrad`.

    Returns:
        ``[inputs of the group, other inputs]``: the median over the rows of the absolute values of
        :func:`batch_grad_normgrad`, times the standard deviations of both inputs.

    Example:
        >>> x = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
        >>> get_dependence(lambda x: x[:, [0]] * (x[:, [1]] + x[:, [2]]), x, [1, 2]).round(decimals=4)
        tensor([[0.],
                [0.]])
    """
    check_rows(x, least=2)
    inside, others = _split(group, x.shape[1])
    std = x.std(0)
    change = batch_grad_normgrad(model, x, group)
    return (change * std[inside].unsqueeze(1) * std[others]).abs().median(0).values


@checked(model=MODEL, group=GROUP, dependence_th=Real(least=0))
def test_symmetry(model: Function, x: Tensor, group: Sequence[int], dependence_th: float = 1e-3) -> bool:
    """Whether a group of inputs acts through one quantity: ``f(x) = g(h(x of the group), the other x)``.

    Args:
        model, x: as in :func:`batch_grad_normgrad`.
        group: indices of the inputs in the group; for no inputs or all inputs the answer is always True.
        dependence_th: value of :func:`get_dependence` below which the group counts as independent of other inputs.

    Raises:
        TypeError, ValueError: for indices that don't exist.

    Example:
        >>> x = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
        >>> f = lambda x: x[:, [0]] ** 2 * (x[:, [1]] + x[:, [2]])
        >>> test_symmetry(f, x, [1, 2]), test_symmetry(f, x, [0, 2])
        (True, False)
    """
    check_rows(x, least=2)
    _split(group, x.shape[1])
    if len(group) in (0, x.shape[1]):
        return True
    return bool(get_dependence(model, x, group).max() < dependence_th)


@checked(model=MODEL, groups=GROUPS, mode=MODE, threshold=Real(least=0), bias=Real())
def test_separability(
    model: Function,
    x: Tensor,
    groups: Sequence[Sequence[int]],
    mode: str = "add",
    threshold: float = 1e-2,
    bias: float = 0.0,
) -> bool:
    """Whether a function is a sum or product of functions of one group of inputs each.

    Args:
        model, x: as in :func:`batch_grad_normgrad`.
        groups: indices of the inputs in each group; inputs in none of them form one more group.
        mode: ``"add"`` for a sum, ``"mul"`` for a product.
        threshold: interaction below which two inputs of different groups count as separate.
        bias: number added to the function before it is tested as a product.

    Raises:
        TypeError, ValueError: for indices that don't exist or are in two groups.

    Example:
        >>> x = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
        >>> f = lambda x: x[:, [0]] ** 2 * (x[:, [1]] + x[:, [2]])
        >>> test_separability(f, x, [[0], [1, 2]], mode="mul"), test_separability(f, x, [[0], [1, 2]], mode="add")
        (True, False)
    """
    check_rows(x, least=2)
    _, rest = _split([i for group in groups for i in group], x.shape[1], "groups")
    score = interactions(model, x, mode, bias)
    parts = [list(group) for group in (*groups, rest) if len(group)]
    return all(bool((score[one][:, other] < threshold).all()) for one, other in itertools.combinations(parts, 2))


@checked(model=MODEL, groups=GROUPS, threshold=Real(least=0))
def test_general_separability(
    model: Function, x: Tensor, groups: Sequence[Sequence[int]], threshold: float = 1e-2
) -> bool:
    """Whether a function is any function of a sum of functions of one group of inputs each.

    This is tested by two consequences: each group acts through one quantity, and the ratio of the derivatives with
    respect to two inputs of different groups is a product of functions of one group each.

    Args:
        model: a function from ``[N, in]`` to ``[N, 1]``.
        x, groups, threshold: as in :func:`test_separability`.

    Raises:
        TypeError, ValueError: as :func:`test_separability`.

    Example:
        >>> x = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) + 0.5
        >>> f = lambda x: torch.sin(x[:, [0]] ** 2 + x[:, [1]] * x[:, [2]])
        >>> test_general_separability(f, x, [[0], [1, 2]]), test_general_separability(f, x, [[1], [0, 2]])
        (True, False)
    """
    check_rows(x, least=2)
    _split([i for group in groups for i in group], x.shape[1], "groups")

    def ratio(i: int, j: int) -> Function:
        def of_slopes(rows: Tensor) -> Tensor:
            slope = batch_jacobian(model, rows, create_graph=True)
            return slope[:, [j]] / slope[:, [i]]

        return of_slopes

    return all(test_symmetry(model, x, group, dependence_th=threshold) for group in groups) and all(
        test_separability(ratio(i, j), x, groups, mode="mul", threshold=threshold)
        for one, other in itertools.combinations(groups, 2)
        for i in one
        for j in other
    )


@checked(model=MODEL, input_vars=VARIABLES, symmetry_var=EXPRESSION)
def test_symmetry_var(model: Function, x: Tensor, input_vars: Sequence[Any], symmetry_var: Any) -> Tensor:
    """Test whether the inputs in an expression act through that expression, and print the result.

    Args:
        model, x: as in :func:`batch_grad_normgrad`.
        input_vars: a symbol for each column of x.
        symmetry_var: an expression of some of these symbols.

    Returns:
        ``[N]``, absolute cosine between the gradients of the function and of the expression with respect to the
        expression's inputs; it is 1 at every row if these inputs act through the expression.

    Raises:
        ValueError: for symbols that are not among ``input_vars``, and functions that torch doesn't have.

    Example:
        >>> import sympy
        >>> x = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
        >>> symbols = a, b, c = sympy.symbols("a b c")
        >>> cosine = test_symmetry_var(lambda x: x[:, [0]] * (x[:, [1]] + x[:, [2]]), x, symbols, b + c)
        100.0% of the data have a cosine similarity above 0.9, suggesting symmetry
    """
    variables = list(input_vars)
    used = [place for place, variable in enumerate(variables) if variable in symmetry_var.free_symbols]
    check_rows(x, least=1)
    if len(variables) != x.shape[1]:
        raise ValueError(f"input_vars must be {x.shape[1]} symbols, one for each column of x, got {len(variables)}")
    if not used:
        raise ValueError(f"symmetry_var must contain some of the input_vars, got {symmetry_var}")
    with naming("symmetry_var"):
        other = batch_jacobian(lambda rows: values_of(symmetry_var, variables, rows), x)[:, used]
    own = batch_jacobian(model, x)[:, used]
    cosine = torch.nn.functional.cosine_similarity(own, other, dim=1, eps=0.0).abs()
    share = float((cosine > MIN_COSINE).double().mean())
    verdict = "suggesting" if share > MIN_SHARE else "not suggesting"
    print(f"{100 * share:.1f}% of the data have a cosine similarity above {MIN_COSINE}, {verdict} symmetry")
    return cosine


for _function in (test_symmetry, test_separability, test_general_separability, test_symmetry_var):
    setattr(_function, "__test__", False)  # noqa: B010  # pytest would run them where they are imported
