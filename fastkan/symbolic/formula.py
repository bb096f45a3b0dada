"""The formulas of a network: as sympy expressions that equal its forward, as LaTeX and as a NumPy function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastkan_kernels import FLAG, Choice, checked, is_sequence, warn

from ..layers.edge_functions import edge_functions, mask_of
from ..layers.function_library import lookup
from ..network.trace import check_not_sharded, default_rows, trace
from .expressions import named_edge, numeric_edge, scaled, symbolic_edge, taylor_pieces
from .rounding import TOLERANCE, Digits, number, product_of, rounded, rounded_within, transform

if TYPE_CHECKING:
    from ..network.core import Network

NUMERIC = Choice(("functions", "piecewise", "raise"))
MAX_NAMED = 10  # Maximum number of spline edges that a warning names


@checked(digits=Digits(), numeric=NUMERIC, simplify=FLAG, tolerance=TOLERANCE)
def symbolic_formula(
    model: Network,
    var: Sequence[Any] | None = None,
    normalizer: Sequence[Any] | None = None,
    output_normalizer: Sequence[Any] | None = None,
    *,
    digits: int | str | None = None,
    numeric: str = "functions",
    simplify: bool = False,
    tolerance: float = 1e-3,
    dataset: Any = None,
) -> tuple[list[Any], list[Any]]:
    """Return the network's outputs as sympy expressions, which equal the network's forward wherever it is finite.

    The symbols have no assumptions, so that values can be substituted by name: ``formula.subs("x_1", 0.5)``. The
    constants equal the values of the parameters exactly. ``singularity_avoiding`` has no effect on a formula.

    Args:
        var: names or sympy symbols, one for each column of x (default: x_1, x_2, ...). :meth:`prune_input` does not
            change the numbers of the columns.
        normalizer: ``[mean, std]`` by which the columns of x were normalized before training. If given, the formula is
            in terms of the values of x before normalization.
        output_normalizer: ``[mean, std]`` by which the labels were normalized before training. If given, the formula
            computes the outputs before normalization.
        digits: number of significant digits of the constants. If ``"auto"``, the smallest number that satisfies
            ``tolerance`` is used. If None, the constants are not rounded.
        numeric: form in which spline edges are written. ``"functions"``: as functions named phi_l_i_j by their layer,
            input and output, which sympy can evaluate, compile (``sympy.lambdify``) and differentiate.
            ``"piecewise"``: as exact piecewise polynomials; the size of the formula grows with the product of the
            layers' widths and grid sizes. ``"raise"``: spline edges are an error.
        simplify: whether to call ``sympy.simplify``, which can take long.
        tolerance: error bound for ``digits="auto"``. Without a dataset, the root mean square difference between the
            rounded formula and the network over the rows of the last fit is at most ``tolerance`` times the standard
            deviation of each output. With a dataset, the RMSE over all outputs increases by at most the relative
            amount ``tolerance``.
        dataset: data for ``digits="auto"``, in the format of :meth:`fit`.

    Returns:
        A tuple of the list of expressions, one for each output, and the list of variables, one for each column of x.

    Raises:
        TypeError, ValueError: for arguments that do not fit the network, and for spline edges if ``numeric="raise"``.

    Warns:
        UserWarning: if edges are written as functions phi_l_i_j. The warning also names the library functions that fit
            the edges best.

    Example:
        >>> model = KAN(width=[2, 1], seed=0)
        >>> model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False)
        >>> model.fix_symbolic(0, 1, 0, "x^2", fit_params_bool=False)
        >>> formulas, variables = model.symbolic_formula()
        >>> formulas[0], variables
        (x_2**2 + sin(x_1), [x_1, x_2])
        >>> model.unfix_symbolic(0, 0, 0)
        >>> import warnings
        >>> with warnings.catch_warnings(action="ignore"):
        ...     model.symbolic_formula()[0]
        [x_2**2 + phi_0_0_0(x_1)]
    """
    check_not_sharded(model, "symbolic_formula")
    _check_numeric(model, numeric)
    columns, variables = _columns(model), _variables(var, model.in_features)
    inputs = _normalizer("normalizer", normalizer, model.in_features)
    outputs = _normalizer("output_normalizer", output_normalizer, model.width_in[-1])
    formulas = _normalized_inputs(model, columns, inputs)
    for layer in range(model.depth):
        formulas = _next_nodes(model, layer, formulas, numeric)
    formulas = _denormalized(formulas, outputs)
    if simplify:
        import sympy

        try:
            formulas = [sympy.simplify(formula) for formula in formulas]
        except RecursionError:
            raise ValueError("simplify must be False for formulas that are so large") from None
    if digits == "auto":
        x, labels = _samples(model, dataset, inputs, outputs)
        formulas = rounded_within(
            formulas, lambda more, made: compile_numpy([*more, columns], made), x, labels, tolerance
        )
    elif digits is not None:
        formulas = [rounded(formula, int(digits)) for formula in formulas]
    # The user's variables are substituted last, because sympy simplifies more if symbols are declared real
    named = dict(zip(columns, variables))
    formulas = [transform(formula, lambda part: named.get(part, part), {}) for formula in formulas]
    if numeric == "functions":
        _warn_of_spline_edges(model)
    return formulas, variables


def formula_latex(model: Network, var: Sequence[Any] | None = None, *args: Any, **options: Any) -> list[str]:
    """Return the formulas as LaTeX strings, one for each output; arguments and errors are as in
    :meth:`symbolic_formula`.

    Example:
        >>> model = KAN(width=[1, 1], seed=0)
        >>> model.fix_symbolic(0, 0, 0, "sqrt", fit_params_bool=False)
        >>> model.formula_latex(["t"])
        ['\\\\sqrt{t}']
    """
    import sympy

    formulas, _ = symbolic_formula(model, var, *args, **options)
    return [sympy.latex(formula) for formula in formulas]


@checked(digits=Digits(), numeric=NUMERIC, tolerance=TOLERANCE)
def formula_numpy(
    model: Network,
    normalizer: Sequence[Any] | None = None,
    output_normalizer: Sequence[Any] | None = None,
    *,
    digits: int | str | None = None,
    numeric: str = "functions",
    tolerance: float = 1e-3,
    dataset: Any = None,
) -> Callable[[Any], Any]:
    """Return a NumPy function that computes all outputs of the network in float64, including its spline edges.

    ``sympy.lambdify`` compiles the expressions of one layer at a time. Text that was read from a file is never
    evaluated as code. The base functions of splines, and library functions that were added without a sympy form, are
    computed by torch.

    Args:
        normalizer, output_normalizer, digits, numeric, tolerance, dataset: as in :meth:`symbolic_formula`.

    Returns:
        A function from ``[..., in_features]`` to ``[..., outputs]``.

    Raises:
        TypeError, ValueError: in the same cases as :meth:`symbolic_formula`.

    Example:
        >>> model = KAN(width=[2, 1], seed=0)
        >>> model.fix_symbolic(0, 0, 0, "exp", fit_params_bool=False)
        >>> model.remove_edge(0, 1, 0)
        >>> model.formula_numpy()([[0.0, 5.0], [1.0, 5.0]])
        array([[1.        ],
               [2.71828183]])
    """
    import sympy

    if digits is not None:
        options = {"digits": digits, "numeric": numeric, "tolerance": tolerance, "dataset": dataset}
        formulas, variables = symbolic_formula(model, None, normalizer, output_normalizer, **options)
        return _on_rows([compile_numpy([variables], formulas)], model.in_features)
    _check_numeric(model, numeric)
    inputs = _normalizer("normalizer", normalizer, model.in_features)
    outputs = _normalizer("output_normalizer", output_normalizer, model.width_in[-1])
    variables = _columns(model)
    steps = []
    for layer in range(model.depth):
        nodes = [sympy.Dummy(real=True) for _ in range(model.width_in[layer])] if layer else variables
        made = _next_nodes(model, layer, nodes if layer else _normalized_inputs(model, variables, inputs), numeric)
        steps.append(compile_numpy([nodes], made if layer < model.depth - 1 else _denormalized(made, outputs)))
    return _on_rows(steps, model.in_features)


# -- one layer -----------------------------------------------------------------------------------------


def _next_nodes(model: Network, layer: int, nodes: list[Any], numeric_as: str) -> list[Any]:
    """Return the nodes after a layer as sympy expressions, given the expressions ``nodes`` of the layer's inputs."""
    import sympy

    terms: list[list[Any]] = [[] for _ in range(model.width_out[layer + 1])]
    numeric, symbolic = model.layers[layer], model.symbolic[layer]
    pieces = taylor_pieces(numeric)
    for i, j in mask_of(numeric).nonzero().tolist():
        write = partial(named_edge, f"phi_{layer}_{i}_{j}") if numeric_as == "functions" else numeric_edge
        terms[j].append(write(numeric, pieces, i, j, nodes[i]))
    for edge, affine in zip(symbolic.edges, _values(symbolic.affine)):
        terms[edge.j].append(symbolic_edge(edge.name, affine, nodes[edge.i]))

    def mapped(values: list[Any], scale: Tensor, bias: Tensor) -> list[Any]:
        return [scaled(s, value, b) for s, value, b in zip(_values(scale), values, _values(bias))]

    sums = [sympy.Add(*term) for term in terms]
    subnodes = mapped(sums, model.subnode_scale[layer], model.subnode_bias[layer])
    groups = model.architecture.factors(layer + 1)
    products = [product_of([subnodes[factor] for factor in group]) for group in groups]
    return mapped(products, model.node_scale[layer], model.node_bias[layer])


