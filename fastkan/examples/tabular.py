"""A regression on a noisy table with scikit-learn: ``python -m fastkan.examples.tabular`` (needs scikit-learn)."""

from __future__ import annotations

import warnings
from pathlib import Path

from ._command import run


def main(steps: int = 100, folder: Path = Path()) -> float:
    """Compare a KAN with scikit-learn's regressors by cross-validation on data in which half of the features have no
    influence, print the importance of each feature, and plot the KAN."""
    from sklearn.datasets import make_friedman1
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import cross_val_score

    from fastkan.sklearn import KANRegressor

    # y = 10 sin(pi x1 x2) + 20 (x3 - 0.5)^2 + 10 x4 + 5 x5 + noise; x6 to x10 have no influence.
    x, y = make_friedman1(500, noise=1.0, random_state=0)
    regressors = {
        "KANRegressor": KANRegressor(max_iter=steps, random_state=0),
        "gradient boosting": HistGradientBoostingRegressor(random_state=0),
        "ridge regression": RidgeCV(),
    }
    # The last digits of the score do not matter here, so a fit may end before it has converged.
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    scores = {name: cross_val_score(each, x, y, cv=3).mean() for name, each in regressors.items()}
    for name, score in scores.items():
        print(f"R2 {score:.3f}  {name}")

    regressor = KANRegressor(max_iter=steps, random_state=0).fit(x, y)
    names = [f"x{i}" for i in range(1, 11)]
    for name, share in zip(names, regressor.feature_importances_):
        print(f"{name:>3} {'#' * round(100 * share)}")
    regressor.model_.plot(in_vars=names).savefig(folder / "tabular.png")
    print(f"see {folder / 'tabular.png'} for the functions of the network")
    return scores["KANRegressor"]


if __name__ == "__main__":
    run(main)
