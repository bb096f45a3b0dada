"""Training in several processes: ``torchrun --nproc-per-node 2 -m fastkan.examples.distributed``, or in one."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import trange

from fastkan import KAN

from ._command import run


def main(steps: int = 300, folder: Path = Path()) -> float:
    """Train a network on data that are divided between the processes, with grids that are adapted to the data of all
    processes, and plot the errors."""
    started = "RANK" in os.environ  # torchrun sets the variable
    if started:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if started else (0, 1)
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")

    x = 4 * torch.rand(4096, 2, generator=torch.Generator().manual_seed(0)) - 2
    x = x[x[:, 0].argsort()]
    x = x[rank * len(x) // ranks : (rank + 1) * len(x) // ranks].to(device)  # the ranks have different ranges of x_1
    y = torch.exp(torch.sin(torch.pi * x[:, :1]) + x[:, 1:] ** 2 / 4)

    network = KAN(width=[2, 5, 1], grid=8, seed=0, device=device)
    network.update_grid(x, group=distributed.group.WORLD)
    model = DistributedDataParallel(network) if started else network
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    progress = trange(steps, disable=rank > 0)
    for step in progress:
        if step in (steps // 4, steps // 2):
            network.update_grid(x, group=distributed.group.WORLD)
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.set_postfix_str(f"loss {loss.item():.1e}")

    if rank == 0:
        figure = Figure(layout="constrained")
        x_1, x_2, error = torch.cat([x, (network(x) - y).abs()], 1).detach().cpu().numpy().T
        figure.subplots().scatter(x_1, x_2, s=4, c=error)
        figure.savefig(folder / "distributed.png")
        print(f"loss {loss.item():.1e}; see {folder / 'distributed.png'} for errors on the data of the first process")
    if started:
        distributed.destroy_process_group()
    return loss.item()


if __name__ == "__main__":
    run(main)
