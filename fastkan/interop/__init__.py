"""Exchange with other code.

- ``convert``: modules and state_dicts of pykan, efficient-kan and inkan as fastkan's, and back
- ``replace``: KAN layers in the place of ``nn.Linear`` in any model
- ``pykan``: the functions and classes that pykan offers beside its network, under pykan's names
"""
