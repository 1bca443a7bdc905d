"""KVs in 8 and 4 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.disk.helpers import QUESTION, content, ingest, small_model
from videox2l import Memory, SettingsError
from videox2l.memory.disk.layout import PER_CHANNEL, PER_TOKEN, dequantise, quantise


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("axis", [PER_TOKEN, PER_CHANNEL])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 300.0])
def test_every_value_comes_back_within_half_a_scale(bits: int, axis: int, spread: float) -> None:
    torch.manual_seed(0)
    x = spread * (torch.randn(3, 2, 40, 16) + 5 * torch.randn(3, 2, 1, 16))
    codes, scale, zero = quantise(x, bits, axis)
    back = dequantise(codes, scale, zero, bits, torch.float32)
    ulp = 4 * torch.finfo(torch.float32).eps * x.abs().amax()
    assert ((back - x).abs() <= scale / 2 + ulp).all()
    assert (scale <= (x.amax(axis, keepdim=True) - x.amin(axis, keepdim=True)) / (2**bits - 1) + ulp).all()
    assert codes.shape[-1] == (16 if bits == 8 else 8)
    assert codes.dtype == torch.uint8
    again = quantise(back, bits, axis)[0]
    assert torch.equal(again, codes)  # what was rounded once stays as it is


@pytest.mark.parametrize("bits", [8, 4])
def test_constants_and_edges_come_back_exactly(bits: int) -> None:
    x = torch.full((1, 1, 6, 4), -3.25)
    assert torch.equal(dequantise(*quantise(x, bits, PER_TOKEN), bits, torch.float32), x)
    edges = torch.tensor([[-1.0, 0.0, 0.0, 2.0]]).reshape(1, 1, 1, 4)
    back = dequantise(*quantise(edges, bits, PER_TOKEN), bits, torch.float32)
    assert back.min() == -1
    assert back.max() == 2


def test_axes_follow_the_outliers() -> None:
    """Outliers in single channels of values cost nothing when scales are per channel: VidKV's point."""
    torch.manual_seed(1)
    x = torch.randn(1, 2, 64, 32)
    x[..., 3] *= 50
    rest = [i for i in range(32) if i != 3]

    def error(axis: int) -> float:
        back = dequantise(*quantise(x, 8, axis), 8, torch.float32)
        return float((back - x)[..., rest].square().mean().sqrt())

    assert error(PER_CHANNEL) < error(PER_TOKEN) / 5


def test_half_bytes_need_an_even_head_size() -> None:
    with pytest.raises(SettingsError, match="head size of 5: it is odd"):
        quantise(torch.zeros(1, 1, 2, 5), 4, PER_TOKEN)


def test_levels_on_disk_are_near_and_smaller(tmp_path: Path) -> None:
    x2l = small_model()
    full = ingest(x2l, tmp_path / "16", ratios=(2, 8))
    sizes = {}
    for bits, bound in ((8, 0.01), (4, 0.12)):
        memory = ingest(x2l, tmp_path / str(bits), ratios=(2, 8), l_bits=bits, h_bits=bits)
        for name in ("keys", "values"):
            one, two = (getattr(m.chunks[0].level(2), name) for m in (full, memory))
            assert (one - two).norm() / one.norm() < bound
        sizes[bits] = sum(len(data) for name, data in content(tmp_path / str(bits)).items() if "chunks/" in name)
        assert len(x2l.ask(memory, QUESTION, max_new_tokens=4).ids) == 4
    sixteen = sum(len(data) for name, data in content(tmp_path / "16").items() if "chunks/" in name)
    assert sizes[4] < sizes[8] < 0.75 * sixteen  # small heads and parts: scales and indices weigh more than in 7B


def test_precision_without_a_store_is_that_on_disk(tmp_path: Path) -> None:
    x2l = small_model()
    ram, disk = ingest(x2l, l_bits=4, h_bits=8), ingest(x2l, tmp_path / "a", l_bits=4, h_bits=8)
    for ratio in (2, 8):
        assert torch.equal(ram.chunks[3].level(ratio).keys, disk.chunks[3].level(ratio).keys)
        assert torch.equal(ram.chunks[3].level(ratio).values, disk.chunks[3].level(ratio).values)
    ram.save(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert Memory.load(tmp_path / "b").summary() == disk.summary()


@pytest.mark.parametrize("bits", [16, 0, 3, "8"])
def test_other_precisions_are_refused(bits: int) -> None:
    with pytest.raises(SettingsError, match=f"l_bits must be one of 8, 4, got {bits!r}"):
        ingest(small_model(), l_bits=bits)
