"""Damaged, cut and false files: what decodes is read, the rest is named; nothing but the file is opened."""

from __future__ import annotations

import hashlib
import os
from fractions import Fraction

import av
import numpy as np
import pytest
from clips import MEDIA, cut, truth, write

from videox2l.errors import VideoError, VideoWarning
from videox2l.video import FrameSampling, VideoReader, content_hash, open_video


def read(path, **settings):
    """Frames, manifest and the texts of all warnings."""
    with pytest.warns(VideoWarning) as caught, VideoReader(path, FrameSampling(**settings)) as reader:
        frames = list(reader)
    return frames, reader.manifest, [str(w.message) for w in caught]


@pytest.mark.parametrize("mode", ["exact", "auto", "fast"])
def test_decoding_goes_on_after_a_damaged_packet(mode):
    frames, manifest, texts = read(MEDIA / "corrupted.mp4", fps=None, mode=mode)
    assert len(frames) == 49  # of 50; one packet is lost
    assert manifest.bad_packets == 1
    assert frames[-1].pts == pytest.approx(4.9)
    assert 30 not in manifest.indices
    assert any("1 packet(s) could not be decoded, the first at 3.000 s" in text for text in texts)
    assert all(text in " ".join(texts) for text in manifest.warnings)
    sampled, manifest, _ = read(MEDIA / "corrupted.mp4", fps=2.0, mode=mode)
    assert [f.index for f in sampled] == [0, 5, 10, 15, 20, 25, 31, 35, 40, 45]  # 31 stands in for 30
    whole = {f.index: f.image for f in frames}
    assert all(np.array_equal(f.image, whole[f.index]) for f in sampled)
    assert "from 3.000 s on every frame was decoded" in manifest.mode_note


def test_control_a_plain_decode_stops_at_the_damage():
    frames = []
    with av.open(str(MEDIA / "corrupted.mp4")) as box, pytest.raises(av.error.InvalidDataError):
        frames.extend(frame.pts for frame in box.decode(video=0))
    assert len(frames) < 40


def test_a_range_before_the_damage_is_clean():
    with VideoReader(MEDIA / "corrupted.mp4", FrameSampling(fps=5.0, end=2.0, mode="auto")) as reader:
        assert len(list(reader)) == 10
    assert reader.manifest.warnings == ()


@pytest.mark.parametrize("mode", ["exact", "auto", "fast"])
def test_a_cut_mkv_is_read_to_its_end(tmp_path, clip, mode):
    path = cut(clip("long_gop.mkv"), tmp_path / "cut.mkv", 0.6)
    frames, manifest, texts = read(path, fps=None, mode=mode)
    whole = truth(clip("long_gop.mkv"))
    assert 40 < len(frames) < 110
    assert [f.index for f in frames] == list(range(len(frames)))
    assert all(np.array_equal(f.image, whole.images[f.index]) for f in frames[:-12])
    end = f"{manifest.duration:.3f}"
    assert any(f"the video ends at {end} s of 4.000 s declared" in text for text in texts)
    assert manifest.duration < 3.7


def test_a_cut_mp4_with_its_index_in_front_is_read_to_its_end(tmp_path):
    whole = write(tmp_path / "whole.mp4", count=120, container={"movflags": "faststart"})
    path = cut(whole, tmp_path / "cut.mp4", 0.6)
    frames, manifest, texts = read(path, fps=None)
    assert 40 < len(frames) < 110
    assert manifest.duration < 4.0
    assert any("4.000 s declared" in text for text in texts)
    exact, _, _ = read(path, fps=None, mode="exact")
    assert [f.index for f in exact] == [f.index for f in frames]


@pytest.mark.parametrize("mode", ["exact", "auto"])
def test_frames_from_torn_packets_are_given_out_and_named(tmp_path, mode):
    data = write(tmp_path / "whole.ts", size=(256, 160)).read_bytes()
    chunks = [data[at : at + 188] for at in range(0, len(data), 188)]
    video = [k for k, chunk in enumerate(chunks) if int.from_bytes(chunk[1:3]) & 0x1FFF == 0x100]
    starts = [k for k in video if chunks[k][1] & 0x40]  # first chunk of a packet
    torn = next(k for k in starts[50:] if {k + 1, k + 2} <= set(video) - set(starts)) + 1
    (tmp_path / "torn.ts").write_bytes(b"".join(chunks[:torn] + chunks[torn + 1 :]))
    frames, manifest, texts = read(tmp_path / "torn.ts", fps=None, mode=mode)
    assert [f.index for f in frames] == list(range(90))
    assert any("data is missing in 1 packet(s), the first at" in text for text in texts)
    assert any("decoded from incomplete data, the first at" in text for text in texts)
    assert "every frame was decoded: the stream is damaged" in manifest.mode_note


def test_damage_does_not_lead_out_of_the_range(tmp_path):
    data = bytearray((MEDIA / "corrupted.mp4").read_bytes())
    (tmp_path / "x.mp4").write_bytes(data)
    frames, _, _ = read(tmp_path / "x.mp4", fps=None, start=2.5, end=3.05)
    assert [f.index for f in frames] == [25, 26, 27, 28, 29]


