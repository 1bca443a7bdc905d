"""Checkpoints in the standard layout, and a torchvision that is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

from tests.conftest import FAMILIES, make_qwen25
from videox2l import ArraySource, ModelError, VideoX2L

QUESTION = "What happens?"


def save(family: str, folder: Path, file: str = "video_preprocessor_config.json") -> Path:
    """Write a tiny checkpoint as `save_pretrained` does, with the processor config in one of the known places."""
    model, processor = FAMILIES[family]()
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    config = processor.video_processor
    nested = {"processor_config.json": {"processor_class": "X", "video_processor": config}}
    (folder / file).write_text(json.dumps(nested.get(file, config)))
    return folder


def ids(x2l: VideoX2L, video: np.ndarray) -> tuple[int, ...]:
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
    return x2l.ask(memory, QUESTION, reload=1, max_new_tokens=8).ids


@pytest.mark.parametrize(
    "file", ["video_preprocessor_config.json", "processor_config.json", "preprocessor_config.json"]
)
def test_a_saved_checkpoint_answers_like_the_model(family: str, file: str, tmp_path: Path, video: np.ndarray) -> None:
    expect = VideoX2L.from_model(*FAMILIES[family]())
    loaded = VideoX2L.from_pretrained(str(save(family, tmp_path, file)))
    assert loaded.identity == expect.identity
    assert ids(loaded, video) == ids(expect, video)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = save("qwen2_5_vl", tmp_path)
    (folder / "video_preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no processor \(video_preprocessor_config\.json"):
        VideoX2L.from_pretrained(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    with pytest.raises(ModelError, match="no adapter for model type 'qwen2'"):
        VideoX2L.from_pretrained(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json: give the folder that save_pretrained wrote"):
        VideoX2L.from_pretrained(str(folder))


def test_max_pixels_makes_fewer_tokens(tmp_path: Path, video: np.ndarray) -> None:
    folder = str(save("qwen2_5_vl", tmp_path))
    many = VideoX2L.from_pretrained(folder).ingest(ArraySource(video))
    few = VideoX2L.from_pretrained(folder, max_pixels=16 * 16).ingest(ArraySource(video))
    assert few.full_tokens < many.full_tokens
    assert few.identity["processor"] != many.identity["processor"]


def test_a_models_attention_elsewhere_stays_the_same(video: np.ndarray) -> None:
    """Only the text decoder is switched; the vision tower keeps its attention."""
    model, processor = make_qwen25()
    before = model.model.visual.config._attn_implementation
    VideoX2L.from_model(model, processor)
    assert model.model.visual.config._attn_implementation == before
    assert model.get_decoder().config._attn_implementation == "x2l"


BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')\n"


def _run(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_broken_torchvision_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(BROKEN)
    if int(transformers.__version__.split(".")[0]) >= 5:  # the control: without this package, it does harm
        alone = _run("from transformers import Qwen2_5_VLForConditionalGeneration", tmp_path)
        assert alone.returncode != 0
    code = (
        "import numpy as np, warnings; warnings.simplefilter('ignore'); from videox2l import VideoX2L, ArraySource; "
        "x2l = VideoX2L.from_pretrained('demo'); memory = x2l.ingest(ArraySource(np.zeros((8, 48, 48, 3), np.uint8))); "
        "print('answer', x2l.ask(memory, 'what digit appears ?', max_new_tokens=2).finish)"
    )
    ours = _run(code, tmp_path)
    assert "answer" in ours.stdout, ours.stderr
