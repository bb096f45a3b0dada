"""Conversion of modules and state_dicts from pykan, efficient-kan and inkan to fastkan, and from fastkan to pykan and
efficient-kan."""

from .export import to_efficient_kan_state_dict, to_pykan
from .modules import convert
from .state_dicts import convert_state_dict

__all__ = ["convert", "convert_state_dict", "to_efficient_kan_state_dict", "to_pykan"]
