"""The doctor on whole and on broken checkpoints, and the brief check that loading makes once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import make_qwen25
from tests.families.models import MAKERS, needs
from videox2l import ArraySource, Memory, ModelError, VideoX2L
from videox2l.backbones import loading
from videox2l.backbones.qwen2_vl import MRopeBackbone
from videox2l.cli.app import app
from videox2l.conformance import check_cache
from videox2l.conformance.doctor import diagnose
from videox2l.conformance.key_heads import find_votes
from videox2l.memory.disk import object_cache
from videox2l.memory.features import INDEX
from videox2l.memory.votes import index_rows
from videox2l.options import LoadOptions

TITLES = ["files", "adapter", "processor", "weights", "frames", "attention", "rope", "theta"]
PROOFS = ["positions", "chunk boundaries", "rotation", "exact", "wrong-position control", "greedy", "multi-turn"]


def write(family: str, folder: Path) -> Path:
    needs(family)
    model, processor = MAKERS[family]()
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    (folder / "video_preprocessor_config.json").write_text(json.dumps(processor.video_processor))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("qwen2_5_vl", tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint to break, and a cache of verdicts of its own."""
    monkeypatch.setenv(object_cache.FOLDER, str(tmp_path / "cache"))
    return Path(shutil.copytree(whole, tmp_path / "model"))


def doctor(*args: object) -> Any:
    return CliRunner().invoke(app, ["doctor", *map(str, args)])


def edit(folder: Path, change: Callable[[dict[str, Any]], None], file: str = "config.json") -> None:
    path = folder / file
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_every_family_is_well(family: str, tmp_path: Path) -> None:
    findings = list(diagnose(str(write(family, tmp_path)), LoadOptions(device="cpu")))
    assert [found for found in findings if not found.ok] == []
    assert [found.name for found in findings] == [*TITLES, *PROOFS, "own load", "key heads", "memory"]


def test_the_models_that_ship_are_well() -> None:
    for name in ("demo", "demo-xl"):
        done = doctor(name)
        assert done.exit_code == 0, done.output
        assert done.stdout.endswith("\nok\n")
        assert "an hour at 1280x720 and 1 frame per second" in done.stdout


def _theta_everywhere(config: dict[str, Any]) -> None:
    for part in (config, config["text_config"]):
        for block in (part, part.get("rope_parameters") or {}):
            if "rope_theta" in block:
                block["rope_theta"] = 10000.0


def _theta_once(config: dict[str, Any]) -> None:
    """As after an edit by hand: one of the two places."""
    config["text_config"]["rope_theta"] = 500.0
    config["text_config"].setdefault("rope_parameters", {"rope_type": "default"})["rope_theta"] = 1e6


def _scaling_lost(config: dict[str, Any]) -> None:
    """As after a conversion: the old block says YaRN, the new one does not."""
    text = config["text_config"]
    text.setdefault("rope_parameters", text.get("rope_scaling"))
    text["rope_scaling"] = {"type": "yarn", "factor": 4.0, "mrope_section": [2, 3, 3]}


def _sliding(config: dict[str, Any]) -> None:
    config["text_config"]["layer_types"] = ["full_attention", "sliding_attention", "full_attention"]
    config["text_config"].update(use_sliding_window=True, sliding_window=64, max_window_layers=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_theta_everywhere, "wrong rope theta: the model rotates by 10000, and published qwen2_5_vl models by 1e+06"),
        (_theta_once, "wrong rope theta: config.json says text_config.rope_"),
        (_scaling_lost, "wrong rope scaling: config.json says text_config."),
        (_sliding, "layers of type sliding_attention"),
    ],
)
def test_broken_configs_fail_with_the_cause(folder: Path, change: Callable[[Any], None], said: str) -> None:
    edit(folder, change)
    done = doctor(folder, "--device", "cpu")
    assert done.exit_code == 1
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("first difference: ")
    assert said in last


