"""A classifier of handwritten digits with KAN layers: ``python -m fastkan.examples.digits`` (needs scikit-learn)."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import trange

from fastkan import replace_linear

from ._command import run


def main(steps: int = 300, folder: Path = Path()) -> float:
    """Replace the linear layers of an MLP by KAN layers, train the model on scikit-learn's digits, and plot some digits
    that the model misclassifies."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = map(torch.as_tensor, train_test_split(x / 8 - 1, y, random_state=0, stratify=y))
    x, x_test = x.float(), x_test.float()

    model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 10))
    print(replace_linear(model, nn.Linear, grid_size=5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    progress = trange(steps)
    for _ in progress:
        rows = torch.randint(len(x), (256,))
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.set_postfix_str(f"loss {loss.item():.3f}")

    with torch.no_grad():
        predicted = model(x_test).argmax(1)
    accuracy = (predicted == y_test).float().mean().item()
    wrong = (predicted != y_test).nonzero().flatten()[:8].tolist()
    figure = Figure(figsize=(8, 2), layout="constrained")
    for axes in figure.subplots(1, 8):
        axes.set_axis_off()
    for axes, row in zip(figure.axes, wrong):
        axes.imshow(x_test[row].view(8, 8).numpy(), cmap="gray_r")
        axes.set_title(f"{y_test[row]} as {predicted[row]}")
    figure.savefig(folder / "digits.png")
    print(f"test accuracy {accuracy:.1%}; see {folder / 'digits.png'} for digits that were misread")
    return accuracy


if __name__ == "__main__":
    run(main)
