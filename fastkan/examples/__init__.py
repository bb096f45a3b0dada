"""Short example programs. ``python -m fastkan.examples.NAME`` runs the example NAME.

- ``quickstart``: uses KAN layers in an ordinary PyTorch model and training loop.
- ``formula``: trains a sparse network on data and finds the formula behind the data.
- ``poisson``: solves Poisson's equation with a network that is differentiated twice.
- ``burgers``: solves Burgers' equation, which depends on time, and compares the solution with that of a Fourier method.
- ``digits``: replaces the linear layers of a classifier of handwritten digits by KAN layers.
- ``distributed``: trains a network in several processes, with grids that are adapted to the data of all processes.
- ``tabular``: compares a regressor for scikit-learn with others on a noisy table, and shows which features it uses.
- ``swap``: converts a pykan model to a fastkan model, which computes the same outputs in less time.

Each example writes its pictures into the current folder. The option ``--steps`` sets the number of training steps,
which ``poisson`` and ``burgers`` make on each of two grids.
"""
