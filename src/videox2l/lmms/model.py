"""lmms-eval's side of the model `videox2l`: its arguments, and requests in, answers out."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import av
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from videox2l.errors import SettingsError, VideoWarning
from videox2l.lmms.session import Job, Session
from videox2l.options import DEFAULT_SELECTOR
from videox2l.pipeline import VideoX2L

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts", ".flv", ".mpg", ".mpeg")


class VideoX2LModel(lmms):  # type: ignore[misc]  # lmms-eval carries no types
    """A video LLM with two-level KV memories, for lmms-eval.

    Parameters (of `--model_args`, separated by commas; lists inside a value by colons)
    ----------
    pretrained, revision, device, dtype, max_pixels
        As `VideoX2L.from_pretrained`.
    fps, max_frames, sampling, ratios, compressor, history, l_tier, l_bits, h_bits, chunk_frames
        As `VideoX2L.ingest`; `ratios=2:32`. With `max_frames` alone, frames are spread over the whole video.
    reload, selector
        As `VideoX2L.ask`: `reload=3`, `all`, `none` or `tokens:512`.
    store
        A folder in which memories are kept, so that another run or task does not ingest the video again.
    max_new_tokens, seed
        Where the task says nothing of the length of an answer; and the seed where it asks for sampling.

    Raises SettingsError for arguments that cannot work, before a model is loaded.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "demo",
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        max_pixels: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        sampling: str = "auto",
        ratios: Any = "2:32",
        compressor: str | None = None,
        history: str = "H",
        l_tier: str = "stored",
        l_bits: int | None = None,
        h_bits: int | None = None,
        chunk_frames: int | None = None,
        reload: Any = 3,
        selector: str = DEFAULT_SELECTOR,
        store: str | None = None,
        max_new_tokens: int = 128,
        seed: int = 0,
        batch_size: Any = 1,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        del batch_size, max_batch_size  # questions run one by one: they share a video, not a batch
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SettingsError("videox2l runs in one process: leave out accelerate or torchrun")
        if int(av.__version__.split(".")[0]) < 18:
            logger.warning(
                f"PyAV {av.__version__} crashes on some containers (MPEG program streams and FLV among them): "
                "pip install 'av>=18'"
            )
        ingest = {
            "fps": 1.0 if fps is None and max_frames is None else fps,
            "max_frames": max_frames,
            "sampling": sampling,
            "ratios": _numbers(ratios),
            "compressor": compressor,
            "history": history,
            "l_tier": l_tier,
            "l_bits": l_bits,
            "h_bits": h_bits,
            "chunk_frames": chunk_frames,
        }
        self._default_tokens = max_new_tokens
        x2l = VideoX2L.from_pretrained(pretrained, device=device, dtype=dtype, revision=revision, max_pixels=max_pixels)
        self.session = Session(
            x2l, ingest, {"reload": reload, "selector": selector}, None if store is None else Path(store), seed
        )

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answer requests; those about one video are answered together, and it is ingested once."""
        jobs = []
        for request in requests:
            context, settings, doc_to_visual, doc_id, task, split = request.args
            video = _video_of(doc_to_visual(self.task_dict[task][split][doc_id]), task)
            jobs.append(Job.of(video, context, settings, self._default_tokens))
        answers = [""] * len(jobs)
        with warnings.catch_warnings(), tqdm(total=len(jobs), desc="videox2l") as bar:
            warnings.simplefilter("always", VideoWarning)
            for index, answer in self.session.answers(jobs):
                answers[index] = answer
                self.cache_hook.add_partial("generate_until", requests[index].args[:2], answer)
                bar.update()
        read, found = self.session.ingested, self.session.opened
        logger.info(
            f"videox2l: {len(jobs)} questions about {len({job.video for job in jobs})} videos; ingests: "
            f"{sum(read.values())} ({max(read.values(), default=0)} per video at most); "
            f"opened from the store: {sum(found.values())}"
        )
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not possible: answers are generated."""
        raise SettingsError("videox2l answers by generating: use a task whose output_type is generate_until")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not possible: tasks in rounds bring pictures of their own with each round."""
        raise SettingsError("videox2l answers in one round: use a task whose output_type is generate_until")


def _numbers(ratios: Any) -> tuple[float, ...]:
    """Read `2:32`; a single number arrives as one."""
    try:
        return tuple(float(part) for part in str(ratios).replace("+", ":").split(":"))
    except ValueError:
        raise SettingsError(f"ratios={ratios} is no list of numbers: write such as 2:32") from None


def _video_of(visuals: Any, task: str) -> str:
    """Return the one video file among what a task shows. Raises SettingsError."""
    shown = list(visuals or ())
    if len(shown) == 1 and isinstance(shown[0], str) and shown[0].lower().endswith(VIDEOS):
        return str(shown[0])
    kinds = ", ".join(sorted({type(item).__name__ for item in shown})) or "nothing"
    raise SettingsError(
        f"task {task} shows {len(shown)} item(s) ({kinds}); videox2l needs one video file. Use the task's video form, "
        "such as longvideobench_val_v in place of longvideobench_val_i"
    )
