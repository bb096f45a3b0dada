"""Progress bars: widgets in notebooks that can show them, and lines of text elsewhere."""

from __future__ import annotations

import warnings
from typing import Any

TEXT_COLUMNS = 100


def progress_bar(steps: int, enabled: bool) -> Any:
    """Return a progress bar of tqdm over ``range(steps)``, which shows nothing if ``enabled`` is False."""
    with warnings.catch_warnings():
        # In a notebook without ipywidgets, tqdm falls back to text, and warns.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    # A widget would take the number of columns as pixels.
    is_widget = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return tqdm(range(steps), disable=not enabled, ncols=None if is_widget else TEXT_COLUMNS, desc="fit")
