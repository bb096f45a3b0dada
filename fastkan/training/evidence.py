"""Estimation of the weight decay from the training data, by the evidence framework."""

from __future__ import annotations

import torch
from torch import nn

from ..optim.levenberg_marquardt import LevenbergMarquardt
from .objective import Objective

# The factor by which an estimate may change in one step. The estimates and the parameters depend on each other, and
# large jumps can set a whole layer to 0 before the parameters have adapted to the data.
MAX_CHANGE = 10.0
# The initial, smallest and largest weight decay, in units of the variance of the noise divided by the number of rows.
# For the initial weight decay, the variance is assumed to be 1.
INITIAL, SMALLEST, LARGEST = 1.0, 1e-6, 1e6


class Evidence:
    """Estimates of the weight decay of a network that is trained by the Levenberg-Marquardt method.

    In the framework of MacKay, A Practical Bayesian Framework for Backpropagation Networks, 1992, the labels have noise
    of an unknown variance, and the parameters of each group have a normal distribution of an unknown precision alpha.
    The estimates that maximize the evidence of the data are the fixed point of

        gamma = sum over the group of (1 - decay * variance),  alpha = gamma / (sum of the squares of the group)

    where gamma is the number of parameters that the data determine. As Foresee and Hagan, Gauss-Newton Approximation to
    Bayesian Learning, 1997, propose, every step of the optimizer is followed by one iteration for the estimates, with
    the matrix ``J^T J`` of the step. A group consists of the coefficients of all splines, or of all base functions,
    that start in one node.

    Args:
        parameters: the trained parameters.
        objective: the objective, which contains the network, the number of rows and the loss.
    """

    def __init__(self, parameters: list[nn.Parameter], objective: Objective) -> None:
        self.objective = objective
        decayed = set(map(id, objective.decayed()))
        groups, count = [], 0
        for parameter in parameters:
            if id(parameter) not in decayed:
                groups.append(torch.full((parameter.numel(),), -1))
                continue
            inputs, outputs = parameter.shape[-2:]
            nodes = count + torch.arange(inputs).unsqueeze(1).expand(inputs, outputs)
            groups.append(nodes.expand(parameter.shape).flatten())
            count += inputs
        self.group = torch.cat(groups).to(parameters[0].device)
        self.is_decayed = self.group >= 0
        self.count = count
        self.decay = torch.where(self.is_decayed, INITIAL / objective.rows, 0.0).double()

    def update(self, optimizer: LevenbergMarquardt, loss: float) -> bool:
        """Make one iteration after a step of the optimizer. Return whether an estimate has changed by more than 1%.

        Args:
            loss: the mean squared error or cross entropy after the step.
        """
        variances = optimizer.variances()
        if variances is None:
            return False
        on, rows = self.is_decayed, self.objective.rows
        determined = (1 - self.decay * variances).clamp(0, 1)
        noise = 1 / rows
        if self.objective.squares:
            noise = 2 * loss / max(rows - float(determined.sum()), 1.0)
        theta = optimizer.flat()
        gamma, squares = (
            torch.zeros(self.count, dtype=torch.float64, device=theta.device).index_add_(0, self.group[on], values[on])
            for values in (determined, theta.square())
        )
        old = self.decay[on]
        new = (noise * gamma / squares.clamp_min(1e-300))[self.group[on]]
        new = new.clamp(SMALLEST * noise, LARGEST * noise).clamp(old / MAX_CHANGE, old * MAX_CHANGE)
        self.decay[on] = new
        return bool(((new / old).log().abs() > 0.01).any())
