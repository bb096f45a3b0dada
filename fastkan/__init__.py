"""Kolmogorov-Arnold networks in PyTorch, with layers that run on hand-written Triton kernels.

>>> from fastkan import KAN, KANLinear
>>> layer = KANLinear(64, 64)
>>> model = KAN(width=[2, 5, 1], grid=5, k=3, seed=0)

# The layer

`KANLinear` takes the place of `nn.Linear`; `fastkan.functional.kan_linear` is the same without a module. Its methods
move the knots to where samples lie (`update_grid`), refine the grid without changing the functions (`refine`), switch
edges off (`set_mask`) and count inputs outside of the grid (`count_outside`, `outside_share`). `KANConv1d`, `KANConv2d`
and `KANConv3d` take the place of PyTorch's convolutions, with a function for each tap and the methods of `KANLinear`.
`KANLinear.from_splines(knots, coefficients, base_weight)` makes a layer from the tensors of any other B-spline layer.

# The workflow

| step | methods of `KAN` |
|---|---|
| construct | `KAN(width, grid, k, ...)`; `width=[2, [5, 2], 1]` has two multiplication nodes |
| train | `fit`: L-BFGS or Adam, sparsity by `lamb`; `train=("spline",)` learns new regions without forgetting |
| use | `predict` |
| look | `plot`, `plot_edge`, `plot_history`, `get_act`, `get_range` |
| simplify | `attribute`, `prune`, `prune_node`, `prune_edge`, `prune_input`, `remove_edge`, `remove_node` |
| refine | `refine` for finer grids, `update_grid_from_samples` for knots where the data are |
| enlarge | `expand_width`, `expand_depth`, `swap` |
| symbolic | `suggest_symbolic`, `fix_symbolic`, `auto_symbolic`, `unfix_symbolic`; `add_symbolic` extends the library |
| formula | `symbolic_formula` (sympy, equal to the forward), `formula_latex`, `formula_numpy` |
| keep | `save`, `KAN.load`: one file with masks, formulas, grids and history; loading runs no code |

Pruning, attribution and formulas use the rows of the last fit; after a training loop of your own give them as `x=`, or
call `model.get_act(x)` first. A fit by L-BFGS with `lamb > 0` also searches: the penalty rises slowly, and from time to
time a step is tried without one hidden node and goes on if it comes out better (`try_without=False` turns this off).
`train` with a dataset is `fit`; `train(True)` is PyTorch's. In a training loop of your own, `model.get_reg(x=x)` is the
penalty that `fit(lamb=...)` adds to the loss.

# Differences from pykan

The names are pykan's, those of its helper functions too (`kanpiler`, `get_feynman_dataset`, `MLP`, `ex_round`, ...).
No global generator is seeded and no argument is changed; models can be copied and pickled; `prune` and `refine` return
networks that share nothing with the original; pruning never severs a layer; `suggest_symbolic` leaves the model as it
is; a fit that meets an infinite or NaN loss returns to the last good parameters and says so. Arguments of older
versions are accepted with a warning that says what to write.

# Other packages

`convert` converts models of pykan, efficient-kan and inkan, and renamed or changed copies of their files, which it
recognises by their tensors and verifies by comparing outputs; `convert_state_dict` converts their checkpoints.
`model.load_state_dict(convert_state_dict(state))` loads a checkpoint of efficient-kan's `KAN` into a `fastkan.KAN`, or
into `KANLinear` layers in a list `layers`. Converted networks accept `model(x, update_grid=True)` and
`model.regularization_loss()` as efficient-kan's do. `to_pykan` and `to_efficient_kan_state_dict` convert in the
opposite direction. `replace_linear` replaces linear layers by KAN layers, and `KANFeedForward` takes the place of a
transformer's feed-forward block. After `import fastkan.interop.transformers`, `from_pretrained` of Hugging Face
transformers loads models that have KAN layers.

# Several processes

`KANLinear` and `KAN` train under DistributedDataParallel, FSDP, Lightning and accelerate as other modules do, and their
states can be saved by `torch.distributed.checkpoint`. With `group=torch.distributed.group.WORLD`, `update_grid` and
`refine` use the samples of all ranks, and all ranks get the same network. Without a group, they raise an error in
several processes, because the networks of the ranks would diverge. `fit` trains in one process only.
`fastkan.interop.tensor_parallel` has the styles with which `parallelize_module` distributes the edges of a layer.
Before a state is loaded into a network that is already distributed, give the network the formulas and masks of the
state.

# scikit-learn and arrays

`fastkan.sklearn` has the estimators `KANRegressor` and `KANClassifier`. Without scikit-learn, `model.fit(x, y)` and
`model.predict(x)` take NumPy arrays, DataFrames and lists, as do all methods with samples `x`.

# Backends

| | CPU | NVIDIA GPU (compute capability 8.0) |
|---|---|---|
| forward, backward, derivatives, autocast | `cpu`: PyTorch in blocks, NumPy for narrow layers | `triton`: kernels |
| `torch.func`, forward mode, `torch.export` | `reference`: PyTorch, stores all features | `reference` |
| `torch.compile` | `cpu`, as registered operators | `triton`, as registered operators |

`explain(layer, x)` says what would run and why; `with backend("reference"):` chooses. A backend that cannot
compute a call raises an error, and no other takes its place. Products of float32 follow PyTorch's own precision
settings. The same shapes on the same machine and versions give the same bits.
"""

import sys
from typing import TYPE_CHECKING

from fastkan_kernels import autotune, backend

from . import functional, optim
from .interop import pykan
from .interop.convert import convert, convert_state_dict, to_efficient_kan_state_dict, to_pykan
from .interop.name_clash import check_folder, missing_name
from .interop.pykan import *  # noqa: F403
from .interop.replace import replace_linear
from .kan import KAN
from .layers.conv import KANConv1d, KANConv2d, KANConv3d
from .layers.explain import explain
from .layers.feedforward import KANFeedForward
from .layers.function_library import SYMBOLIC_LIB, add_symbolic
from .layers.linear import KANLinear
from .training.data import create_dataset, create_dataset_from_data
from .version import __version__

check_folder(__file__)
if not TYPE_CHECKING:  # a type checker would believe that a module with __getattr__ has every name
    __getattr__ = missing_name

MultKAN = KAN  # as pykan calls it too
sys.modules[f"{__name__}.pykan"] = pykan  # so that `import fastkan.pykan` works, although the folder is interop/pykan

__all__ = [
    "KAN", "SYMBOLIC_LIB", "KANConv1d", "KANConv2d", "KANConv3d", "KANFeedForward", "KANLinear", "MultKAN",
    "__version__", "add_symbolic", "autotune", "backend", "convert", "convert_state_dict", "create_dataset",
    "create_dataset_from_data", "explain", "functional", "optim", "replace_linear", "to_efficient_kan_state_dict",
    "to_pykan", *pykan.__all__,
]  # fmt: skip
