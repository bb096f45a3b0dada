"""A network as formulas: sympy expressions that equal its forward, LaTeX, and a NumPy function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastkan_kernels import FLAG, Choice, checked, is_sequence, warn

from ..layers.edge_functions import edge_functions, mask_of
from ..layers.function_library import lookup
from ..network.trace import default_rows, trace
from .expressions import named_edge, numeric_edge, pieces_of, scaled, symbolic_edge
from .rounding import TOLERANCE, Digits, number, product_of, rebuilt, rounded, rounded_to_keep

if TYPE_CHECKING:
    from ..network.core import Network

NUMERIC = Choice(("functions", "piecewise", "raise"))
MAX_NAMED = 10  # edges that a warning names, with what fits them best


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
    """The network's outputs as sympy expressions, equal to its forward wherever that is finite.

    Their symbols are plain ones, which names meet: ``formula.subs("x_1", 0.5)``. Constants are the parameters' values,
    exactly. ``singularity_avoiding`` is no part of a formula.

    Args:
        var: names or sympy symbols, one for each column of x; None takes x_1, x_2, ... Names become plain symbols. A
            column keeps its number after :meth:`prune_input`.
        normalizer: ``[mean, std]`` of the columns, if x was divided by it: the formula is one of what x was before.
        output_normalizer: ``[mean, std]`` of the outputs, to the same end.
        digits: significant digits of the constants, or ``"auto"``: the fewest that keep the loss.
        numeric: how edges that are splines are written: ``"functions"``, by functions with the names phi_l_i_j of
            their layer, input and output, which sympy evaluates, compiles (``sympy.lambdify``) and differentiates;
            ``"piecewise"``, as exact polynomials on their cells, which grows with the product of the layers' widths and
            grids; or ``"raise"``, not at all.
        simplify: whether to call ``sympy.simplify``, which can take long.
        tolerance: what ``digits="auto"`` keeps to. Without a dataset, how far the rounded formula may be from the
            forward, root mean square over the rows of the last fit, in standard deviations of each output; with one,
            the share by which the RMSE of the outputs together may grow.
        dataset: as :meth:`fit` takes it, for ``digits="auto"``.

    Returns:
        The expressions, one for each output, and the variables, one for each column of x.

    Raises:
        TypeError, ValueError: for arguments that don't fit the network and, with ``numeric="raise"``, edges that are
            splines.

    Warns:
        UserWarning: where edges are written as functions phi_l_i_j; it says what fits each best.

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
    _check_numeric(model, numeric)
    columns, variables = _columns(model), _variables(var, model.in_features)
    inputs = _normalizer("normalizer", normalizer, model.in_features)
    outputs = _normalizer("output_normalizer", output_normalizer, model.width_in[-1])
    formulas = _normalized_inputs(model, columns, inputs)
    for layer in range(model.depth):
        formulas = _after(model, layer, formulas, numeric)
    formulas = _denormalized(formulas, outputs)
    if simplify:
        import sympy

        try:
            formulas = [sympy.simplify(formula) for formula in formulas]
        except RecursionError:
            raise ValueError("simplify must be False for formulas that are so large") from None
    if digits == "auto":
        x, labels = _samples(model, dataset, inputs, outputs)
        formulas = rounded_to_keep(formulas, lambda more, made: numpy_of([*more, columns], made), x, labels, tolerance)
    elif digits is not None:
        formulas = [rounded(formula, int(digits)) for formula in formulas]
    named = dict(zip(columns, variables))  # only now, as sympy tidies up what it knows to be real
    formulas = [rebuilt(formula, lambda part: named.get(part, part), {}) for formula in formulas]
    if numeric == "functions":
        _warn_of_splines(model)
    return formulas, variables


