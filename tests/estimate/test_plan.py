"""Estimates against what really happens: tokens, weights, files on disk, FLOPs and peaks of real ingests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from tests.families.models import MAKERS, needs
from tests.test_video_xl_loading import nothing, write_checkpoint
from videox2l import ArraySource, ModelError, SettingsError, VideoX2L
from videox2l.backbones.linear import LinearBackbone
from videox2l.cli.app import app
from videox2l.demo.models import SHIPPED
from videox2l.estimate.devices import device_for
from videox2l.estimate.fit import Limits, estimator, fitting
from videox2l.estimate.forecast import EstimateRequest, Forecast, forecast
from videox2l.estimate.header import VideoHeader, read_header
from videox2l.estimate.model import model_shape
from videox2l.flops import SummaryPlan, ingest_cost
from videox2l.options import IngestOptions, LoadOptions
from videox2l.types import VideoCursor, VideoInfo

pytestmark = pytest.mark.slow

MEDIA = Path(__file__).parent.parent / "media"
FRAMES = 43  # no chunk and no group of frames divides it
SIZE = (40, 56)
CPU = device_for("cpu")
EVERY = [*sorted(MAKERS), "llava_qwen"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints of tiny models on disk, by family."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        needs(family)
        if family not in made:
            folder = made[family] = tmp_path_factory.mktemp(family)
            if family == "llava_qwen":
                write_checkpoint(folder, nothing)
                return folder
            model, processor = MAKERS[family]()
            model.save_pretrained(folder)
            processor.tokenizer.save_pretrained(folder)
            (folder / "video_preprocessor_config.json").write_text(json.dumps(processor.video_processor))
        return made[family]

    return make


def request(**options: Any) -> EstimateRequest:
    return EstimateRequest(IngestOptions(**options))


def noise(frames: int = FRAMES) -> ArraySource:
    """Every pixel changes from frame to frame."""
    return ArraySource(np.random.default_rng(0).integers(0, 255, (frames, *SIZE, 3), np.uint8), fps=1.0)


def estimate(folder: Path, wanted: EstimateRequest, frames: int = FRAMES) -> Forecast:
    shape = model_shape(str(folder), wanted.load, cpu=True)
    return forecast(shape, VideoHeader("noise", *SIZE, float(frames)), CPU, wanted)


def ingested(x2l: VideoX2L, wanted: EstimateRequest, frames: int = FRAMES) -> Any:
    return x2l.ingest(noise(frames), wanted.ingest)


def allocated(work: Callable[[], Any]) -> int:
    """The most bytes that torch's allocator had given out at once during `work`, what was there before aside."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def on_disk(folder: Path) -> dict[str, int]:
    """Bytes of the objects of all levels."""
    fine = sum(path.stat().st_size for path in (folder / "chunks").glob("*"))
    return {"finer": fine, "H": (folder / "coarse.pack").stat().st_size}


VARIANTS = [
    ("qwen2_5_vl", {"compressor": "snap", "history": "own", "ratios": (2, 4, 8)}),
    ("qwen2_5_vl", {"compressor": "pool", "history": "recent:2", "ratios": (4, 16)}),
    ("qwen2_5_vl", {"history": "L", "l_bits": 4, "ratios": (2, 4, 16)}),
    ("qwen2_5_vl", {"h_bits": 8, "l_bits": 8}),
    ("qwen2_5_vl", {"l_tier": "none"}),
    ("qwen2_5_vl", {"compressor": "echo"}),
    ("qwen2_5_vl", {"window_chunks": 2}),
    ("qwen2_5_vl", {"compressor": "echo", "history": "recent:2", "window_chunks": 3}),
    ("qwen3_vl", {"history": "own", "ratios": (2, 8), "window_chunks": 2}),
    ("qwen3_vl", {"l_tier": "lazy"}),
    ("qwen3_vl", {"compressor": "pool"}),
    ("llava_qwen", {"ratios": (2, 9), "history": "own"}),
    ("llava_qwen", {"ratios": (2, 5, 9), "history": "fused"}),
    ("llava_qwen", {"ratios": (2, 9), "l_tier": "lazy"}),
]
CASES = [*((family, {"ratios": (2, 8)} if family == "llava_qwen" else {}) for family in EVERY), *VARIANTS]


