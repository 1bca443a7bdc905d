"""What is said in a video becomes cues on its time line: decoding, blocks, resuming, errors, and a real model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.disk.helpers import content, small_model
from tests.video.clips import write
from tests.video.spoken import RATE, ToneReader, speak, spoken_video, tones, whisper_base
from videox2l import ArraySource, Memory, MemoryFileError, SettingsError, VideoError, VideoWarning, VideoX2L, transcribe
from videox2l.cli.app import app
from videox2l.memory.disk.folder import verify
from videox2l.units import Cue
from videox2l.video import audio
from videox2l.video.audio import SoundTrack
from videox2l.video.speech import Transcript, lines_of

SAID = [(0.7, "alpha"), (3.1, "bravo"), (6.4, "charlie"), (9.2, "delta"), (12.6, "alpha"), (17.3, "bravo")]
SMALL = {"ratios": (2, 8), "chunk_frames": 4}


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return small_model()


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoken_video(tmp_path_factory.mktemp("talk") / "talk.mkv", [tones(20, SAID)])


def cues_of(path: Path, track: int = 1, **range_: float) -> list[Cue]:
    speech = Transcript(SoundTrack(path, track), ToneReader(), **range_)
    speech.until(float("inf"))
    return speech.cues


def assert_said(cues: list[Cue], said: list[tuple[float, str]], late: float = 0.0) -> None:
    assert [cue.text for cue in cues] == [word for _, word in said]
    np.testing.assert_allclose([cue.start for cue in cues], [start + late for start, _ in said], atol=0.05)
    np.testing.assert_allclose([cue.end for cue in cues], [start + late + 0.5 for start, _ in said], atol=0.05)


@pytest.mark.parametrize("codec", ["pcm_s16le", "aac"])
@pytest.mark.parametrize("late", [0.0, 1.5])
def test_sound_stands_at_the_time_of_the_pictures(tmp_path: Path, codec: str, late: float) -> None:
    path = spoken_video(tmp_path / "a.mkv", [tones(20, SAID)], late=late, codec=codec)
    assert_said(cues_of(path), SAID, late)


def test_a_hole_in_the_sound_shifts_nothing_and_is_told(tmp_path: Path) -> None:
    path = spoken_video(tmp_path / "a.mkv", [tones(20, SAID)], lost=(8.0, 11.0))
    with pytest.warns(VideoWarning, match=r"no sound could be read from 00:08-00:1[01]"):
        cues = cues_of(path)
    assert_said(cues, [word for word in SAID if word[1] != "delta"])


def test_damaged_packets_become_a_hole(tmp_path: Path) -> None:
    path = spoken_video(tmp_path / "a.mkv", [tones(20, SAID)], codec="aac")
    data = bytearray(path.read_bytes())
    track = SoundTrack(path)
    import av

    with av.open(str(path)) as box:
        hit = [
            packet
            for packet in box.demux(audio=0)
            if packet.pts is not None and 8 <= packet.pts * packet.time_base < 11
        ]
        for packet in hit:
            at = packet.pos
            data[at + 8 : at + 8 + packet.size] = b"\xff" * packet.size
    (tmp_path / "b.mkv").write_bytes(data)
    whole, torn = (
        np.concatenate([piece for _, piece in SoundTrack(tmp_path / name).pieces()]) for name in ("a.mkv", "b.mkv")
    )
    assert abs(len(whole) - len(torn)) < RATE // 10  # nothing behind the damage moved
    assert not np.array_equal(whole[8 * RATE : 11 * RATE], torn[8 * RATE : 11 * RATE])
    np.testing.assert_allclose(torn[15 * RATE : 19 * RATE], whole[15 * RATE : 19 * RATE], atol=0.02)
    assert track.languages == ("und",)


def test_tracks_are_told_and_chosen(tmp_path: Path) -> None:
    other = [(2.0, "delta"), (5.0, "charlie")]
    path = spoken_video(tmp_path / "a.mkv", [tones(8, SAID[:2]), tones(8, other)], languages=["eng", "deu"])
    with pytest.warns(VideoWarning, match=r"sound tracks 1 \((eng|en)\), 2 \((deu|ger|de)\): 1 is transcribed"):
        assert_said(cues_of(path), SAID[:2])
    with pytest.warns(VideoWarning, match="2 is transcribed"):
        assert_said(cues_of(path, 2), other)
    with pytest.raises(SettingsError, match="audio_track must be at most 2, got 3"):
        SoundTrack(path, 3)


def test_missing_and_silent_sound_are_told(tmp_path: Path, x2l: VideoX2L) -> None:
    mute = write(tmp_path / "mute.mp4", count=30)
    with pytest.raises(VideoError, match="has no sound track"):
        x2l.ingest(mute, transcribe=ToneReader(), **SMALL)
    silent = spoken_video(tmp_path / "silent.mkv", [tones(3, [])])
    with pytest.warns(VideoWarning, match="sound track 1 is silent"):
        assert x2l.ingest(silent, transcribe=ToneReader(), **SMALL).subtitles == ()
    with pytest.raises(SettingsError, match="needs a video file"):
        x2l.ingest(ArraySource(np.zeros((4, 32, 32, 3), np.uint8), fps=1.0), transcribe=ToneReader(), **SMALL)
    with pytest.raises(SettingsError, match="use one of them"):
        x2l.ingest(silent, transcribe=ToneReader(), subtitles="embedded")


def test_blocks_are_cut_where_it_is_quiet(talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cues_of(talk)
    monkeypatch.setattr(audio, "BLOCK", 4.0)
    blocks = list(SoundTrack(talk).blocks())
    assert len(blocks) > 5
    assert max(len(samples) for _, samples in blocks) <= 4 * RATE
    assert [first for first, _ in blocks[1:]] == [first + len(samples) for first, samples in blocks[:-1]]
    rest = list(SoundTrack(talk).blocks(blocks[2][0] / RATE))
    assert all(np.array_equal(a, b) and x == y for (x, a), (y, b) in zip(rest, blocks[2:], strict=True))
    assert_said(cues_of(talk), SAID)
    assert len(whole) == len(SAID)
    assert [cue.text for cue in cues_of(talk, reached=3.0, end=10.0)] == ["bravo", "charlie", "delta"]


def test_lines_end_with_sentences_pauses_and_after_six_seconds() -> None:
    words = [Cue(0, 0.4, " One."), Cue(0.5, 1, " Two"), Cue(1, 1.5, " three"), Cue(4, 4.5, " four"), Cue(4.5, 5, "五")]
    assert [line.text for line in lines_of(words)] == ["One.", "Two three", "four五"]
    long = lines_of([Cue(i / 2, i / 2 + 0.5, " x") for i in range(40)])
    assert max(line.end - line.start for line in long) <= 6
    assert sum(line.text.count("x") for line in long) == 40


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("kept", [1, 3])
def test_a_stopped_ingest_goes_on_with_what_was_heard(
    tmp_path: Path, talk: Path, x2l: VideoX2L, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(audio, "BLOCK", 4.0)
    made = x2l.ingest(talk, store=tmp_path / "whole", transcribe=ToneReader(), **SMALL)
    assert_said(list(made.subtitles), SAID)
    assert made.settings["speech"] == {"model": "tones", "language": None, "track": 1}
    left = [kept]

    def stop(*_: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise Stop

    with pytest.raises(Stop):
        x2l.ingest(talk, store=tmp_path / "torn", transcribe=ToneReader(), progress=stop, **SMALL)
    begun = Memory.load(tmp_path / "torn")
    assert 0 < len(begun.subtitles) < len(SAID)
    other = ToneReader()
    other.name = "others"
    with pytest.raises(MemoryFileError, match=r"settings.speech.model: memory tones, now others"):
        x2l.ingest(talk, store=tmp_path / "torn", transcribe=other, **SMALL)
    reader = ToneReader()
    x2l.ingest(talk, store=tmp_path / "torn", transcribe=reader, **SMALL)
    assert reader.heard < 20 - begun.chunks[-1].end + 4  # what was heard before was not heard again
    assert content(tmp_path / "torn") == content(tmp_path / "whole")
    assert verify(tmp_path / "torn") == []


def test_a_window_waits_while_its_sound_is_heard(
    tmp_path: Path, talk: Path, x2l: VideoX2L, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines are journalled before the chunks of their window; taken back to any line, the bytes are the same."""
    monkeypatch.setattr(audio, "BLOCK", 4.0)

    def ingest() -> dict[str, bytes]:
        x2l.ingest(talk, store=tmp_path / "a", transcribe=ToneReader(), window_chunks=3, **SMALL)
        return content(tmp_path / "a")

    expected = ingest()
    lines = expected["journal.jsonl"].splitlines(keepends=True)
    kinds = [json.loads(line)["kind"] for line in lines]
    assert "subtitles" in kinds[: kinds.index("chunk")]
    for kept in range(len(lines)):
        (tmp_path / "a" / "journal.jsonl").write_bytes(b"".join(lines[:kept]))
        assert ingest() == expected