# -- NumPy ---------------------------------------------------------------------------------------------


def compile_numpy(arguments: list[Any], formulas: list[Any]) -> Callable[..., Any]:
    """Compile formulas into a NumPy function that returns the list of their values.

    The NumPy function takes one list of arrays for each list of symbols in ``arguments``.
    """
    import sympy
    from sympy.core.function import AppliedUndef
    from sympy.simplify.cse_main import tree_cse

    ours: dict[str, Any] = {"erf": _through_torch(torch.erf)}  # which gelu contains, and NumPy lacks
    names: dict[Any, str] = {}

    def safe(expression: Any) -> Any:
        if not isinstance(expression, AppliedUndef):
            return expression
        function = expression.func  # Users choose the function's name, so lambdify must not write the name into code
        if function not in names:
            names[function] = f"added_{len(names)}"
            own = getattr(function, "_imp_", None)
            ours[names[function]] = _through_torch(lookup(function.__name__).fun) if own is None else own
        return sympy.Function(names[function])(*expression.args)

    memo: dict[Any, Any] = {}
    formulas = [transform(formula, safe, memo) for formula in formulas]
    modules = [ours, "scipy", "numpy"] if find_spec("scipy") else [ours, "numpy"]
    options: dict[str, Any] = {}
    if any(formula.has(sympy.Piecewise) for formula in formulas):
        # Nested Piecewise expressions have many common subexpressions. Unless each common subexpression is computed
        # only once, the expression trees are too large for lambdify.
        shared = tree_cse(formulas, sympy.numbered_symbols(cls=sympy.Dummy), order="none")
        options["cse"] = lambda _: shared
        formulas = [sympy.Integer(0)] * len(formulas)
    function: Callable[..., Any] = sympy.lambdify(arguments, formulas, modules=modules, **options)
    return function


