"""Training of a network: the data sets, the objective, the optimizers, and ``fit``."""
