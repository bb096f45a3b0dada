"""The measurements of convolutions: all ways agree with float64, and the command writes its file and tables."""

from __future__ import annotations

from pathlib import Path

import torch

from bench import conv
from bench.records import read
from bench.report import conv_block
from fastkan import KANConv2d


def test_all_ways_compute_the_same() -> None:
    layer = KANConv2d(2, 3, 3, stride=2, padding=1)
    x = 2.4 * torch.rand(2, 2, 7, 7) - 1.2
    made = conv.contenders(layer)
    parameters = {sum(each.numel() for each in module.parameters()) for module in made.values()}
    assert parameters == {2 * 3 * 9 * 9}
    expected = conv._outcome(layer.double(), x.double(), torch.ones(2, 3, 4, 4).double())
    layer.float()
    for name, module in made.items():
        if name != conv.CONV:
            for found, like in zip(conv._outcome(module, x, torch.ones(2, 3, 4, 4)), expected):
                torch.testing.assert_close(found, like, rtol=1e-4, atol=1e-5)


def test_the_command_writes_its_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(conv, "CASES", (conv.Case(1, 1, 4, 1, 3),))
    monkeypatch.setattr(conv, "settle_allocator", lambda: True)
    file = tmp_path / "conv.json"
    assert conv.main(["--threads", "1", "--cases", "0", "--seconds", "0.05", "--json", str(file)]) == 0
    found = read(file)
    assert len(found.results) == 10
    for result in found.results:
        assert result["note"] is None
        assert result["seconds"][0] > 0
        assert result["contender"] == conv.CONV or max(result["error"]) < 1e-5
    text = conv_block(found.results, found.about)
    assert "1 x 1 x 4 x 4 to 1, 3 x 3" in text
