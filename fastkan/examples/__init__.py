"""Short programs that show one use each; run one by ``python -m fastkan.examples.NAME``.

- ``quickstart``: a KAN layer in an ordinary PyTorch model and training loop.
- ``formula``: from data to a sparse network and to the formula behind the data.
- ``pinn``: Poisson's equation solved by a network, with derivatives of any order.
- ``digits``: a classifier of handwritten digits with its linear layers replaced.
- ``swap``: a pykan model converted, with equal outputs in a fraction of the time.

Each writes its picture into the current folder, and takes ``--steps`` for a shorter or longer run.
"""