def test_a_memory_is_transcribed_later(
    tmp_path: Path, talk: Path, x2l: VideoX2L, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "BLOCK", 4.0)
    x2l.ingest(talk, store=tmp_path / "m", **SMALL)
    memory = Memory.load(tmp_path / "m")
    with pytest.raises(SettingsError, match="x2l memory transcribe"):
        x2l.ask(memory, "bravo", selector="text", max_new_tokens=2)

    def stop(second: float) -> None:
        if second > 6:
            raise Stop

    with pytest.raises(Stop):
        transcribe(memory, talk, ToneReader(), progress=stop)
    again, reader = Memory.load(tmp_path / "m"), ToneReader()
    assert 0 < len(again.subtitles) < len(SAID)
    transcribe(again, talk, reader)
    assert reader.heard < 16
    for one in (again, Memory.load(tmp_path / "m")):
        assert_said(list(one.subtitles), SAID)
    answer = x2l.ask(again, "Who says charlie?", selector="text", reload=1, max_new_tokens=2)
    assert [moment.start <= 6.4 < moment.end for moment in answer.evidence if moment.reloaded] == [True]
    assert verify(tmp_path / "m") == []
    stranger = spoken_video(tmp_path / "b.mkv", [tones(4, SAID[:1])])
    with pytest.raises(MemoryFileError, match="is not what the memory was made of"):
        transcribe(again, stranger, ToneReader())


