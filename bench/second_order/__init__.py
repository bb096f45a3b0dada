"""Second-order optimizers: exactness and cost of a step, Poisson's equation, grid extension, fits and many rows."""
