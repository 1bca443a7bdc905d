"""Tiny checkpoints of every family, as `save_pretrained` writes them, loaded and asked on the command line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from tests.families.models import MAKERS, needs
from videox2l import ArraySource, VideoX2L
from videox2l.cli.app import app
from videox2l.conformance import made_up_clip
from videox2l.types import VideoInfo

CLIP = Path(__file__).parent.parent / "media" / "nasa_13013.mp4"
PROCESSORS = Path(__file__).parent.parent / "data" / "hf_processors.safetensors"
QUESTION = "What happens?"


@pytest.fixture(scope="module", params=sorted(MAKERS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Each family's name and a checkpoint: weights, tokenizer with its chat template, processor's settings."""
    family = str(request.param)
    needs(family)
    folder = tmp_path_factory.mktemp(family)
    model, processor = MAKERS[family]()
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    with safe_open(PROCESSORS, framework="pt") as file:
        written = file.metadata().get(family)  # as the library's processor saves it, all its other settings included
    name = "processor_config.json" if written else "video_preprocessor_config.json"
    (folder / name).write_text(written or json.dumps(processor.video_processor))
    return family, folder


def test_a_saved_checkpoint_answers_like_the_model(checkpoint: tuple[str, Path], video: np.ndarray) -> None:
    family, folder = checkpoint
    expect, loaded = VideoX2L.from_model(*MAKERS[family]()), VideoX2L.from_pretrained(str(folder))
    assert loaded.identity == expect.identity
    answers = []
    for x2l in (expect, loaded):
        memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
        answers.append(x2l.ask(memory, QUESTION, reload=1, max_new_tokens=8))
    assert answers[0].ids == answers[1].ids
    assert answers[0].evidence == answers[1].evidence


def test_a_checkpoint_answers_on_the_command_line(checkpoint: tuple[str, Path]) -> None:
    family, folder = checkpoint
    x2l = VideoX2L.from_model(*MAKERS[family]())
    expect = x2l.ask(x2l.ingest(CLIP, fps=1.0), QUESTION, max_new_tokens=3, reload=1)
    options = ["--model", str(folder), "--fps", "1", "--max-new-tokens", "3", "--reload", "1", "--json"]
    done = CliRunner().invoke(app, ["ask", str(CLIP), QUESTION, *options])
    assert done.exit_code == 0, done.output
    (answer,) = json.loads(done.stdout)["answers"]
    assert answer["ids"] == list(expect.ids)
    assert len([moment for moment in answer["evidence"] if moment["reloaded"]]) == 1


WORDY = ["internvl", "qwen3_vl", "smolvlm", "video_llama_3"]


@pytest.mark.parametrize("family", WORDY)
def test_frame_numbers_and_times_go_on_after_a_stop(family: str, tmp_path: Path) -> None:
    """An ingest that is stopped and goes on ends with the same answer as one that was not stopped."""
    needs(family)
    x2l = VideoX2L.from_model(*MAKERS[family]())
    options: dict[str, Any] = {"ratios": (1,), "chunk_frames": 4}
    clip = made_up_clip()  # frames 4 and 8 repeat a part of the ones before, in the chunks before

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        x2l.ingest(ArraySource(clip), store=tmp_path / "memory", progress=stop, **options)
    resumed, whole = (x2l.ingest(ArraySource(clip), store=store, **options) for store in (tmp_path / "memory", None))
    assert len(resumed) == len(whole) == 3
    first, second = (x2l.ask(memory, QUESTION, reload="all", max_new_tokens=8) for memory in (resumed, whole))
    assert first.ids == second.ids
    assert all((a.positions == b.positions).all() for a, b in zip(resumed.chunks, whole.chunks, strict=True))


@pytest.mark.parametrize("family", WORDY)
def test_levels_made_later_equal_those_made_at_once(family: str, tmp_path: Path, video: np.ndarray) -> None:
    """Words between frames and features of inner layers are kept with the visual tokens, on disk too."""
    needs(family)
    x2l = VideoX2L.from_model(*MAKERS[family]())
    options: dict[str, Any] = {"ratios": (2, 8), "chunk_frames": 4}
    stored = x2l.ingest(ArraySource(video), **options)
    lazy = x2l.ingest(ArraySource(video), store=tmp_path / "memory", l_tier="lazy", **options)
    first, second = (x2l.ask(memory, QUESTION, reload="all", max_new_tokens=8) for memory in (stored, lazy))
    assert first.ids == second.ids
    assert first.ids != x2l.ask(lazy, QUESTION, reload="none", max_new_tokens=8).ids


@pytest.mark.parametrize("family", WORDY)
def test_numbers_and_times_go_on_in_an_appended_video(family: str) -> None:
    """The second source's frames are numbered, and timed, behind the first one's: as if it had been one video."""
    needs(family)
    shared = family in ("qwen3_vl", "video_llama_3")  # a budget of the whole video would make other sizes of each part
    x2l = VideoX2L.from_model(*MAKERS[family](), max_pixels=24 * 32 if shared else None)
    clip = made_up_clip(8)
    half = clip[:4], clip[4:]
    if family == "video_llama_3":  # the first frame of what is appended is compared with nothing: let all of it change
        half = clip[:4], clip[4:] // 2
        clip = np.concatenate(half)
    backbone: Any = x2l.backbone
    told = partial(type(backbone).prefix, backbone)
    backbone.prefix = lambda _: told(VideoInfo(4, 4.0))  # what was known when the memory was begun
    options: dict[str, Any] = {"ratios": (1,), "chunk_frames": 4}
    grown = x2l.append(x2l.ingest(ArraySource(half[0], fps=1.0), **options), ArraySource(half[1], fps=1.0))
    whole = x2l.ingest(ArraySource(clip, fps=1.0), **options)
    assert [chunk.positions.tolist() for chunk in grown.chunks] == [chunk.positions.tolist() for chunk in whole.chunks]
    first, second = (x2l.ask(memory, QUESTION, reload="all", max_new_tokens=8) for memory in (grown, whole))
    assert first.ids == second.ids
