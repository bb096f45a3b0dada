"""The project fast-kan installs a package of the same name, and users have files of this name."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import fastkan
from fastkan.interop import name_clash


@pytest.mark.parametrize("name", name_clash.NAMES)
def test_names_of_the_other_package_say_whose_they_are(name: str) -> None:
    with pytest.raises(ImportError, match=f"{name} belongs to the project fast-kan .* another environment"):
        exec(f"from fastkan import {name}")
    with pytest.raises(ImportError, match="belongs to the project fast-kan"):
        getattr(fastkan, name)


def test_other_names_are_missing_as_in_any_module() -> None:
    with pytest.raises(ImportError, match="cannot import name 'FastCAR' from 'fastkan'"):
        exec("from fastkan import FastCAR")
    with pytest.raises(AttributeError, match="module 'fastkan' has no attribute 'FastCAR'"):
        fastkan.FastCAR  # noqa: B018
    assert not hasattr(fastkan, "FastCAR")


def test_a_folder_with_the_files_of_both_packages(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        name_clash.check_folder(str(tmp_path / "__init__.py"))
        name_clash.check_folder(fastkan.__file__)
    (tmp_path / "fastkan.py").touch()
    with pytest.warns(UserWarning, match="contains files of two packages named fastkan"):
        name_clash.check_folder(str(tmp_path / "__init__.py"))
