"""Training of a network: data, objective, optimizers and the fit."""
