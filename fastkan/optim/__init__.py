"""Second-order optimizers for models with few parameters, which converge to far smaller errors than L-BFGS."""

from .levenberg_marquardt import LevenbergMarquardt

__all__ = ["LevenbergMarquardt"]
