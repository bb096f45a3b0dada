"""Tests of a function's structure: whether the function is a sum or product of functions of fewer inputs, and whether
the function depends on a group of inputs only through a single quantity.

The tests use derivatives at the rows of x, so they do not need a formula. The functions that can be tested are KANs,
MLPs and all functions from ``[N, in]`` to ``[N, 1]`` for which output row n depends only on input row n.
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
EPSILON = 1e-6  # Constant that is added to the norm of a gradient before division, because the norm may be 0
MIN_COSINE = 0.9  # Cosine similarity above which two gradients count as parallel
MIN_SHARE = 0.9  # Fraction of rows with parallel gradients above which the printed text suggests symmetry

Function = Callable[[Tensor], Tensor]


def interactions(model: Function, x: Tensor, mode: str, bias: float = 0.0) -> Tensor:
    """Return the strength ``[in, in]`` of the interaction of each pair of inputs.

    The strength is the median over the rows of the absolute second derivative of the function with respect to the two
    inputs, times the standard deviations of the two inputs. If ``mode`` is ``"mul"``, the function is replaced by the
    logarithm of its absolute value.
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
    """Split the inputs into as many groups as possible such that a function is a sum or product of functions each of
    which depends on only one group.

    Initially each input is a group by itself. The two groups with the strongest interaction are merged repeatedly,
    until the interactions that remain between groups are negligible. A printed line says whether the function is
    separable.

    Args:
        model: a function from ``[N, in]`` to ``[N, 1]``.
        x: rows ``[N, in]`` at which derivatives are computed.
        mode: ``"add"`` for a sum, ``"mul"`` for a product.
        score_th: threshold below which an interaction counts as 0 when the groups to merge are chosen.
        res_th: maximum fraction of all interactions that may remain between groups.
        n_clusters: number of groups to accept, or a pair of the minimum and the maximum number. If None, any number is
            accepted.
        bias: constant that is added to the function before the function is tested as a product.
        verbose: whether to print, for each number of groups, the fraction of the interactions between groups.

    Returns:
        A dictionary with ``hessian``, the interactions ``[in, in]``; ``n_groups``, the number of groups; ``labels``,
        the index of the group of each input; and ``groups``, the list of inputs of each group.

    Raises:
        TypeError, ValueError: for arguments that have the wrong type or are out of range.

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
    """Return how the direction of a function's gradient with respect to a group of inputs depends on the other inputs.

    The gradient with respect to the group is divided by its norm, and the quotient is differentiated with respect to
    the inputs outside the group.

    Args:
        model: a function from ``[N, in]`` to ``[N, 1]``.
        x: rows ``[N, in]`` at which derivatives are computed.
        group: indices of the inputs in the group.
        create_graph: whether the result can be differentiated again.

    Returns:
        The derivatives ``[N, inputs of the group, other inputs]``. All derivatives are zero if the function depends on
        the group only through a single quantity, because the direction of the gradient then depends on the inputs of
        the group alone.

    Raises:
        ValueError: for indices of inputs that do not exist.

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
    """Return how strongly the normalized gradient with respect to a group of inputs depends on each other input.

    Args:
        model, x, group: as in :func:`batch_grad_normgrad`.

    Returns:
        The strength ``[inputs of the group, other inputs]`` of the dependence: the median over the rows of the absolute
        result of :func:`batch_grad_normgrad`, times the standard deviations of the two inputs.

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
    """Return whether a function depends on a group of inputs only through a single quantity.

    The function then has the form ``f(x) = g(h(inputs of the group), other inputs)``.

    Args:
        model, x: as in :func:`batch_grad_normgrad`.
        group: indices of the inputs in the group. If the group contains no inputs or all inputs, the result is True.
        dependence_th: upper limit of the dependence computed by :func:`get_dependence`. If a dependence is not less
            than ``dependence_th``, the result is False.

    Raises:
        TypeError, ValueError: for indices of inputs that do not exist.

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
    """Return whether a function is a sum or product of functions each of which depends on only one group of inputs.

    Args:
        model, x: as in :func:`batch_grad_normgrad`.
        groups: indices of the inputs in each group. Inputs that are in no group form an additional group.
        mode: ``"add"`` for a sum, ``"mul"`` for a product.
        threshold: upper limit of the interactions between groups. If an interaction is not less than ``threshold``, the
            result is False.
        bias: constant that is added to the function before the function is tested as a product.

    Raises:
        TypeError, ValueError: for indices of inputs that do not exist or are in two groups.

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
    """Return whether a function has the form ``f(x) = g(h_1(group 1) + h_2(group 2) + ...)`` with arbitrary g and h.

    Two consequences of this form are tested: the function depends on each group only through a single quantity, and
    the ratio of its derivatives with respect to two inputs from different groups is a product of functions each of
    which depends on only one group.

    Args:
        model: a function from ``[N, in]`` to ``[N, 1]``.
        x, groups, threshold: as in :func:`test_separability`.

    Raises:
        TypeError, ValueError: in the same cases as :func:`test_separability`.

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
    """Test whether a function depends on some inputs only through a given expression, and print the result.

    Args:
        model, x: as in :func:`batch_grad_normgrad`.
        input_vars: symbols, one for each column of x.
        symmetry_var: a sympy expression in some of ``input_vars``.

    Returns:
        The absolute cosine ``[N]`` of the angle between the gradient of the function and the gradient of the
        expression, both with respect to the inputs in the expression. The cosine is 1 at every row if the function
        depends on the inputs in the expression only through the expression.

    Raises:
        ValueError: for symbols that are not among ``input_vars``, and for functions that torch does not have.

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
    setattr(_function, "__test__", False)  # noqa: B010  # pytest would run these functions in modules that import them