def formula_latex(model: Network, var: Sequence[Any] | None = None, *args: Any, **options: Any) -> list[str]:
    """The formulas in LaTeX, one for each output; arguments and errors as in :meth:`symbolic_formula`.

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
    """The formulas as a function of NumPy arrays, float64; edges that are splines are computed too.

    ``sympy.lambdify`` makes it of the expressions, layer by layer; no text from a file is ever evaluated. Base
    functions of splines, and functions that were added without a sympy form, are called through torch.

    Args:
        normalizer, output_normalizer, digits, numeric, tolerance, dataset: as in :meth:`symbolic_formula`.

    Returns:
        A function from ``[..., in_features]`` to ``[..., outputs]``.

    Raises:
        TypeError, ValueError: as :meth:`symbolic_formula`.

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
        return _of_rows([numpy_of([variables], formulas)], model.in_features)
    _check_numeric(model, numeric)
    inputs = _normalizer("normalizer", normalizer, model.in_features)
    outputs = _normalizer("output_normalizer", output_normalizer, model.width_in[-1])
    variables = _columns(model)
    steps = []
    for layer in range(model.depth):
        nodes = [sympy.Dummy(real=True) for _ in range(model.width_in[layer])] if layer else variables
        made = _after(model, layer, nodes if layer else _normalized_inputs(model, variables, inputs), numeric)
        steps.append(numpy_of([nodes], made if layer < model.depth - 1 else _denormalized(made, outputs)))
    return _of_rows(steps, model.in_features)


# -- one layer -----------------------------------------------------------------------------------------


def _after(model: Network, layer: int, nodes: list[Any], written: str) -> list[Any]:
    """The next layer's nodes, as expressions of this one's."""
    import sympy

    terms: list[list[Any]] = [[] for _ in range(model.width_out[layer + 1])]
    numeric, symbolic = model.layers[layer], model.symbolic[layer]
    pieces = pieces_of(numeric)
    for i, j in mask_of(numeric).nonzero().tolist():
        if written == "functions":
            terms[j].append(named_edge(f"phi_{layer}_{i}_{j}", numeric, pieces, i, j, nodes[i]))
        else:
            terms[j].append(numeric_edge(numeric, pieces, i, j, nodes[i]))
    for edge, affine in zip(symbolic.edges, _values(symbolic.affine)):
        terms[edge.j].append(symbolic_edge(edge.name, affine, nodes[edge.i]))

    def mapped(values: list[Any], scale: Tensor, bias: Tensor) -> list[Any]:
        return [scaled(s, value, b) for s, value, b in zip(_values(scale), values, _values(bias))]

    sums = [sympy.Add(*term) for term in terms]
    subnodes = mapped(sums, model.subnode_scale[layer], model.subnode_bias[layer])
    groups = model.architecture.factors(layer + 1)
    factors = [[subnodes[factor] for factor in group] for group in groups]
    products = [product_of(each) for each in factors]
    return mapped(products, model.node_scale[layer], model.node_bias[layer])


# -- NumPy ---------------------------------------------------------------------------------------------


def numpy_of(arguments: list[Any], formulas: list[Any]) -> Callable[..., Any]:
    """A function of lists of arrays, one for each list of symbols in ``arguments``, to a list of values.

    Raises:
        ValueError: for a function that neither NumPy nor the library knows.
    """
    import sympy
    from sympy.core.function import AppliedUndef
    from sympy.simplify.cse_main import tree_cse

    ours: dict[str, Any] = {}
    names: dict[Any, str] = {}

    def safe(expression: Any) -> Any:
        if not isinstance(expression, AppliedUndef):
            return expression
        function = expression.func  # whose name is anything a user likes, so it never becomes code
        if function not in names:
            names[function] = f"added_{len(names)}"
            own = getattr(function, "_imp_", None)
            ours[names[function]] = _through_torch(lookup(function.__name__).fun) if own is None else own
        return sympy.Function(names[function])(*expression.args)

    memo: dict[Any, Any] = {}
    formulas = [rebuilt(formula, safe, memo) for formula in formulas]
    modules = [ours, "scipy", "numpy"] if find_spec("scipy") else [ours, "numpy"]
    options: dict[str, Any] = {}
    if any(formula.has(sympy.Piecewise) for formula in formulas):
        # of cells of cells lambdify sees only what tree_cse leaves; as trees they'd be too long to walk
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


def _of_rows(steps: list[Callable[..., Any]], in_features: int) -> Callable[[Any], Any]:
    """What takes arrays of rows, of what take lists of columns."""

    def formula(x: Any) -> Any:
        import numpy

        try:
            rows = numpy.asarray(x, dtype=numpy.float64)
        except (TypeError, ValueError, RuntimeError) as error:  # of torch for a tensor that NumPy can't have
            raise TypeError(f"x must be an array of numbers, got {type(x).__name__}: {error}") from None
        if rows.ndim == 0 or rows.shape[-1] != in_features:
            raise ValueError(f"x must have the shape [..., in_features={in_features}], got {list(rows.shape)}")
        columns = list(numpy.moveaxis(rows, -1, 0))
        with numpy.errstate(all="ignore"):  # parts that a Piecewise doesn't take are computed too
            for step in steps:
                columns = [numpy.broadcast_to(column, rows.shape[:-1]) for column in step(columns)]
        return numpy.stack(columns, -1).astype(numpy.float64)

    return formula


