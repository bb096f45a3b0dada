"""A pytest plugin that runs the tests marked ``gpu`` on the simulated GPU of :mod:`fake_gpu`: ``-p on_fake_gpu``.

Such a test fails here if it mixes tensors of host and GPU, or uses the CPU backend for tensors on a GPU. The plugin
cannot run what wraps tensors in other tensors or needs their memory: torch.func, torch.compile, pickle, inference mode.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

UNABLE = ("test_eager", "functional_call", "pickle", "test_made_without_memory", "inference_mode")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that the simulated GPU cannot run."""
    left_out = [item for item in items if any(part in item.name for part in UNABLE)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def on_fake_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Simulate a GPU in tests that are marked ``gpu``."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    import cases
    from fake_gpu import fake_gpu

    for module in (cases, request.module):
        monkeypatch.setattr(module, "DEVICE", "cuda", raising=False)
    with fake_gpu(computes=True):
        yield
