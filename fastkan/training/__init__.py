"""Training of a network: data sets, the objective, its optimizers, and ``fit``."""
