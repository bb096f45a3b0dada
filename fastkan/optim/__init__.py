"""Second-order optimizers for small models, which reach far smaller losses than L-BFGS in the same time."""

from .broyden import SelfScaledBroyden
from .levenberg_marquardt import LevenbergMarquardt, binary_cross_entropy, cross_entropy

__all__ = ["LevenbergMarquardt", "SelfScaledBroyden", "binary_cross_entropy", "cross_entropy"]
