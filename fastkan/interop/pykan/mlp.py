"""``MLP``: a multilayer perceptron with methods similar to the methods of a KAN, for comparisons with a KAN."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastkan_kernels import DEVICE, Choice, Each, Flag, Int, Real, check_alike, check_tensor, checked

from ...network.swaps import connection_cost, order_nodes
from ...training.data import read_data
from ...training.progress import progress_bar
from ...training.regularization import MLP_METRICS, edge_penalty
from .optimizer import LBFGS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = Int(least=0, most=2**64 - 1)
EPSILON = 1e-4  # added to the standard deviation of a node, because the sum is a divisor and must not be 0


class MLP(nn.Module):
    """A multilayer perceptron with SiLU activations between its layers.

    Args:
        width: number of nodes in each layer, beginning with the inputs.
        act: name of the activation function, which must be ``"silu"``.
        save_act: ignored, because activations are computed when they are needed.
        seed: seed of the initial parameters. The global random generators are not seeded.
        device: device of the parameters.

    Attributes:
        linears: list of the layers, which are ``nn.Linear`` modules.
        sample: rows of the last call of :meth:`fit` or :meth:`get_act`, or None before the first call.
        node_scores, edge_scores: scores from the last call of :meth:`attribute` as a list with one tensor for each
            layer, or None before the first call.

    Raises:
        TypeError, ValueError: if ``width`` has fewer than two layers, or if ``act`` is not ``"silu"``.

    Example:
        >>> model = MLP([2, 5, 1])
        >>> model(torch.rand(100, 2)).shape
        torch.Size([100, 1])
    """

    @checked(width=Each(Int(least=1)), act=Choice(["silu"]), save_act=Flag(), seed=SEED, device=DEVICE)
    def __init__(
        self, width: Sequence[int], act: str = "silu", save_act: bool = True, seed: int = 0, device: Any = "cpu"
    ) -> None:
        super().__init__()
        if len(width) < 2:
            raise ValueError(f"width must name at least two layers, got {width}")
        self.width = list(width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linears: Any = nn.ModuleList(itertools.starmap(nn.Linear, itertools.pairwise(width)))
        self.act_fun = nn.SiLU()
        self.sample: Tensor | None = None
        self.node_scores: list[Tensor] | None = None
        self.edge_scores: list[Tensor] | None = None
        self.to(device)

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self.linears)

    @property
    def in_features(self) -> int:
        """The number of inputs."""
        return self.width[0]

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.linears[0].weight.device

    @property
    def w(self) -> list[Tensor]:
        """The list of the weights ``[out, in]`` of each layer."""
        return [linear.weight for linear in self.linears]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [..., width[0]]`` to outputs ``[..., width[-1]]``.

        Raises:
            TypeError, ValueError: if ``x`` has the wrong type, dtype or shape.
        """
        check_tensor("x", x)
        if x.ndim == 0 or x.shape[-1] != self.width[0]:
            raise ValueError(f"x must have the shape [..., {self.width[0]}], got {list(x.shape)}")
        check_alike(x, weight=self.linears[0].weight)
        return self._activations(x)[-1]

    def _activations(self, x: Tensor) -> list[Tensor]:
        """Return a list with the inputs of each layer, followed by the outputs of the network."""
        nodes = [x]
        for linear in self.linears[:-1]:
            nodes.append(self.act_fun(linear(nodes[-1])))
        return [*nodes, self.linears[-1](nodes[-1])]

    def get_act(self, x: Any = None) -> list[Tensor]:
        """Compute the activations of samples, and store the samples as ``self.sample``.

        Args:
            x: samples ``[N, in]``, or a dataset with ``train_input`` (default: the stored samples).

        Returns:
            A list with the inputs of each layer, followed by the outputs of the network.

        Raises:
            ValueError: if ``x`` is None and no samples are stored.
        """
        x = x["train_input"] if isinstance(x, dict) else x
        if x is not None:
            self.sample = x.detach()
        if self.sample is None:
            raise ValueError("x must be given before the first fit, since no samples are stored yet")
        with torch.no_grad():
            return self._activations(self.sample)

    # -- attribution -------------------------------------------------------------------------------

    def attribute(self, x: Tensor | None = None) -> None:
        """Compute scores for the importance of each node and each weight to the outputs, and store the scores as
        ``node_scores`` and ``edge_scores``.

        Scores are computed backwards, from the outputs, which have the score 1, to the inputs. The score of a weight is
        the score of the node in which the weight ends, times the standard deviation of the weight's contribution to the
        node, divided by the standard deviation of the node. The score of a node is the sum of the scores of its
        outgoing weights, divided by the square root of the number of nodes in its layer.

        Args:
            x: samples ``[N, in]`` (default: the stored samples).
        """
        nodes = self.get_act(x)
        with torch.no_grad():
            self.node_scores, self.edge_scores = self._scores(nodes)

    def _scores(self, nodes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        added = self._contributions(nodes)
        node_scores: list[Tensor] = [nodes[-1].new_ones(self.width[-1])]
        edge_scores: list[Tensor] = []
        for layer in reversed(range(self.depth)):
            share = node_scores[0] / (nodes[layer + 1].std(0) + EPSILON)
            edge_scores.insert(0, added[layer].abs() * share.unsqueeze(1))
            node_scores.insert(0, edge_scores[0].sum(0) / self.width[layer] ** 0.5)
        return node_scores, edge_scores

    def _contributions(self, nodes: Sequence[Tensor]) -> list[Tensor]:
        """Return a list of tensors ``[out, in]``, one for each layer, with the standard deviation of each weight's
        contribution to its node. The standard deviation is given the sign of the weight."""
        return [each.std(0) * weight for each, weight in zip(nodes, self.w)]

    @checked(reg_metric=Choice(MLP_METRICS), lamb_l1=Real(), lamb_entropy=Real())
    def get_reg(
        self, reg_metric: str = "w", lamb_l1: float = 1.0, lamb_entropy: float = 2.0, x: Tensor | None = None
    ) -> Tensor:
        """Compute the penalty that :meth:`fit` adds to the loss. The result is differentiable.

        Args:
            reg_metric: name of the values that are penalized: ``"w"`` for the absolute weights, ``"act"`` for the
                standard deviation of each weight's contribution to its node, ``"fa"`` for the edge scores of
                :meth:`attribute`, or ``"a"`` for the standard deviation of each node.
            lamb_l1: factor of the sum of the penalized values.
            lamb_entropy: factor of the entropy of the penalized values.
            x: samples ``[N, in]`` (default: the stored samples).
        """
        nodes: list[Tensor] = []
        if reg_metric != "w":
            nodes = self._activations(self.get_act()[0] if x is None else x)
        if reg_metric == "a":
            total = nodes[0].new_zeros(())
            for each in nodes[1:]:
                size = each.std(0)
                share = size / (size.sum() + 1)
                total = total + lamb_l1 * size.sum() - lamb_entropy * (share * (share + 1e-4).log2()).sum()
            return total
        return edge_penalty([each.abs() for each in self._sizes(reg_metric, nodes)], lamb_l1, lamb_entropy)

    def _sizes(self, metric: str, nodes: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return a list with the values ``[out, in]`` of the weights of each layer. ``metric`` is a metric of
        :meth:`get_reg` other than ``"a"``."""
        if metric == "w":
            return self.w
        return self._contributions(nodes) if metric == "act" else self._scores(nodes)[1]

    reg = get_reg

    # -- training ----------------------------------------------------------------------------------

    @checked(
        opt=Choice(("LBFGS", "Adam")), steps=Int(least=0), log=Int(least=1), lamb=Real(least=0), lamb_l1=Real(),
        lamb_entropy=Real(), lr=Real(above=0), batch=Int(least=-1), reg_metric=Choice(MLP_METRICS), seed=SEED,
        progress=Flag(),
    )  # fmt: skip
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
        """Train the network on data. The arguments are the same as in :meth:`KAN.fit`, as far as they apply to an MLP.

        Args:
            dataset, opt, steps, log, lamb, lamb_l1, lamb_entropy, loss_fn: arguments of :meth:`KAN.fit`.
            lr, batch, metrics, display_metrics, seed, progress: arguments of :meth:`KAN.fit`.
            in_vars, out_vars, beta, device: ignored.
            reg_metric: name of the values that are penalized, see :meth:`get_reg`.

        Returns:
            A dictionary with the lists ``train_loss``, ``test_loss`` and ``reg``, and a list for each metric. The lists
            have one entry for each step. Losses are values of ``loss_fn``, or root mean squared errors if ``loss_fn``
            is None.

        Raises:
            TypeError, ValueError: if the data are not finite or do not fit the network, or if an argument is out of
                range.
        """
        data = read_data(
            dataset, in_features=self.width[0], out_features=self.width[-1], device=self.device,
            dtype=self.linears[0].weight.dtype, loss_fn=loss_fn,
        )  # fmt: skip
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

        def terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            reg = self.get_reg(reg_metric, lamb_l1, lamb_entropy, x) if lamb else x.new_zeros(())
            return loss_of(self(x), y), reg

        with progress_bar(steps, progress) as bar:
            for step in bar:
                batch_rows = next(batches)

                def closure(rows: tuple[Tensor, Tensor] = batch_rows) -> Tensor:
                    optimizer.zero_grad()
                    loss, reg = terms(*rows)
                    objective = loss + lamb * reg
                    objective.backward()
                    return objective

                optimizer.step(closure)  # type: ignore[arg-type]
                with torch.no_grad():
                    loss, reg = terms(*batch_rows)
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

    # -- plotting ----------------------------------------------------------------------------------

    @property
    def connection_cost(self) -> float:
        """The sum, over all weights, of the absolute weight times the horizontal distance between its two nodes. For
        the distance, the nodes of every layer are spaced evenly over a width of 1."""
        return connection_cost([weight.detach().abs() for weight in self.w])

    @torch.no_grad()
    def swap(self, l: int, i1: int, i2: int) -> None:
        """Exchange two nodes of a hidden layer in place, without changing the function of the network.

        Args:
            l: index of the layer of nodes, from 1 to ``depth - 1``.
            i1, i2: indices of the two nodes.
        """
        before, after = self.linears[l - 1], self.linears[l]
        for parameter in (before.weight, before.bias, after.weight.t()):
            parameter[[i1, i2]] = parameter[[i2, i1]]

    def auto_swap(self) -> None:
        """Exchange nodes of the hidden layers in place if the exchange reduces ``connection_cost``."""
        order_nodes([weight.detach().abs().t() for weight in self.w], self.swap)

    @checked(beta=Real(above=0), scale=Real(above=0), metric=Choice(("w", "act", "fa")))
    def plot(self, beta: float = 3.0, scale: float = 1.0, metric: str = "w") -> Figure:
        """Draw the nodes and weights of the network, with the inputs at the bottom. Positive weights are blue, and
        negative weights are red.

        Args:
            beta: contrast of the drawing. A weight is drawn with the opacity ``tanh(beta * abs(value))``, so that small
                weights become visible with a larger ``beta``.
            scale: size of the figure, relative to the default size.
            metric: name of the values that are drawn, see :meth:`get_reg`.

        Returns:
            The figure.
        """
        from matplotlib.collections import LineCollection

        from ...plotting.plot import open_pyplot, show_once

        with torch.no_grad():
            sizes = self._sizes(metric, self.get_act() if metric != "w" else ())
        figure, axes = open_pyplot().subplots(figsize=(3 * scale, 1.5 * scale * self.depth))
        show_once(figure)
        places = [(torch.arange(count) + 0.5).div(count).tolist() for count in self.width]
        for layer, size in enumerate(sizes):
            ends = [[(x, layer), (y, layer + 1)] for y in places[layer + 1] for x in places[layer]]
            values = size.detach().flatten().cpu()
            colors = [
                (0, 0, 1, a) if v > 0 else (1, 0, 0, a) for v, a in zip(values, (beta * values.abs()).tanh().tolist())
            ]
            axes.add_collection(LineCollection(ends, colors=colors, linewidths=0.5 * scale))
        for layer, each in enumerate(places):
            axes.scatter(each, [layer] * len(each), s=5000 * (scale / max(self.width)) ** 2, color="black")
        axes.set_axis_off()
        return figure

    def tree(self, x: Tensor | None = None, **options: Any) -> Figure:
        """Draw the tree of :func:`plot_tree` for the network at samples ``x [N, in]`` (default: the stored samples)."""
        from ...plotting.tree import plot_tree

        return plot_tree(self, self.get_act()[0] if x is None else x, **options)
