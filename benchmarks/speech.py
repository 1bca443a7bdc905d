"""Does what is said lead to the right moments? A spoken video of ten minutes, asked by pictures, by words and by both.

    python benchmarks/speech.py WHISPER [--minutes 10] [--reload 3] [--seed 3]

WHISPER is a size, a folder or a hub id of a Whisper model. The video is one of the demo world with a spoken track made
by espeak-ng (a system package): 20 statements, one per half minute, between sentences of no interest, at times that are
known to the sample. It is ingested with `transcribe`; then 20 questions are asked about what was said, and as many of
the world's own about what is seen. A question counts as found where a re-loaded chunk covers a second or more of its
moment. Word times: where a statement's first cue begins, against where the synthesizer began to speak.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import tempfile
import time
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videox2l import Memory, VideoX2L
from videox2l.demo.render import render_video
from videox2l.options import AskOptions
from videox2l.version import __version__

RATE = 16000
SELECTORS = ("keys", "exact", "text", "fuse:keys+text")
STATEMENTS = (
    ("The treasure chest was buried under the chapel floor.", "Where was the treasure chest buried?"),
    ("Doctor Watson ordered twelve bottles of medicine.", "How many bottles of medicine were ordered?"),
    ("The ferry to the island leaves at seven in the morning.", "When does the ferry to the island leave?"),
    ("Our violin teacher moved to Portugal last winter.", "Where did the violin teacher move?"),
    ("The bakery sells almond cookies on Thursday.", "On which day does the bakery sell almond cookies?"),
    ("A lightning storm destroyed the telephone tower.", "What destroyed the telephone tower?"),
    ("The museum bought a painting of a sleeping lion.", "What painting did the museum buy?"),
    ("Elephants can remember water holes for many years.", "What can elephants remember?"),
    ("The mayor promised a new bridge across the river.", "What did the mayor promise?"),
    ("My uncle repairs bicycles in an old garage.", "Who repairs bicycles?"),
    ("The password of the computer is written on a yellow note.", "Where is the password of the computer written?"),
    ("Pilots need strong coffee before a night flight.", "What do pilots need before a night flight?"),
    ("The kitchen window broke during the football match.", "When did the kitchen window break?"),
    ("Penguins walked through the hotel lobby yesterday.", "Which animals walked through the hotel lobby?"),
    ("The library closes early because of the marathon.", "Why does the library close early?"),
    ("Farmers planted potatoes behind the railway station.", "What did the farmers plant behind the railway station?"),
    ("The captain lost his silver compass in the desert.", "Where did the captain lose his compass?"),
    ("A famous singer opened a restaurant in Chicago.", "Where did the famous singer open a restaurant?"),
    ("The dentist recommended honey for the sore throat.", "What did the dentist recommend for the throat?"),
    ("Engineers measured the temperature of the volcano.", "What did the engineers measure?"),
)
BETWEEN = (
    "And so we go on with our little talk.",
    "Let us take a short break and then continue.",
    "That is about all one can say for now.",
)


def spoken(text: str) -> np.ndarray:
    """Return text as speech, (n,) int16 at 16 kHz, without the silence around it."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["espeak-ng", "-s", "140", "-w", file.name, text], check=True)
        with wave.open(file.name) as sound:
            samples, rate = np.frombuffer(sound.readframes(sound.getnframes()), "<i2"), sound.getframerate()
    loud = np.flatnonzero(np.abs(samples) > 300)
    samples = samples[loud[0] : loud[-1] + 1]
    at = np.arange(int(len(samples) * RATE / rate)) * rate / RATE
    return np.interp(at, np.arange(len(samples)), samples).astype(np.int16)


def speech_track(minutes: float, seed: int) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Return the sound (n,) int16 at 16 kHz, and the seconds from which to which each statement is said."""
    rng = np.random.default_rng(seed)
    slot, moments = minutes * 60 / len(STATEMENTS), []
    sound = np.zeros(int(minutes * 60 * RATE), np.int16)
    for i, (text, _) in enumerate(STATEMENTS):
        at = int((i * slot + 1 + 8 * rng.random()) * RATE)
        for j, line in enumerate((text, *BETWEEN)):
            voice = spoken(line)
            if j == 0:
                moments.append((at / RATE, (at + len(voice)) / RATE))
            sound[at : at + len(voice)] = voice[: len(sound) - at]
            at += len(voice) + int((1 + rng.random()) * RATE)
    return sound, moments


def with_sound(video: Path, sound: np.ndarray, target: Path) -> None:
    """Write a video again with a sound track (n,) int16 at 16 kHz."""
    with av.open(str(video)) as old, av.open(str(target), "w") as box:
        stream = box.add_stream_from_template(old.streams.video[0])
        voice = box.add_stream("aac", rate=RATE, layout="mono")
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                box.mux(packet)
        for first in range(0, len(sound), 1024):
            part = av.AudioFrame.from_ndarray(
                sound[None, first : first + 1024].astype(np.float32) / 32768, "fltp", "mono"
            )
            part.rate, part.pts, part.time_base = RATE, first, Fraction(1, RATE)
            box.mux(voice.encode(part))
        box.mux(voice.encode())


def found(x2l: VideoX2L, memory: Memory, question: str, spans: list[tuple[float, float]], options: AskOptions) -> bool:
    """Return whether a chunk that is re-loaded for a question covers a second of one of the moments it is about."""
    answer = x2l.ask(memory, question, options)
    shown = [(part.start, part.end) for part in answer.evidence if part.reloaded]
    return any(min(b, d) - max(a, c) >= min(1.0, d - c) for a, b in shown for c, d in spans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whisper")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--reload", type=int, default=3)
    parser.add_argument("--seed", type=int, default=3)
    wanted = parser.parse_args()
    x2l = VideoX2L.from_pretrained("demo")
    with tempfile.TemporaryDirectory() as folder:
        silent, video = Path(folder, "silent.mp4"), Path(folder, "talk.mp4")
        seen = render_video(silent, wanted.seed, wanted.minutes)
        sound, moments = speech_track(wanted.minutes, wanted.seed)
        with_sound(silent, sound, video)
        begun = time.perf_counter()
        memory = x2l.ingest(video, transcribe=wanted.whisper, language="en")
        seconds = time.perf_counter() - begun
    print(
        f"videox2l {__version__}, {platform.processor() or platform.machine()}; {wanted.minutes:g} minutes, "
        f"{len(memory)} chunks, {len(memory.subtitles)} cues, ingested and transcribed in {seconds:.0f} s"
    )
    late = [min((cue.start - start for cue in memory.subtitles), key=abs) for start, _ in moments]
    print(f"first words: {np.abs(late).max():.2f} s off at most, {np.abs(late).mean():.2f} s on average")
    spoken_of = [(question, [moment]) for (_, question), moment in zip(STATEMENTS, moments, strict=True)]
    seen_of = [(one["question"], [(one["start"], one["end"])]) for one in seen if one["start"] is not None][:20]
    print(f"\n| selector, {wanted.reload} chunks | what was said ({len(spoken_of)}) | what was seen ({len(seen_of)}) |")
    print("| --- | --- | --- |")
    for selector in SELECTORS:
        options = AskOptions(selector=selector, reload=wanted.reload, max_new_tokens=1)
        hits = [sum(found(x2l, memory, q, spans, options) for q, spans in asked) for asked in (spoken_of, seen_of)]
        shares = [f"{hit} ({hit / len(asked):.0%})" for hit, asked in zip(hits, (spoken_of, seen_of), strict=True)]
        print(f"| `{selector}` | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
