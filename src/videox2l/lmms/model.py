"""lmms-eval's side of the model `videox2l`: its arguments, and requests in, answers out."""

from __future__ import annotations

import dataclasses
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
from videox2l.options import AskOptions, IngestOptions, LoadOptions, OptionSet
from videox2l.pipeline import VideoX2L

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts", ".flv", ".mpg", ".mpeg")


class VideoX2LModel(lmms):  # type: ignore[misc]  # lmms-eval carries no types
    """A video LLM with two-level KV memories, for lmms-eval.

    Parameters (of `--model_args`, separated by commas; lists inside a value by colons)
    ----------
    pretrained, revision, device, dtype, max_pixels
        As `VideoX2L.from_pretrained`.
    fps, max_frames, sampling, ratios, compressor, history, l_tier, l_bits, h_bits, chunk_frames, window_chunks
        As `VideoX2L.ingest`; `ratios=2:32`. With `max_frames` alone, frames are spread over the whole video.
    reload, selector
        As `VideoX2L.ask`: `reload=3`, `all`, `none` or `tokens:512`.
    store
        A folder in which memories are kept, so that another run or task does not ingest the video again.
    strict
        A video or question that cannot be used ends the run, instead of being left unanswered with a warning.
    max_new_tokens, seed
        Where the task says nothing of the length of an answer; and the seed where it asks for sampling.

    Raises SettingsError for arguments that cannot work, before a model is loaded.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "demo",
        *,
        store: str | None = None,
        strict: bool = False,
        max_new_tokens: int = 128,
        seed: int = 0,
        batch_size: Any = 1,
        max_batch_size: Any = None,
        **options: Any,
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
        loading, ingesting, asking = (_taken(kind, options) for kind in (LoadOptions, IngestOptions, AskOptions))
        if options:
            raise SettingsError(f"argument '{next(iter(options))}' is not known")
        if "ratios" in ingesting:
            ingesting["ratios"] = _numbers(ingesting["ratios"])
        if "max_frames" in ingesting:
            ingesting.setdefault("fps", None)
        IngestOptions.from_keywords(None, ingesting)
        AskOptions.from_keywords(None, asking)
        self._default_tokens = max_new_tokens
        x2l = VideoX2L.from_pretrained(pretrained, **loading)
        self.session = Session(x2l, ingesting, asking, None if store is None else Path(store), seed, strict=strict)

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
            f"opened from the store: {sum(found.values())}; unanswered: {len(self.session.unanswered)}"
        )
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not possible: answers are generated."""
        raise SettingsError("videox2l answers by generating: use a task whose output_type is generate_until")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not possible: tasks in rounds bring pictures of their own with each round."""
        raise SettingsError("videox2l answers in one round: use a task whose output_type is generate_until")


def _taken(kind: type[OptionSet], options: dict[str, Any]) -> dict[str, Any]:
    """Take those of the arguments that are fields of an option class."""
    names = [field.name for field in dataclasses.fields(kind) if field.name in options]  # type: ignore[arg-type]
    return {name: options.pop(name) for name in names}


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