# -- arguments -----------------------------------------------------------------------------------------


def _check_numeric(model: Network, numeric: str) -> None:
    if numeric == "raise":
        on = _splines(model)
        if on:
            raise ValueError(
                f"numeric edges have no formula, and there are some as (layer, i, j): {', '.join(map(str, on))}. Make "
                "them formulas by auto_symbolic or fix_symbolic, take them away by remove_edge, or ask for "
                "numeric='functions' or numeric='piecewise'"
            )


def _splines(model: Network) -> list[tuple[int, int, int]]:
    """The edges ``(layer, i, j)`` that are on as splines."""
    return [(n, i, j) for n, layer in enumerate(model.layers) for i, j in mask_of(layer).nonzero().tolist()]


def _warn_of_splines(model: Network) -> None:
    on = _splines(model)
    if not on:
        return
    named = [f"phi_{l}_{i}_{j}{_best_fit(model, l, i, j)}" for l, i, j in on[:MAX_NAMED]]
    more = "" if len(on) <= MAX_NAMED else f" and {len(on) - MAX_NAMED} more"
    warn(
        f"edges that are splines stand in the formula as functions of these names: {', '.join(named)}{more}. "
        "auto_symbolic(force=True) or fix_symbolic makes formulas of them, remove_edge takes them away, "
        "numeric='piecewise' writes them out"
    )


def _best_fit(model: Network, l: int, i: int, j: int) -> str:
    """The function that fits an edge best, in words; nothing where it has no finite values."""
    from .search import search

    x = trace(model, default_rows(model)[:1000])[l].nodes[:, i : i + 1]
    y = edge_functions(model.layers[l], model.symbolic[l], x.expand(-1, model.width_in[l]))[:, i, j : j + 1]
    if not bool(x.isfinite().all() & y.isfinite().all()):
        return ""
    fits = search(x, y)
    best = int(fits.r2[:, 0].argmax())
    return f" (best is {fits.names[best]}, R2 {fits.r2[best, 0]:.4f})"


def _columns(model: Network) -> list[Any]:
    """Symbols for the columns of x while a formula is made, named and so ordered as those it ends up with."""
    import sympy

    return [sympy.Symbol(f"x_{column + 1}", real=True) for column in range(model.in_features)]


def _variables(var: Sequence[Any] | None, count: int) -> list[Any]:
    import sympy

    if var is None:
        return [sympy.Symbol(f"x_{column + 1}") for column in range(count)]
    if not is_sequence(var):
        raise TypeError(f"var must be a list of names or symbols, got {var!r}")
    for each in var:
        if not isinstance(each, (str, sympy.Expr)):  # an auxiliary input is named by its expression
            raise TypeError(f"var must hold names, or symbols or expressions of sympy, got {each!r}")
    if len(var) != count:
        raise ValueError(f"var must have one entry for each of the {count} columns of x, got {len(var)}")
    made = [sympy.Symbol(each) if isinstance(each, str) else each for each in var]
    if len(set(map(str, made))) < count:
        raise ValueError(f"var must have different names, got {', '.join(map(str, made))}")
    return made


def _normalizer(name: str, value: Sequence[Any] | None, count: int) -> list[list[float]]:
    """Means and standard deviations."""
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
    """Rows, and labels if there are any, as the formula has them."""
    x, labels = default_rows(model), None
    if dataset is not None:
        from ..training.data import read_data

        data = read_data(
            dataset,
            in_features=model.in_features,
            out_features=model.width_in[-1],
            device=model.device,
            dtype=model.dtype,
        )
        pairs = [data.train] if data.test is None else [data.train, data.test]
        x, labels = (torch.cat(part) for part in zip(*pairs))
        labels = _rescaled(labels, output_normalizer)
    return _rescaled(x, normalizer), labels


def _rescaled(values: Tensor, normalizer: list[list[float]]) -> Tensor:
    mean, std = torch.tensor(normalizer, dtype=torch.float64)
    return values.detach().cpu().double() * std + mean


def _values(parameter: Tensor) -> Any:
    return parameter.detach().cpu().double().tolist()
