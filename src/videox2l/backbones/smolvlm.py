"""SmolVLM2 on its stock transformers class: an introduction, and a time in front of each frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from videox2l.backbones.frames import TwiceFrames
from videox2l.backbones.linear import LinearBackbone, check_max_pixels, square_tower
from videox2l.backbones.prompts import VideoMarkup
from videox2l.backbones.transformers_backbone import FrameVision, token_id
from videox2l.errors import ModelError
from videox2l.flops import VisionShape
from videox2l.types import VideoInfo

# What the model was trained to read, as the library's processor writes it; that cannot be imported everywhere.
TOLD = "You are provided the following series of {frames} frames from a {duration} [H:MM:SS] video.\n"
UNTOLD = "You are provided the following series of frames from a video.\n"
CHAT_TEMPLATE = (
    "{{ '<|im_start|>' }}"
    "{% for m in messages %}{{ m['role'] | capitalize + ': ' }}"
    "{% for c in m['content'] %}{{ '<video>' if c['type'] == 'video' else c['text'] }}{% endfor %}"
    "{{ '<end_of_utterance>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class CountedMarkup(VideoMarkup):
    """How many frames of how long a video there are, in words, then the time of each frame in front of it."""

    mark: str = "<fake_token_around_image><global-img>"

    def intro(self, facts: VideoInfo) -> str:
        """Return the introduction; without its figures for a video whose length is not known."""
        if facts.frames is None or facts.duration is None:
            return UNTOLD
        return TOLD.format(frames=in_words(facts.frames), duration=timedelta(seconds=int(facts.duration)))

    def opening(self, group: int, times: Sequence[float]) -> str:
        """Return minutes and seconds of a frame, and its marks."""
        minutes, seconds = divmod(int(times[0]), 60)
        return f"\nFrame from {minutes:02d}:{seconds:02d}:{self.mark}"


def in_words(number: int) -> str:
    """Return a number in English words. Raises ModelError where the package for it is missing."""
    try:
        from num2words import num2words
    except ImportError as error:
        raise ModelError("SmolVLM writes numbers as words: install videox2l[smolvlm] (num2words)") from error
    return str(num2words(number))


class SmolVLMBackbone(LinearBackbone):
    """SmolVLM2 (arXiv 2504.05299): each frame one picture that is not split, pixels shuffled into a square of tokens.

    Its chat template for videos is always the same, whatever the checkpoint holds, as in the library's processor.
    """

    template = CHAT_TEMPLATE

    @classmethod
    def vision_of(cls, config: Any, video_config: Mapping[str, Any], max_pixels: int | None = None) -> FrameVision:
        """Return how frames become pixels and tokens."""
        check_max_pixels(config, max_pixels)
        frames = TwiceFrames.from_config({"resample": 1, **video_config})  # Lanczos, where the config does not say
        vision = config.vision_config
        if frames.size != vision.image_size:
            raise ModelError(
                f"max_image_size={frames.size} of the video processor config is not the size of the vision tower, "
                f"{vision.image_size}"
            )
        return FrameVision(frames, vision.image_size // vision.patch_size // config.scale_factor, "pixel_values")

    @classmethod
    def tower_of(cls, config: Any) -> VisionShape:
        """Return the sizes of the vision tower and projector."""
        vision, fold = config.vision_config, config.scale_factor**2
        return square_tower(vision, ((1 / fold, vision.hidden_size * fold * config.text_config.hidden_size),))

    @classmethod
    def video_markup(cls, config: Any, tokenizer: Any) -> VideoMarkup:
        """Return the words around each frame, with the tokens that the tokenizer names."""
        names = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
        fake, whole = (str(getattr(tokenizer, name, None) or known) for name, known in names.items())
        pad = str(tokenizer.convert_ids_to_tokens(token_id(config, "image_token_id")))
        return CountedMarkup("<video>", pad, fake, "\n\n", mark=fake + whole)
