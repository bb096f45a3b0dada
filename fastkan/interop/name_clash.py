"""Error messages for programs that need the project fast-kan, which installs a package of the same name, ``fastkan``.

If the other package, or a user's own file ``fastkan.py``, comes first on Python's path, no code of this package runs,
so no message is possible. Two cases can be recognised: names of the other package are imported from this one, and both
packages were installed into one folder, where the files of the one installed last replace some of the other's.
"""

from __future__ import annotations

import os
from typing import Any

from fastkan_kernels import warn

# The public names of fast-kan, and a file that fast-kan's folder contains and this package's folder does not.
NAMES = ("FastKAN", "FastKANLayer", "AttentionWithFastKANTransform", "SplineLinear", "RadialBasisFunction")
FILE = "fastkan.py"


def missing_name(name: str) -> Any:
    """Raise the error for a name that the package does not have.

    Raises:
        ImportError: for a name of fast-kan. An AttributeError would be replaced by Python's own message in
            ``from fastkan import ...``.
        AttributeError: for any other name.
    """
    if name in NAMES:
        raise ImportError(
            f"{name} belongs to the project fast-kan (radial basis functions), whose package has the same name as this "
            "one, fastkan (splines on Triton kernels). Both cannot be installed together: use another environment for "
            "fast-kan"
        )
    raise AttributeError(f"module 'fastkan' has no attribute {name!r}")


def check_folder(file: str) -> None:
    """Warn if the folder of a file of this package also contains files of fast-kan."""
    folder = os.path.dirname(file)
    if os.path.exists(os.path.join(folder, FILE)):
        warn(
            f"{folder} contains files of two packages named fastkan: of this one and of the project fast-kan. "
            "Uninstall both, delete what is left of the folder, and install one of them"
        )
