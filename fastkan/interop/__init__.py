"""Exchange of models with other packages.

- ``convert``: conversion of modules and state_dicts from pykan, efficient-kan and inkan to fastkan, and back
- ``replace``: replacement of linear layers by KAN layers in any model
- ``transformers``: KAN layers in ``save_pretrained`` and ``from_pretrained`` of Hugging Face transformers, which only
  this module imports
- ``tensor_parallel``: styles for ``parallelize_module`` of PyTorch, which distribute a KAN layer over processes
- ``pykan``: the functions and classes that pykan has in addition to its network, under the names that they have in
  pykan
"""
