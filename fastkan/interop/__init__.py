"""Exchange of models with other packages.

- ``convert``: conversion of modules and state_dicts from pykan, efficient-kan and inkan to fastkan, and back
- ``replace``: replacement of ``nn.Linear`` layers by KAN layers in any model
- ``pykan``: the functions and classes that pykan has in addition to its network, under the names that they have in
  pykan
"""
