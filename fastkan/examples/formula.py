"""Discovery of a formula in data: ``python -m fastkan.examples.formula``."""

from __future__ import annotations

from pathlib import Path

import torch

from fastkan import KAN, create_dataset

from ._command import run


def main(steps: int = 50, folder: Path = Path()) -> str:
    """Train a network with a sparsity penalty, prune it, replace its edges by functions, and print the formula."""
    dataset = create_dataset(lambda x: torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2), n_var=2)
    model = KAN(width=[2, 5, 1], grid=5, k=3, seed=0)

    # The penalty pushes edges that are not needed to fit the data towards zero, and pruning removes these edges.
    model.fit(dataset, opt="LBFGS", steps=min(20, steps), lamb=0.01, lamb_entropy=10.0)
    model.plot().savefig(folder / "formula-trained.png")
    model = model.prune()
    model.fit(dataset, steps=steps)

    # Each remaining edge is replaced by a formula c f(a x + b) + d with a function f from the library. The parameters
    # of the formulas are then trained once more.
    model.auto_symbolic()
    model.fit(dataset, steps=steps)
    model.plot().savefig(folder / "formula-found.png")
    formula = str(model.symbolic_formula(digits="auto")[0][0])
    print(f"{formula}; see {folder / 'formula-trained.png'} and {folder / 'formula-found.png'}")
    return formula


if __name__ == "__main__":
    run(main)