@pytest.mark.parametrize(("family", "options"), CASES)
def test_tokens_bytes_and_flops_are_those_of_a_real_ingest(
    family: str, options: dict[str, Any], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """To the byte: weights, tokens of every level, files on disk. FLOPs as torch counts them."""
    folder, wanted = folder_of(family), request(chunk_frames=8, **options)
    found = estimate(folder, wanted)
    x2l = VideoX2L.from_pretrained(str(folder), device="cpu")
    assert found.ingest.weights == sum(weight.nbytes for weight in x2l.backbone.model.parameters())  # type: ignore[attr-defined]

    if hasattr(x2l.backbone.model, "set_experts_implementation"):  # type: ignore[attr-defined]
        x2l.backbone.model.set_experts_implementation("eager")  # type: ignore[attr-defined]  # torch counts no other
    memory: Any = None
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        memory = ingested(x2l, wanted)
    assert [found.frames, found.chunks] == [FRAMES, len(memory)]
    assert found.tokens_per_chunk == memory.chunks[0].tokens
    assert found.tokens == sum(chunk.tokens for chunk in memory.chunks)
    assert found.question.full == memory.full_tokens

    memory.save(tmp_path / "kept")
    finer, h = sum(count for name, count in found.disk.items() if name != "H"), found.disk["H"]
    assert {"finer": finer, "H": h} == on_disk(tmp_path / "kept")
    longer = estimate(folder, wanted, FRAMES + 1)
    assert (longer.tokens, longer.disk) != (found.tokens, found.disk) or family.startswith("qwen")  # groups of two

    # This kernel computes whole rectangles of queries and keys, of which the estimate counts what is seen.
    decoder = model_shape(str(folder), LoadOptions(), cpu=True).decoder
    scoring = 0.03 if options.get("compressor") in ("echo", "snap") else 2e-3  # their scores are not reckoned
    counted = pytest.approx(counter.get_total_flops(), rel=scoring)
    if memory.reposition == "keep":
        runs = list[int]()  # tokens of each forward
        for chunk in memory.chunks:
            runs += [0] * (chunk.window[0] == 0)
            runs[-1] += chunk.tokens
        runs += runs[1:] * (len(wanted.ingest.ratios) - 1) if options.get("history") == "own" else []
        runs += [chunk.tokens for chunk in memory.chunks] * (options.get("compressor") == "echo")
        unseen = sum(n * (n - 1) // 2 for n in [int(memory.prefix[0].shape[2]), *runs]) * decoder.layers * decoder.pair
        assert found.vision_flops + found.language_flops + unseen == counted
    else:
        plan = SummaryPlan(
            [chunk.tokens for chunk in memory.chunks], wanted.ingest.ratios, int(memory.prefix[0].shape[2])
        )
        mode = "lazy" if options.get("l_tier") == "lazy" else wanted.ingest.history
        whole, seen = (ingest_cost(decoder, plan, mode, kernel=kernel).flops.total for kernel in (True, False))
        assert found.vision_flops + found.language_flops + whole - seen == counted


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_models_that_ship_need_what_they_are_said_to(name: str, tmp_path: Path) -> None:
    wanted = request(ratios=(2, 8))
    found = estimate(Path(name), wanted)
    memory = ingested(VideoX2L.from_pretrained(name, device="cpu"), wanted)
    memory.save(tmp_path / "kept")
    assert (found.tokens, found.question.full) == (sum(chunk.tokens for chunk in memory.chunks), memory.full_tokens)
    assert {"finer": found.disk["L"], "H": found.disk["H"]} == on_disk(tmp_path / "kept")


@pytest.mark.parametrize("family", EVERY)
def test_flops_of_the_vision_tower_are_what_torch_counts(family: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(family)
    x2l = VideoX2L.from_pretrained(str(folder), device="cpu")
    pictures = [frame.image for frame in noise(8)]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        x2l.backbone.visual_tokens(pictures, list(range(8)), VideoCursor(0, 0.0, 0, 0, 0, VideoInfo(8, 8.0)))
    ratios = {"ratios": (2, 8)} if family == "llava_qwen" else {}
    assert estimate(folder, request(**ratios), 8).vision_flops == pytest.approx(counter.get_total_flops(), rel=2e-3)


@pytest.mark.parametrize("family", EVERY)
def test_questions_need_what_the_answer_says(family: str, folder_of: Callable[[str], Path]) -> None:
    folder, wanted = folder_of(family), request(chunk_frames=8, ratios=(2, 8))
    x2l = VideoX2L.from_pretrained(str(folder), device="cpu")
    memory = ingested(x2l, wanted, 40)
    cost = x2l.ask(memory, "What happens?", selector="manual:0-1,13-14,26-27", max_new_tokens=1).cost
    found = estimate(folder, wanted, 40)
    assert found.question.full == cost.full_tokens
    assert (found.question.tokens, found.question.reloaded) == (cost.tokens, cost.reloaded_bytes)


@pytest.mark.parametrize(("family", "options"), CASES)
def test_peaks_are_about_what_torch_allocates(
    family: str, options: dict[str, Any], folder_of: Callable[[str], Path]
) -> None:
    folder, wanted = folder_of(family), request(chunk_frames=8, **options)
    x2l = VideoX2L.from_pretrained(str(folder), device="cpu")
    ingested(x2l, wanted, 8)  # what torch allocates once and keeps
    measured = allocated(lambda: ingested(x2l, wanted))
    peak = estimate(folder, wanted).ingest
    assert 0.7 < (peak.total - peak.weights) / measured < 1.3
    longer = estimate(folder, wanted.but(chunk_frames=32)).ingest
    assert (longer.total - longer.weights) / measured > 1.3  # the bound says something


SEVEN_B = {
    "model_type": "qwen2_5_vl",
    "dtype": "bfloat16",
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "text_config": {
        "model_type": "qwen2_5_vl_text",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
}


def test_the_ingest_that_was_measured_on_a_gpu(tmp_path: Path) -> None:
    """Chunk by chunk, 60 s and, by torch's allocator, 17.0 GB, of which 16.6 are weights: docs/loading.md."""
    (tmp_path / "config.json").write_text(json.dumps(SEVEN_B))
    estimate_7b = estimator(str(tmp_path), VideoHeader("", 224, 224, 3600.0), device_for("h200"))
    found, windows = estimate_7b(request(window_chunks=1)), estimate_7b(EstimateRequest())
    assert windows.settings["window_chunks"] == 2048 // found.tokens_per_chunk > 1
    assert windows.seconds["ingest"] < found.seconds["ingest"]  # type: ignore[operator]
    assert windows.ingest.activations > found.ingest.activations
    assert windows.language_flops > found.language_flops  # more is seen in full
    assert found.tokens == 115_200
    assert found.ingest.weights == pytest.approx(16.6e9, rel=2e-3)
    assert found.ingest.total - found.ingest.overhead == pytest.approx(17.0e9, rel=0.01)
    assert found.seconds["ingest"] == pytest.approx(60, rel=0.02)
    other = estimator(str(tmp_path), VideoHeader("", 224, 224, 3600.0), device_for("a100"))(EstimateRequest())
    assert (other.seconds["ingest"], other.question.first_token, other.question.next_token) == (None, None, None)


def test_seconds_never_fall_below_what_launches_take() -> None:
    """A tiny model is not a million times faster than real time."""
    found = estimator("demo", VideoHeader("", 720, 1280, 3600.0), device_for("h200"))(EstimateRequest())
    assert found.seconds["ingest"] is not None
    assert found.seconds["ingest"] > 1


def test_a_header_is_enough() -> None:
    shown = read_header(str(MEDIA / "nasa_13013.mp4"))
    assert (shown.width, shown.height) == (480, 270)
    memory = VideoX2L.from_pretrained("demo", device="cpu").ingest(MEDIA / "nasa_13013.mp4", fps=2.0)
    found = estimator("demo", shown, CPU)(request(fps=2.0))
    assert abs(found.frames - sum(chunk.frames for chunk in memory.chunks)) <= 1
    assert found.chunks == len(memory)
    assert found.token_bytes == memory.shape.token_bytes
    assert read_header("1:00:00", "640x360") == VideoHeader("a video of 1:00:00 at 640x360", 360, 640, 3600.0)


def test_a_video_is_estimated_as_it_is_shown(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("RGB", (64, 32)).save(tmp_path / f"{number}.png")
    assert read_header(str(tmp_path)) == VideoHeader(tmp_path.name, 32, 64, 5.0, 1.0)
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as box:
        stream = box.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(90)
        for _ in range(10):
            box.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        box.mux(stream.encode(None))
    shown = read_header(str(path))
    assert (shown.height, shown.width) == (64, 48)


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_only_a_config(family: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Tokenizer, processor and weights may be missing; what was assumed is said."""
    whole = model_shape(str(folder_of(family)), LoadOptions(dtype="float16"))
    (tmp_path / "config.json").write_bytes((folder_of(family) / "config.json").read_bytes())
    bare = model_shape(str(tmp_path), LoadOptions(dtype="float16"))
    said = ["no processor config found", "no tokenizer found", "no weights found"]
    assert [note.split(":")[0] for note in bare.notes if note.startswith("no ")] == said
    assert not any(note.startswith("no ") for note in whole.notes)
    assert 0.9 * whole.weights < bare.weights < whole.weights  # norms, biases and positions weigh much in tiny models
    found, real = (forecast(shape, VideoHeader("", 48, 48, 64.0), CPU, request()) for shape in (bare, whole))
    assert found.token_bytes == real.token_bytes
    if not family.startswith(("qwen", "video_llama")):  # frames of one size
        words = 0 if family.startswith("llava") else 0.35  # the tiny tokenizer spells most words
        assert found.tokens == pytest.approx(real.tokens, rel=words)
    packed = model_shape(str(tmp_path), LoadOptions(dtype="float16", quantize="4bit"))
    assert packed.weights < 0.8 * packed.whole == 0.8 * bare.whole


def test_an_index_tells_the_bytes_of_weights_that_are_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SEVEN_B))
    index = {"metadata": {"total_size": 16_584_333_312}, "weight_map": {"lm_head.weight": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_shape(str(tmp_path), LoadOptions()).weights == 16_584_333_312
    assert model_shape(str(tmp_path), LoadOptions(dtype="float32")).weights == 2 * 16_584_333_312


def test_weights_that_are_quantized_already_stay_as_they_are(tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("qwen2_vl")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {"a.qweight": torch.zeros(8, 16, dtype=torch.int32), "a.scales": torch.zeros(3, dtype=torch.float16)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert model_shape(str(tmp_path), LoadOptions()).weights == 8 * 16 * 4 + 3 * 2
    (tmp_path / "model.safetensors").unlink()
    plain = model_shape(str(folder), LoadOptions(dtype="bfloat16"))
    assert model_shape(str(tmp_path), LoadOptions()).weights < 0.8 * plain.weights
    with pytest.raises(SettingsError, match="is quantized already"):
        model_shape(str(tmp_path), LoadOptions(quantize="4bit"))
    small = estimator(str(tmp_path), VideoHeader("", *SIZE, 60.0), device_for("24G"))
    first = small(EstimateRequest())
    assert fitting(EstimateRequest(), first, Limits(first.ingest.weights), small) is None  # nor is that suggested


def test_a_family_without_a_closed_form_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SEVEN_B))
    for adapter in (LinearBackbone, lambda *_: None):
        monkeypatch.setattr("videox2l.estimate.model.adapter_for", lambda *_, adapter=adapter: adapter)
        with pytest.raises(ModelError, match="qwen2_5_vl cannot be planned: its adapter has no tower_of"):
            model_shape(str(tmp_path), LoadOptions())


def test_settings_that_fit_are_found() -> None:
    estimate_demo = estimator("demo", VideoHeader("", 96, 128, 600.0), device_for("24G"))
    wanted = EstimateRequest()
    first = estimate_demo(wanted)
    limits = Limits(first.peak - 1e6, sum(first.disk.values()) * 0.7)
    fit = fitting(wanted, first, limits, estimate_demo)
    assert fit is not None
    assert fit.changes
    assert limits.excess(estimate_demo(fit.request)) == (False, False)
    assert fitting(wanted, first, Limits(first.ingest.weights / 1e3), estimate_demo) is None


def test_a_window_that_does_not_fit_is_shortened() -> None:
    for device, chunks in (("cpu", 1), ("24G", 85)):
        found = estimator("demo", VideoHeader("", 96, 128, 3600.0), device_for(device))(EstimateRequest())
        assert found.settings["window_chunks"] == chunks
    estimate_demo = estimator("demo", VideoHeader("", 96, 128, 3600.0), device_for("24G"))
    wanted = request(ratios=(2, 8), window_chunks=400)
    first = estimate_demo(wanted)
    fit = fitting(wanted, first, Limits(first.peak - 1e5), estimate_demo)
    assert fit is not None
    assert fit.changes == ("window_chunks 400 -> 100",)


def test_devices_by_name_and_by_size() -> None:
    assert (device_for("24G").memory, device_for("24G").name) == (24e9, "24G")
    assert device_for("h200:60G").memory == 60e9
    assert device_for("h200:60G").pace == device_for("H200").pace
    for wrong in ("fast", "h1000", "24X", "a100:much", "1.2.3G"):
        with pytest.raises(SettingsError):
            device_for(wrong)


def test_the_command() -> None:
    def run(*args: str) -> Any:
        return CliRunner().invoke(app, ["plan", *args])

    done = run(str(MEDIA / "nasa_13013.mp4"), "--gpu", "24G")
    assert done.exit_code == 0, done.output
    assert "this fits" in done.stdout
    assert "an estimate" in done.stdout
    assert "no seconds are told" in done.stdout
    assert "(docs/scale.md)" in run("1:00", "--gpu", "h200").stdout
    done = run("1:00", "--gpu", "24G", "--disk", "100k", "--size", "128x96", "--json")
    assert done.exit_code in (1, 2)
    found = json.loads(done.stdout)
    assert found["fits"] is False
    assert found["frames"] == 60
    assert found["suggestion"]["changes"]
    assert sum(found["suggestion"]["disk"].values()) <= 100e3
    for args, said in (
        (["no.mp4"], "no.mp4"),
        (["1:00", "--size", "big"], "size 'big' is none"),
        (["1:00", "--gpu", "fast"], "gpu 'fast' is not known"),
        (["1:00", "--chunk-frames", "3"], "must be a multiple of 2"),
        (["1:00", "--model", "/no/where"], "'/no/where' is no folder"),
    ):
        done = run(*args)
        assert done.exit_code in (1, 2)
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
