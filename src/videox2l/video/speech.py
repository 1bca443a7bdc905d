"""What is said in a video, as cues on its time line (library: faster-whisper)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from videox2l.errors import ModelError, SettingsError, VideoWarning
from videox2l.units import Cue
from videox2l.video.audio import RATE, Samples, SoundTrack

_PAUSE, _LONGEST = 0.8, 6.0  # seconds between words, and of a line, at which a new line begins


@runtime_checkable
class Transcriber(Protocol):
    """Writes down what is said in a piece of sound."""

    name: str
    """What memories record of it: two transcribers that write different things have different names."""

    def words(self, samples: Samples, language: str | None) -> Sequence[Cue]:
        """Return the words in samples (n,) float32 at 16 kHz, each with its times in seconds, in order.

        `language` as a code such as "en"; None finds it. Raises SettingsError for a language that it does not know.
        """
        ...


class Whisper:
    """A Whisper model in CTranslate2's format: a size such as "base", a folder, or a hub id. Silence is left out first.

    `device` "cpu" or "cuda". `online`: whether the hub can be asked.
    Raises SettingsError without faster-whisper, ModelError where the model cannot be loaded.
    """

    def __init__(
        self, model: str | os.PathLike[str], device: str = "cpu", online: Callable[[], bool] = lambda: True
    ) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise SettingsError("transcribe needs faster-whisper: pip install 'videox2l[speech]'") from None
        model = os.fspath(model)
        self.name = f"whisper:{Path(model).name if os.path.isdir(model) else model}"
        kind, _, number = device.partition(":")
        unreachable = not os.path.isdir(model) and not online()
        try:
            self._model = WhisperModel(
                model,
                device=kind if kind == "cuda" else "cpu",
                device_index=int(number or 0),
                compute_type="float16" if kind == "cuda" else "int8",
                local_files_only=unreachable,
            )
        except Exception as error:  # of the hub, of CTranslate2, of the tokenizer: all kinds
            hint = ", and the hub cannot be reached" if unreachable else ""
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"speech model '{model}' cannot be loaded: {why.rstrip('.')}{hint}. Name a size such as base or "
                "large-v3, a hub id, or a folder in CTranslate2's format."
            ) from None

    def words(self, samples: Samples, language: str | None) -> Sequence[Cue]:
        """Return the words in samples (n,) float32 at 16 kHz, each with its times in seconds, in order."""
        try:
            segments, _ = self._model.transcribe(
                samples, language=language, vad_filter=True, word_timestamps=True, condition_on_previous_text=False
            )
            spoken = [word for segment in segments for word in segment.words or ()]
        except ValueError as error:
            if language is None or "language" not in str(error):
                raise
            raise SettingsError(f"language must be a code that the model knows, got '{language}': {error}") from None
        return [Cue(float(word.start), float(word.end), word.word) for word in spoken]


def transcriber_of(
    model: str | os.PathLike[str] | Transcriber, device: str = "cpu", online: Callable[[], bool] = lambda: True
) -> Transcriber:
    """Return what writes down speech: an object with the Transcriber protocol, or a Whisper model by name."""
    return Whisper(model, device, online) if isinstance(model, (str, os.PathLike)) else model


@dataclass
class Transcript:
    """The transcription of a video's sound, block after block: `until` goes on; `cues` is what is there so far.

    `reached`: the second up to which the sound was written down; a transcription that was stopped goes on from there
    (`resume`) to the same cues.
    """

    track: SoundTrack
    transcriber: Transcriber
    language: str | None = None
    reached: float = 0.0
    end: float | None = None
    cues: list[Cue] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.over = False
        self._blocks: Iterator[tuple[int, Samples]] | None = None
        if len(self.track.languages) > 1:
            text = f"{self.track.listed()}: {self.track.track} is transcribed (audio_track chooses)"
            warnings.warn(text, VideoWarning, stacklevel=3)

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the cues: the model, the language asked for, and the track; for fingerprints."""
        return {"model": self.transcriber.name, "language": self.language, "track": self.track.track}

    @property
    def state(self) -> dict[str, Any]:
        """The identity, and how far the transcription has come."""
        return {**self.identity, "reached": self.reached, "over": self.over}

    def resume(self, state: dict[str, Any], cues: Sequence[Cue]) -> None:
        """Go on from the state in which a transcription with the same identity was stopped."""
        self.reached, self.over, self.cues = float(state["reached"]), bool(state["over"]), list(cues)

    def until(self, second: float) -> bool:
        """Write down blocks until one ends behind `second`, or all are done; return whether there was one to do."""
        moved = False
        while not self.over and self.reached <= second:
            self._step()
            moved = True
        return moved

    def _step(self) -> None:
        if self._blocks is None:
            self._blocks = self.track.blocks(self.reached, self.end)
        block = next(self._blocks, None)
        if block is None:
            self.over = True
            self.track.warn()
            return
        first, samples = block
        at = first / RATE
        words = self.transcriber.words(samples, self.language)
        self.cues += lines_of([Cue(at + word.start, at + word.end, word.text) for word in words])
        self.reached = (first + len(samples)) / RATE


def lines_of(words: Sequence[Cue]) -> list[Cue]:
    """Join words into lines: a new one begins behind the end of a sentence, a pause, or six seconds."""
    lines = list[Cue]()
    for word in words:
        text = word.text.strip()
        if not text:
            continue
        last = lines[-1] if lines else None
        if (
            last is None
            or word.start - last.end > _PAUSE
            or word.end - last.start > _LONGEST
            or last.text.endswith((".", "!", "?", "。", "！", "？"))
        ):
            lines.append(Cue(word.start, max(word.end, word.start + 0.01), text))
        else:
            between = " " if word.text[:1].isspace() else ""  # some scripts write no spaces
            lines[-1] = Cue(last.start, max(word.end, last.end), last.text + between + text)
    return lines