def test_the_command_line_refuses_in_one_line(tmp_path: Path, talk: Path) -> None:
    pytest.importorskip("faster_whisper", reason="faster-whisper is not installed: pip install 'videox2l[speech]'")
    (tmp_path / "empty").mkdir()
    wanted = ["ingest", str(talk), str(tmp_path / "m"), "--transcribe", str(tmp_path / "empty")]
    result = CliRunner().invoke(app, wanted)
    assert result.exit_code == 1
    assert "cannot be loaded" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_real_model_hears_words_where_they_are_said(tmp_path: Path, x2l: VideoX2L) -> None:
    model = whisper_base(tmp_path / "whisper")
    pieces = ["The quick brown fox jumps over the lazy dog.", "Seven sailors bought oranges at the market."]
    sounds = [speak(text, tmp_path) for text in pieces]
    quiet = np.zeros(3 * RATE, np.int16)
    second = (len(sounds[0]) + 2 * len(quiet)) / RATE
    path = spoken_video(tmp_path / "a.mkv", [np.concatenate([quiet, sounds[0], quiet, sounds[1], quiet])], late=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        memory = x2l.ingest(path, transcribe=model, language="en", **SMALL)
    assert memory.settings["speech"]["model"] == "whisper:whisper"
    text = " ".join(cue.text for cue in memory.subtitles).lower()
    assert sum(word in text for word in ("quick", "brown", "fox", "lazy", "dog", "seven", "oranges", "market")) >= 6
    starts = [cue.start for cue in memory.subtitles]
    assert min(abs(start - 3.5) for start in starts) < 0.5
    assert min(abs(start - second - 0.5) for start in starts) < 0.5