def test_weights_that_were_loaded_wrongly_fail_against_transformers_own_load(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FP8 weights without their scales were: every check on the model as it was loaded says ok."""
    load = loading.load_model

    def without_scales(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        with torch.no_grad():
            model.get_decoder().layers[1].mlp.down_proj.weight.mul_(4)
        return model

    found = {result.name: result for result in diagnose(str(folder))}
    assert found["own load"].ok
    assert "says the same" in found["own load"].detail
    monkeypatch.setattr(loading, "load_model", without_scales)
    found = {result.name: result for result in diagnose(str(folder))}
    assert all(found[name].ok for name in PROOFS)
    assert not found["own load"].ok
    assert "not those that transformers loads" in found["own load"].detail


def test_a_missing_processor_fails_with_the_cause(folder: Path) -> None:
    (folder / "video_preprocessor_config.json").unlink()
    done = doctor(folder, "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["ok"] is False
    assert [entry["name"] for entry in found["findings"]] == ["files", "adapter", "processor"]
    assert "has no processor (video_preprocessor_config.json" in found["findings"][-1]["detail"]


def test_an_unusual_theta_can_be_said_to_be_right(folder: Path) -> None:
    edit(folder, _theta_everywhere)
    assert doctor(folder, "--rope-theta", 10000).exit_code == 0
    done = doctor(folder, "--rope-theta", 20000)
    assert done.exit_code == 1
    assert "wrong rope theta: 20000 was expected" in done.stdout


def test_loading_checks_once_and_remembers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "cache" / "verdicts"
    VideoX2L.from_pretrained(str(folder))
    (verdict,) = kept.iterdir()
    assert [found["ok"] for found in json.loads(verdict.read_text())["findings"]] == [True] * 4

    def again(*_: object, **__: object) -> Any:
        raise AssertionError("checked a second time")

    with monkeypatch.context() as patch:
        patch.setattr(check_cache, "examine", again)
        VideoX2L.from_pretrained(str(folder))  # looked up
        with pytest.raises(AssertionError):
            VideoX2L.from_pretrained(str(folder), max_pixels=16 * 16)  # another processor is another key
    assert len(list(kept.iterdir())) == 1
    VideoX2L.from_pretrained(str(folder), max_pixels=16 * 16, check=False)
    assert len(list(kept.iterdir())) == 1


def test_loading_refuses_what_is_served_wrongly(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter with wrong positions: refused, refused again without a second check, and loaded when asked to."""
    right = MRopeBackbone.chunk_positions
    with monkeypatch.context() as patch:
        patch.setattr(MRopeBackbone, "chunk_positions", lambda *args: right(*args) + 1)
        with pytest.raises(ModelError, match="qwen2_5_vl is not served rightly here: positions: token"):
            VideoX2L.from_pretrained(str(folder))
        VideoX2L.from_pretrained(str(folder), check=False)
    with pytest.raises(ModelError, match="not served rightly"):  # the verdict stands for this version
        VideoX2L.from_pretrained(str(folder))
    assert doctor(folder).exit_code == 0  # which looks again, and corrects it
    VideoX2L.from_pretrained(str(folder))


def test_contradicting_rope_settings_are_refused_when_loading(folder: Path) -> None:
    edit(folder, _theta_once)
    with pytest.raises(ModelError, match="wrong rope theta"):
        VideoX2L.from_pretrained(str(folder))
    VideoX2L.from_pretrained(str(folder), check=False)


def test_a_cache_that_cannot_be_written_does_no_harm(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(object_cache.FOLDER, str(tmp_path / "file"))
    VideoX2L.from_pretrained(str(folder))
    monkeypatch.delenv(object_cache.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert object_cache.cache_folder().name in ("videox2l", "Cache")


def test_heads_are_found_once_and_kept_with_a_memory(tmp_path: Path) -> None:
    """The same heads each time, of few kv heads; a memory keeps the keys of these alone, on disk as well."""
    x2l = VideoX2L.from_model(*make_qwen25(layers=14))
    found = find_votes(x2l.backbone, films=1)
    assert found == find_votes(x2l.backbone, films=1)
    rows = index_rows(found.votes, x2l.backbone.shape.heads)
    assert 1 <= len(rows) <= 0.075 * 14 * x2l.backbone.shape.heads
    assert all(kind.startswith("head ") for _, kind in found.votes)
    video = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    earlier = x2l.ingest(ArraySource(video), chunk_frames=4)
    x2l.backbone.index_votes = found.votes  # type: ignore[attr-defined]
    x2l.append(earlier, ArraySource(video))  # a memory goes on with what it began with
    assert len({chunk.features[INDEX].shape[0] for chunk in earlier.chunks}) == 1
    assert len(x2l.ask(earlier, "Which?", reload=1, max_new_tokens=1).reloaded) == 1
    memory = x2l.ingest(ArraySource(video), store=tmp_path / "m.x2l", chunk_frames=4)
    assert memory.chunks[0].features[INDEX].shape[0] == len(rows)
    assert memory.settings["index"] == [list(vote) for vote in found.votes]
    answers = [
        x2l.ask(held, "Which?", reload=1, max_new_tokens=4) for held in (memory, Memory.load(tmp_path / "m.x2l"))
    ]
    assert answers[0].ids == answers[1].ids
    assert [moment.score for moment in answers[0].evidence] == [moment.score for moment in answers[1].evidence]
