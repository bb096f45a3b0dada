"""From the packages that people have, and back: modules and state_dicts of pykan, efficient-kan and inkan.

- ``layouts``: how each package lays out a layer's tensors
- ``recognise``: whose class a module is
- ``modules``: :func:`convert`
- ``state_dicts``: :func:`convert_state_dict`
- ``back``: :func:`to_efficient_kan_state_dict`, :func:`to_pykan`
"""

from .export import to_efficient_kan_state_dict, to_pykan
from .modules import convert
from .state_dicts import convert_state_dict

__all__ = ["convert", "convert_state_dict", "to_efficient_kan_state_dict", "to_pykan"]