def zero_pictures(path):
    """Overwrite all picture data of an MP4."""
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 4
    end = data.index(b"moov", at) - 4
    data[at:end] = np.random.default_rng(0).bytes(end - at)
    path.write_bytes(data)


def test_files_without_a_frame_to_show(tmp_path):
    zero_pictures(write(tmp_path / "noise.mp4", count=20))
    with pytest.raises(VideoError, match=r"'noise.mp4': not one frame could be decoded \(20 packets of h264"):
        open_video(tmp_path / "noise.mp4")
    path = write(tmp_path / "unknown.mp4", count=20)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(VideoError, match=r"'unknown.mp4': no decoder for its video codec. Re-encode"):
        open_video(path)


def test_files_that_are_no_videos(tmp_path):
    def refused(content, match, name="x.mp4"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(VideoError, match=match) as caught:
            open_video(path)
        assert name in str(caught.value)
        assert str(tmp_path) not in str(caught.value)

    refused(b"", "is empty")
    refused(np.random.default_rng(0).bytes(5000), "not a video|not in a supported")
    refused(b"just some text\n" * 50, "not a video|not in a supported")
    with_index = write(tmp_path / "whole.mp4", count=30).read_bytes()
    refused(with_index[: len(with_index) // 2], r"without a readable index \(moov\).*cut short")
    with pytest.raises(VideoError, match=r"'gone.mp4' does not exist"):
        open_video(tmp_path / "gone.mp4")
    with pytest.raises(VideoError, match="is a directory"):
        open_video(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="not a regular file"):
        open_video(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="cannot be read"):
        open_video("a\0b.mp4")


def test_sound_without_pictures(tmp_path):
    with pytest.raises(VideoError, match=r"\.mp3' is not in a supported video container"):
        open_video(MEDIA / "nasa_13013.mp4.audio.mp3")
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as box:
        voice = box.add_stream("aac", rate=8000, layout="mono")
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        part.rate = 8000
        box.mux(voice.encode(part))
        box.mux(voice.encode())
    with pytest.raises(VideoError, match=r"'sound.mp4' has no video stream \(audio only\?\)"):
        open_video(path)


@pytest.mark.parametrize(
    "name",
    ["http://127.0.0.1:9/x.mp4", "https://example.org/x.mp4", "file:///etc/passwd", "concat:a.mp4|b.mp4", "pipe:0",
     "rtsp://example.org/x", "data:video/mp4;base64,AAAA", "subfile,,start,0,end,0,,:x.mp4", "lavfi://testsrc"],
)  # fmt: skip
def test_only_local_files_are_opened(name):
    with pytest.raises(VideoError, match=r"only local files|does not exist"):
        VideoReader(name)


def test_a_file_name_may_look_like_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.mp4", count=5).rename(tmp_path / "concat:x.mp4")
    assert len(list(VideoReader("concat:x.mp4", FrameSampling(fps=None)))) == 5


SECRET = "secret.mp4"
PLAYLISTS = {
    "concat.mp4": "ffconcat version 1.0\nfile 'secret.mp4'\n",
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "list.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "dash.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_open_nothing(tmp_path, name):
    write(tmp_path / SECRET, count=5)
    (tmp_path / name).write_text(PLAYLISTS[name])
    with pytest.raises(VideoError, match=r"supported video container|not a video") as caught:
        open_video(tmp_path / name)
    assert name in str(caught.value)


def test_control_without_the_whitelist_a_playlist_opens_another_file(tmp_path):
    write(tmp_path / SECRET, count=5)
    (tmp_path / "concat.mp4").write_text(PLAYLISTS["concat.mp4"])
    with av.open(str(tmp_path / "concat.mp4")) as box:
        assert sum(1 for _ in box.decode(video=0)) == 5


def test_content_hash(tmp_path, clip):
    path = clip("plain.mp4")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert content_hash(path) == content_hash(str(path)) == digest
    assert open_video(path).manifest.sha256 == digest
    with pytest.raises(VideoError, match="does not exist"):
        content_hash(tmp_path / "gone")


@pytest.mark.filterwarnings("ignore::videox2l.errors.VideoWarning")
@pytest.mark.parametrize(("container", "told"), [("matroska", True), ("asf", True), ("flv", True), ("mp4", False)])
def test_a_late_first_frame_is_told_and_is_no_hole_at_the_end(tmp_path, container, told):
    """Where times start at 0 by custom, what was before may be lost; an MP4 says itself that it was cut."""
    path = tmp_path / "late"
    for late in (0, 2):
        with av.open(str(path), "w", format=container) as box:
            stream = box.add_stream("mpeg4" if container == "asf" else "libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for number in range(50):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 4, np.uint8), format="rgb24")
                frame.pts, frame.time_base = number + 10 * late, Fraction(1, 10)
                box.mux(stream.encode(frame))
            box.mux(stream.encode())
        with VideoReader(path, FrameSampling(fps=None)) as reader:
            assert len(list(reader)) == 50
        assert reader.manifest.holes == ()
        said = [text for text in reader.manifest.warnings if "the first frame stands at 2.000 s" in text]
        assert len(said) == (told and late == 2)
