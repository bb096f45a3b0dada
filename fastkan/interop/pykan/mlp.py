"""``MLP``: the network to compare a KAN with, under the same names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastkan_kernels import DEVICE, Choice, Each, Flag, Int, Real, check_alike, check_tensor, checked

from ...network.swaps import connection_cost, order_nodes
from ...training.data import read_data
from ...training.regularization import MLP_METRICS, edge_penalty
from .optimizer import LBFGS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = Int(least=0, most=2**64 - 1)
FLOOR = 1e-4  # added to a node's spread, which may be 0


class MLP(nn.Module):
    """A multilayer perceptron with SiLU between its layers.

    Args:
        width: nodes of each layer, inputs first.
        act: ``"silu"``.
        save_act: without meaning: activations are computed when they are asked for.
        seed: of the parameters; nothing global is seeded.
        device: of the parameters.

    Attributes:
        linears: the layers, each an ``nn.Linear``.
        sample: the rows that it was last fitted to, or that :meth:`get_act` was given; None before.
        node_scores, edge_scores: what the last :meth:`attribute` has found, of each layer.

    Raises:
        TypeError, ValueError: for a width with fewer than two layers, or another activation.

    Example:
        >>> model = MLP([2, 5, 1])
        >>> model(torch.rand(100, 2)).shape
        torch.Size([100, 1])
    """

    @checked(width=Each(Int(least=1)), act=Choice(["silu"]), save_act=Flag(), seed=SEED, device=DEVICE)
    def __init__(
        self,
        width: Sequence[int],
        act: str = "silu",
        save_act: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if len(width) < 2:
            raise ValueError(f"width must name at least two layers, got {width}")
        self.width = list(width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            linears = [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(width)]
        self.linears: Any = nn.ModuleList(linears)
        self.act_fun = nn.SiLU()
        self.sample: Tensor | None = None
        self.node_scores: list[Tensor] | None = None
        self.edge_scores: list[Tensor] | None = None
        self.to(device)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.linears)

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.width[0]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.linears[0].weight.device

    @property
    def w(self) -> list[Tensor]:
        """The weights of each layer, ``[out, in]``."""
        return [linear.weight for linear in self.linears]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width[0]]`` to ``[..., width[-1]]``.

        Raises:
            TypeError, ValueError: for x of another kind, dtype or shape.
        """
        check_tensor("x", x)
        if x.ndim == 0 or x.shape[-1] != self.width[0]:
            raise ValueError(f"x must have the shape [..., {self.width[0]}], got {list(x.shape)}")
        check_alike(x, weight=self.linears[0].weight)
        return self._through(x)[-1]

    def _through(self, x: Tensor) -> list[Tensor]:
        """What enters each layer, and the output."""
        nodes = [x]
        for place, linear in enumerate(self.linears):
            x = linear(x)
            nodes.append(x if place == self.depth - 1 else self.act_fun(x))
            x = nodes[-1]
        return nodes

    def get_act(self, x: Any = None) -> list[Tensor]:
        """Send samples through, and keep them as the model's sample: a tensor, or a dataset with ``train_input``.

        Returns:
            What enters each layer, and the output.

        Raises:
            ValueError: without samples, before any fit.
        """
        x = x["train_input"] if isinstance(x, dict) else x
        if x is not None:
            self.sample = x.detach()
        if self.sample is None:
            raise ValueError("x must be given before a fit: there are no samples yet")
        with torch.no_grad():
            return self._through(self.sample)

    # -- what matters ------------------------------------------------------------------------------

    def attribute(self, x: Tensor | None = None) -> None:
        """Keep in ``node_scores`` and ``edge_scores`` how much each node and each weight matters for the outputs.

        A node's score goes to its weights, each by the spread of what it adds over the node's; the sum of a node's
        outgoing scores, over the root of the number of nodes in its layer, is the node's.

        Args:
            x: samples; None takes the model's.
        """
        nodes = self.get_act(x)
        with torch.no_grad():
            self.node_scores, self.edge_scores = self._scores(nodes)

    def _scores(self, nodes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        added = self._added(nodes)
        node_scores: list[Tensor] = [nodes[-1].new_ones(self.width[-1])]
        edge_scores: list[Tensor] = []
        for layer in reversed(range(self.depth)):
            share = node_scores[0] / (nodes[layer + 1].std(0) + FLOOR)
            edge_scores.insert(0, added[layer].abs() * share.unsqueeze(1))
            node_scores.insert(0, edge_scores[0].sum(0) / self.width[layer] ** 0.5)
        return node_scores, edge_scores

    def _added(self, nodes: Sequence[Tensor]) -> list[Tensor]:
        """The spread of what each weight adds to its node, with the weight's sign, ``[out, in]`` of each layer."""
        return [each.std(0) * weight for each, weight in zip(nodes, self.w)]

    @checked(reg_metric=Choice(MLP_METRICS), lamb_l1=Real(), lamb_entropy=Real())
    def get_reg(
        self, reg_metric: str = "w", lamb_l1: float = 1.0, lamb_entropy: float = 2.0, x: Tensor | None = None
    ) -> Tensor:
        """The penalty that :meth:`fit` adds; differentiable.

        Args:
            reg_metric: how sizes are measured: ``"w"`` by the weights, ``"act"`` by the spread of what they add,
                ``"fa"`` by :meth:`attribute`, ``"a"`` by the spread of each node.
            lamb_l1, lamb_entropy: strengths of the sizes' sum, and of the entropy of how nodes share them.
            x: samples; None takes the model's.
        """
        if reg_metric == "w":
            return edge_penalty([weight.abs() for weight in self.w], lamb_l1, lamb_entropy)
        samples = self.get_act()[0] if x is None else x
        nodes = self._through(samples)
        if reg_metric == "a":
            total = nodes[0].new_zeros(())
            for each in nodes[1:]:
                size = each.std(0)
                share = size / (size.sum() + 1)
                total = total + lamb_l1 * size.sum() - lamb_entropy * (share * (share + 1e-4).log2()).sum()
            return total
        sizes = self._added(nodes) if reg_metric == "act" else self._scores(nodes)[1]
        return edge_penalty([each.abs() for each in sizes], lamb_l1, lamb_entropy)

    reg = get_reg

    # -- training ----------------------------------------------------------------------------------

    @checked(
        opt=Choice(("LBFGS", "Adam")),
        steps=Int(least=0),
        log=Int(least=1),
        lamb=Real(least=0),
        lamb_l1=Real(),
        lamb_entropy=Real(),
        lr=Real(above=0),
        batch=Int(least=-1),
        reg_metric=Choice(MLP_METRICS),
        seed=SEED,
        progress=Flag(),
    )
    def fit(
        self,
        dataset: Any,
        opt: str = "LBFGS",
        steps: int = 100,
        log: int = 1,
        lamb: float = 0.0,
        lamb_l1: float = 1.0,
        lamb_entropy: float = 2.0,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        lr: float = 1.0,
        batch: int = -1,
        metrics: Sequence[Callable[[], Any]] | None = None,
        in_vars: object = None,
        out_vars: object = None,
        beta: object = None,
        device: object = None,
        reg_metric: str = "w",
        display_metrics: Sequence[str] | None = None,
        *,
        seed: int = 0,
        progress: bool = True,
    ) -> dict[str, list[float]]:
        """Train on data; the arguments are those of :meth:`KAN.fit`, as far as they have a meaning for an MLP.

        Args:
            dataset, opt, steps, log, lamb, lamb_l1, lamb_entropy, loss_fn, lr, batch, metrics, display_metrics, seed,
                progress: as in :meth:`KAN.fit`.
            in_vars, out_vars, beta, device: without meaning.
            reg_metric: as in :meth:`get_reg`.

        Returns:
            ``train_loss``, ``test_loss`` and ``reg`` after each step, and the metrics. Losses are root mean squares, or
            with a ``loss_fn`` its values.

        Raises:
            TypeError, ValueError: for data that is not finite or doesn't fit the network, and for arguments out of
                range.
        """
        from tqdm import tqdm

        data = read_data(
            dataset,
            in_features=self.width[0],
            out_features=self.width[-1],
            device=self.device,
            dtype=self.linears[0].weight.dtype,
            loss_fn=loss_fn,
        )
        squared = loss_fn is None
        loss_of = torch.nn.functional.mse_loss if loss_fn is None else loss_fn
        if opt == "LBFGS":
            optimizer: torch.optim.Optimizer = LBFGS(
                self.parameters(), lr=lr, history_size=10, line_search_fn="strong_wolfe",
                tolerance_grad=1e-32, tolerance_change=1e-32,
            )  # fmt: skip
        else:
            optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        names = [getattr(metric, "__name__", type(metric).__name__) for metric in metrics or ()]
        results: dict[str, list[float]] = {name: [] for name in ("train_loss", "test_loss", "reg", *names)}
        if display_metrics is not None and not set(display_metrics) <= set(results):
            raise ValueError(f"display_metrics must be of {sorted(results)}, got {sorted(display_metrics)}")
        batches = data.batches(batch, seed)
        with tqdm(range(steps), disable=not progress, ncols=100, desc="fit") as bar:
            for step in bar:
                x, y = next(batches)

                def terms(x: Tensor = x, y: Tensor = y) -> tuple[Tensor, Tensor]:
                    reg = self.get_reg(reg_metric, lamb_l1, lamb_entropy, x) if lamb else x.new_zeros(())
                    return loss_of(self(x), y), reg

                def closure(terms: Callable[[], tuple[Tensor, Tensor]] = terms) -> Tensor:
                    optimizer.zero_grad()
                    loss, reg = terms()
                    objective = loss + lamb * reg
                    objective.backward()
                    return objective

                optimizer.step(closure)  # type: ignore[arg-type]
                with torch.no_grad():
                    loss, reg = terms()
                    found = {"train_loss": loss}
                    if data.test is not None:
                        found["test_loss"] = loss_of(self(data.test[0]), data.test[1])
                for name, value in found.items():
                    results[name].append(float(value.sqrt() if squared else value))
                results["reg"].append(float(reg))
                for name, metric in zip(names, metrics or ()):
                    value = metric()
                    results[name].append(float(value.detach() if isinstance(value, Tensor) else value))
                if not bar.disable and step % log == 0:
                    shown = display_metrics or [name for name in ("train_loss", "test_loss", "reg") if results[name]]
                    bar.set_description(" | ".join(f"{name}: {results[name][-1]:.2e}" for name in shown))
        self.sample = data.train[0].detach()
        return results

    # -- order and pictures ------------------------------------------------------------------------

    @property
    def connection_cost(self) -> float:
        """The sum of all weights' sizes, each times how far apart its ends are if each layer has width 1."""
        return connection_cost([weight.detach().abs() for weight in self.w])

    @torch.no_grad()
    def swap(self, l: int, i1: int, i2: int) -> None:
        """Exchange two nodes of a hidden layer; the network computes what it did."""
        before, after = self.linears[l - 1], self.linears[l]
        for parameter in (before.weight, before.bias, after.weight.t()):
            parameter[[i1, i2]] = parameter[[i2, i1]]

    def auto_swap(self) -> None:
        """Exchange nodes of the hidden layers, one after another, where that makes ``connection_cost`` less."""
        order_nodes([weight.detach().abs().t() for weight in self.w], self.swap)

    @checked(beta=Real(above=0), scale=Real(above=0), metric=Choice(("w", "act", "fa")))
    def plot(self, beta: float = 3.0, scale: float = 1.0, metric: str = "w") -> Figure:
        """Draw nodes, inputs below, and weights, blue above zero and red below; the more it matters the less
        transparent, with an alpha of ``tanh(beta * size)``.

        Args:
            beta: the greater, the more is seen of weights that matter little.
            scale: of the figure.
            metric: as in :meth:`get_reg`.

        Returns:
            The figure.
        """
        from matplotlib.collections import LineCollection

        from ...plotting.plot import open_pyplot, show_once

        if metric == "w":
            sizes = [weight.detach() for weight in self.w]
        else:
            nodes = self.get_act()
            sizes = [each.detach() for each in (self._added(nodes) if metric == "act" else self._scores(nodes)[1])]
        figure, axes = open_pyplot().subplots(figsize=(3 * scale, 1.5 * scale * self.depth))
        show_once(figure)
        places = [(torch.arange(count) + 0.5).div(count).tolist() for count in self.width]
        for layer, size in enumerate(sizes):
            ends = [[(x, layer), (y, layer + 1)] for y in places[layer + 1] for x in places[layer]]
            values = size.flatten().cpu()
            colors = [
                (0, 0, 1, a) if v > 0 else (1, 0, 0, a) for v, a in zip(values, (beta * values.abs()).tanh().tolist())
            ]
            axes.add_collection(LineCollection(ends, colors=colors, linewidths=0.5 * scale))
        for layer, each in enumerate(places):
            axes.scatter(each, [layer] * len(each), s=5000 * (scale / max(self.width)) ** 2, color="black")
        axes.set_axis_off()
        return figure

    def tree(self, x: Tensor | None = None, **options: Any) -> Figure:
        """:func:`plot_tree` at samples; None takes the model's."""
        from ...plotting.tree import plot_tree

        return plot_tree(self, self.get_act()[0] if x is None else x, **options)
