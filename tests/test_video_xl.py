"""Video-XL's summary tokens: recorded outputs of the published code, and a pass written out row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import parity
from tests.conftest import make_qwen25, make_video_xl
from videox2l import SettingsError, VideoX2L
from videox2l.compress import ChunkContext, ChunkEncoder, History, SummaryTokenCompressor
from videox2l.engine.summary import SummaryLayout
from videox2l.errors import ModelError
from videox2l.types import TextTokens, VisualTokens

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


# --- the published code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_outputs_of_the_published_code_are_reproduced(case: str) -> None:
    worst = parity.check(GOLDEN / case)
    assert len(worst) == 11
    assert max(worst.values()) < 0.1, worst  # in units of the tolerance


@pytest.mark.parametrize("control", parity.CONTROLS)
@pytest.mark.parametrize("case", CASES)
def test_a_broken_rule_is_noticed(case: str, control: str) -> None:
    worst = parity.check(GOLDEN / case, control)
    assert worst["sel0.question_logits"] > 1000
    assert worst["sel0.greedy_ids"] > 1


def test_the_parity_script_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["parity.py", str(GOLDEN / "a")])
    assert parity.main() == 0
    assert "FAIL" not in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["parity.py", str(GOLDEN / "a"), "--control", "keys-not-rerotated"])
    assert parity.main() == 1
    assert "FAIL" in capsys.readouterr().out


# --- layouts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1, 2, 3, 5, 8])
def test_interleaving_is_one_summary_token_after_every_ratio(ratio: int) -> None:
    for n in range(1, 18):
        for rest in range(ratio):
            count = (n + rest) // ratio
            if not count:
                continue
            layout = SummaryLayout(ratio, ratio - rest, count)
            expect: list[int] = []  # visual tokens are 0, 1, ..., summary tokens -1, -2, ...
            for token in range(n):
                expect.append(token)
                if (token + 1 + rest) % ratio == 0:
                    expect.append(-1 - sum(x < 0 for x in expect))
            visual, summary = torch.arange(n), -1 - torch.arange(count)
            whole = layout.interleave(visual, summary)
            assert whole.tolist() == expect
            assert layout.separate(whole).tolist() == [*visual.tolist(), *summary.tolist()]
            assert layout.columns().tolist() == [i for i, x in enumerate(expect) if x < 0]
            assert layout.visual_columns(n).tolist() == [i for i, x in enumerate(expect) if x >= 0]
            before = [sum(x >= 0 for x in expect[: expect.index(-1 - j)]) for j in range(count)]
            assert layout.covered().tolist() == before


def tokens_of(n: int, frames: int = 1, hidden: int = 64, seed: int = 0) -> VisualTokens:
    torch.manual_seed(seed)
    return VisualTokens(torch.randn(n, hidden), torch.arange(n)[None], (frames, 1, n // frames))


def test_remainders_are_carried_and_ends_have_ratio_two() -> None:
    compressor = SummaryTokenCompressor()
    seven = tokens_of(7)

    def layout(before: tuple[int, ...], last: bool = False, ratio: float = 4) -> tuple[int, int, int]:
        found = compressor.layout(seven, ratio, ChunkContext(before, last))
        return found.ratio, found.first, found.count

    assert layout(()) == (2, 2, 3)  # rest 1
    assert layout((7,)) == (4, 3, 2)  # 1 + 7 = 2 * 4, rest 0
    assert layout((7, 7)) == (4, 4, 1)  # rest 3
    assert layout((7, 7, 7)) == (4, 1, 2)  # 3 + 7 = 2 * 4 + 2
    assert layout((7, 7, 7, 7), last=True) == (2, 2, 3)  # of a rest of 2, a whole group is left out
    assert layout((7, 7, 7), last=True) == (2, 1, 4)  # rest 3: one token of it counts


def test_what_cannot_be_compressed_is_said_with_what_can() -> None:
    compressor, task = SummaryTokenCompressor(), ChunkContext((16,))
    with pytest.raises(SettingsError, match=r"16 visual tokens .* ratio 32: .* at most 16, or chunk_frames=8 or more"):
        compressor.layout(tokens_of(16, frames=4), 32, task)
    with pytest.raises(SettingsError, match=r"ratio 2\.5 .* whole number"):
        compressor.layout(tokens_of(16), 2.5, task)
    other = VideoX2L.from_model(*make_qwen25()).backbone
    with pytest.raises(ModelError, match="qwen2_5_vl was not trained with summary tokens"):
        compressor.compress(tokens_of(16), other.new_cache(), other, (2,), task)


# --- the pass, written out --------------------------------------------------------------------------------------


@torch.no_grad()
def written_out(backbone: Any, embeds: Tensor, layouts: list[SummaryLayout], past: Any) -> list[tuple[Tensor, Tensor]]:
    """The definition, row by row: a list of rows, who sees whom, all layers in full. `past`: (keys, values) rotated."""
    model = backbone.model.model
    rows: list[tuple[str, int]] = []  # (kind, number); kind "v", or the layout's number
    for token in range(len(embeds)):
        rows.append(("v", token))
        if token + 1 in layouts[0].covered().tolist():
            rows.append(("0", layouts[0].covered().tolist().index(token + 1)))
    main = len(rows)
    for number, layout in enumerate(layouts[1:], 1):
        rows += [(str(number), j) for j in range(layout.count)]
    c = past[0].shape[2]
    column = {row: c + i for i, row in enumerate(rows[:main])}
    sees, positions = torch.zeros(len(rows), c + len(rows), dtype=torch.bool), []
    for i, (kind, j) in enumerate(rows):
        sees[i, :c] = True
        if i < main:
            sees[i, c : c + i + 1] = True
            positions.append(c + i)
        else:
            behind = column[("v", int(layouts[int(kind)].covered()[j]) - 1)]
            sees[i, c : behind + 1] = True
            sees[i, c + i - j : c + i + 1] = True
            positions.append(behind + 1)
    x = torch.stack([embeds[j] if kind == "v" else model.beacon_embed_tokens.weight[0] for kind, j in rows])
    summary = torch.tensor([kind != "v" for kind, _ in rows])[:, None]
    cos, sin = backbone.rotation(torch.tensor(positions)[None])

    def turn(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (rows, heads, d)
        half = t.shape[-1] // 2
        return t * cos[:, None] + torch.cat((-t[..., half:], t[..., :half]), -1) * sin[:, None]

    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layouts]
    for index, layer in enumerate(model.layers):
        attention = layer.self_attn

        def project(name: str, h: Tensor, attention: Any = attention) -> Tensor:
            own = getattr(attention, f"beacon_{name}_proj", getattr(attention, f"{name}_proj"))
            return torch.where(summary, own(h), getattr(attention, f"{name}_proj")(h))

        h = layer.input_layernorm(x)
        q, k, v = (project(name, h).view(len(rows), -1, attention.head_dim) for name in "qkv")
        for number, layout in enumerate(layouts):
            picks = [i for i, (kind, _) in enumerate(rows) if kind == str(number)]
            at = backbone.rotation((c + torch.arange(layout.count))[None])
            found[number].append((turn(k[picks], *at), v[picks]))
        keys = torch.cat((past[0][index].transpose(0, 1), turn(k, cos, sin)))
        values = torch.cat((past[1][index].transpose(0, 1), v))
        group = q.shape[1] // k.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        logits = torch.einsum("qhd,khd->hqk", turn(q, cos, sin), keys) * attention.scaling
        weights = logits.masked_fill(~sees, -torch.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", weights, values).reshape(len(rows), -1)
        x = x + project("o", out)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    stacked = [[torch.stack(parts).transpose(1, 2) for parts in zip(*layers, strict=True)] for layers in found]
    return [(keys, values) for keys, values in stacked]


@pytest.mark.parametrize("beacons", ["qkv", "qkvo", "k"])
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("past", [0, 5])
def test_a_pass_is_what_its_definition_says(beacons: str, layers: int, past: int) -> None:
    backbone = VideoX2L.from_model(*make_video_xl(beacons=beacons, layers=layers)).backbone
    cache = backbone.new_cache()
    torch.manual_seed(5)
    shape = backbone.shape
    held = torch.randn(2, shape.layers, shape.heads, past, shape.head_dim)
    if past:
        cache.append(*held)
    embeds = torch.randn(13, 64)
    layouts = [SummaryLayout(6, 4, 2), SummaryLayout(2, 1, 7), SummaryLayout(3, 3, 4)]
    for subset in ([0], [1], [0, 1], [0, 1, 2]):
        chosen = [layouts[i] for i in subset]
        ours = backbone.summarise(embeds, chosen, cache)
        for (keys, values), (k, v) in zip(ours, written_out(backbone, embeds, chosen, held), strict=True):
            torch.testing.assert_close(keys, k, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(values, v, atol=1e-4, rtol=1e-4)
        assert len(cache) == past  # as it was


# --- modes ------------------------------------------------------------------------------------------------------


def encode(backbone: Any, history: str, ratios: tuple[float, ...] = (2, 8), chunks: int = 4) -> list[dict[float, Any]]:
    encoder = ChunkEncoder(backbone, SummaryTokenCompressor(), ratios, History.parse(history))
    ids = torch.arange(5)
    encoder.prefix(TextTokens(ids, backbone.embed(ids)))
    return [encoder.add(tokens_of(18, 2, seed=i), last=i == chunks - 1) for i in range(chunks)]


def test_the_coarse_level_of_one_pass_is_that_of_two() -> None:
    backbone = VideoX2L.from_model(*make_video_xl()).backbone
    own, fused, on_h = (encode(backbone, history) for history in ("own", "fused", "H"))
    for i in range(4):
        for other in (fused, on_h):
            torch.testing.assert_close(other[i][8].keys, own[i][8].keys, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(other[i][8].values, own[i][8].values, atol=1e-5, rtol=1e-5)
        assert len(own[i][2]) == len(fused[i][2]) == len(on_h[i][2])
    assert fused[0][2] is fused[0][8]  # both at ratio 2 in the first chunk: one set of KVs
    assert fused[3][2] is fused[3][8]
    torch.testing.assert_close(on_h[1][2].values, own[1][2].values, atol=1e-5, rtol=1e-5)  # behind the same chunk 0
    for a, b in ((own, fused), (own, on_h), (fused, on_h)):  # from then on the fine level differs in every mode
        assert (a[2][2].values - b[2][2].values).abs().max() > 0.05


def test_more_than_two_levels() -> None:
    backbone = VideoX2L.from_model(*make_video_xl()).backbone
    for history in ("own", "H", "L", "fused", "recent:2"):
        levels = encode(backbone, history, ratios=(1, 3, 8))
        assert [len(levels[1][ratio]) for ratio in (1, 3, 8)] == [18, 6, 2]
        assert [len(levels[2][ratio]) for ratio in (1, 3, 8)] == [18, 6, 2]  # 18 + 2 = 2 * 8 + 4


def test_recent_and_fine_histories_stand_compactly() -> None:
    """With all earlier chunks recent, or history L, the fine level is that of the fine stream's own pass."""
    backbone = VideoX2L.from_model(*make_video_xl()).backbone
    own = encode(backbone, "own")
    for history in ("L", "recent:3"):
        found = encode(backbone, history)
        for i in range(4):
            torch.testing.assert_close(found[i][2].values, own[i][2].values, atol=1e-4, rtol=1e-4)
            assert torch.equal(found[i][2].positions, own[i][2].positions)