def _through_torch(fun: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    def called(z: Any) -> Any:
        import numpy

        return fun(torch.as_tensor(numpy.array(z, dtype=numpy.float64))).numpy()

    return called


def _on_rows(steps: list[Callable[..., Any]], in_features: int) -> Callable[[Any], Any]:
    """Chain functions of lists of columns into one function of arrays ``[..., in_features]``."""

    def formula(x: Any) -> Any:
        import numpy

        try:
            rows = numpy.asarray(x, dtype=numpy.float64)
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError is raised for tensors that require grad
            raise TypeError(f"x must be an array of numbers, got {type(x).__name__}: {error}") from None
        if rows.ndim == 0 or rows.shape[-1] != in_features:
            raise ValueError(f"x must have the shape [..., in_features={in_features}], got {list(rows.shape)}")
        columns = list(numpy.moveaxis(rows, -1, 0))
        # NumPy evaluates all branches of a Piecewise at all rows, even where a branch is undefined
        with numpy.errstate(all="ignore"):
            for step in steps:
                columns = [numpy.broadcast_to(column, rows.shape[:-1]) for column in step(columns)]
        return numpy.stack(columns, -1).astype(numpy.float64)

    return formula


# -- arguments -----------------------------------------------------------------------------------------


def _check_numeric(model: Network, numeric: str) -> None:
    on = _spline_edges(model) if numeric == "raise" else []
    if on:
        raise ValueError(
            f"numeric='raise' needs a network without spline edges, but these (layer, i, j) are splines: "
            f"{', '.join(map(str, on))}. Make them formulas by auto_symbolic or fix_symbolic, remove them by "
            "remove_edge, or use numeric='functions' or numeric='piecewise'"
        )


def _spline_edges(model: Network) -> list[tuple[int, int, int]]:
    """Return the list of edges ``(layer, i, j)`` whose splines are on."""
    return [(n, i, j) for n, layer in enumerate(model.layers) for i, j in mask_of(layer).nonzero().tolist()]


def _warn_of_spline_edges(model: Network) -> None:
    on = _spline_edges(model)
    if not on:
        return
    named = [f"phi_{l}_{i}_{j}{_best_fit(model, l, i, j)}" for l, i, j in on[:MAX_NAMED]]
    more = "" if len(on) <= MAX_NAMED else f" and {len(on) - MAX_NAMED} more"
    warn(
        f"the formula contains spline edges as functions of these names: {', '.join(named)}{more}. "
        "auto_symbolic(force=True) or fix_symbolic turns them into formulas, remove_edge removes them, "
        "numeric='piecewise' writes them as polynomials"
    )


def _best_fit(model: Network, l: int, i: int, j: int) -> str:
    """Return a description of the function that fits an edge best, or an empty string if the edge has a non-finite
    value."""
    from .search import search

    x = trace(model, default_rows(model)[:1000])[l].nodes[:, i : i + 1]
    y = edge_functions(model.layers[l], model.symbolic[l], x.expand(-1, model.width_in[l]))[:, i, j : j + 1]
    if not bool(x.isfinite().all() & y.isfinite().all()):
        return ""
    fits = search(x, y)
    best = int(fits.r2[:, 0].argmax())
    return f" (best is {fits.names[best]}, R2 {fits.r2[best, 0]:.4f})"


def _columns(model: Network) -> list[Any]:
    """Return the real symbols that stand for the columns of x while formulas are constructed.

    Their names are always x_1, x_2, ..., because sympy sorts terms by the names of symbols.
    """
    import sympy

    return [sympy.Symbol(f"x_{column + 1}", real=True) for column in range(model.in_features)]


def _variables(var: Sequence[Any] | None, count: int) -> list[Any]:
    import sympy

    if var is None:
        return [sympy.Symbol(f"x_{column + 1}") for column in range(count)]
    if not is_sequence(var):
        raise TypeError(f"var must be a list of names or symbols, got {var!r}")
    for each in var:
        if not isinstance(each, (str, sympy.Expr)):  # The name of a column made by augment_input is an expression
            raise TypeError(f"var must hold names, or symbols or expressions of sympy, got {each!r}")
    if len(var) != count:
        raise ValueError(f"var must have one entry for each of the {count} columns of x, got {len(var)}")
    made = [sympy.Symbol(each) if isinstance(each, str) else each for each in var]
    if len(set(map(str, made))) < count:
        raise ValueError(f"var must have different names, got {', '.join(map(str, made))}")
    return made


def _normalizer(name: str, value: Sequence[Any] | None, count: int) -> list[list[float]]:
    """Return a list of the means and the standard deviations of ``count`` columns.

    If ``value`` is None, all means are 0 and all standard deviations are 1.
    """
    if value is None:
        return [[0.0] * count, [1.0] * count]
    try:
        if not is_sequence(value):
            raise TypeError
        mean, std = (torch.as_tensor(part, dtype=torch.float64).detach().cpu().flatten() for part in value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be [mean, std], got {value!r}") from None
    for part in (mean, std):
        if len(part) not in (1, count):
            raise ValueError(f"{name} must be [mean, std] of {count} columns, got {len(part)} values")
    if not bool(mean.isfinite().all() & std.isfinite().all() & (std != 0).all()):
        raise ValueError(f"{name} must be finite, and its std not 0; got {value!r}")
    return [mean.expand(count).tolist(), std.expand(count).tolist()]


def _normalized_inputs(model: Network, variables: list[Any], normalizer: list[list[float]]) -> list[Any]:
    columns = [(x - number(mean)) / number(std) for x, mean, std in zip(variables, *normalizer)]
    return [columns[column] for column in model.input_id.tolist()]


def _denormalized(formulas: list[Any], normalizer: list[list[float]]) -> list[Any]:
    return [scaled(std, formula, mean) for formula, mean, std in zip(formulas, *normalizer)]


def _samples(
    model: Network, dataset: Any, normalizer: list[list[float]], output_normalizer: list[list[float]]
) -> tuple[Tensor, Tensor | None]:
    """Return a tuple of the rows at which rounded formulas are tested and the labels of the dataset.

    Rows and labels are returned as they were before normalization. Without a dataset, None is returned in place of the
    labels.
    """
    x, labels = default_rows(model), None
    if dataset is not None:
        from ..training.data import read_data

        data = read_data(
            dataset, in_features=model.in_features, out_features=model.width_in[-1], device=model.device,
            dtype=model.dtype,
        )  # fmt: skip
        pairs = [data.train] if data.test is None else [data.train, data.test]
        x, labels = (torch.cat(part) for part in zip(*pairs))
        labels = _denormalized_values(labels, output_normalizer)
    return _denormalized_values(x, normalizer), labels


def _denormalized_values(values: Tensor, normalizer: list[list[float]]) -> Tensor:
    mean, std = torch.tensor(normalizer, dtype=torch.float64)
    return values.detach().cpu().double() * std + mean


def _values(parameter: Tensor) -> Any:
    return parameter.detach().cpu().double().tolist()
