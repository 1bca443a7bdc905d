"""The whole examination of a model: files, adapter, rope settings, and the proof that it is served exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from videox2l.backbones import loading
from videox2l.backbones.checkpoint import Checkpoint, translate_errors
from videox2l.backbones.checks import check_rope, check_theta, effective_theta
from videox2l.backbones.quantised import quantization_of
from videox2l.backbones.registry import adapter_for
from videox2l.conformance import EXACTNESS, CheckResult, HasStock, made_up_clip
from videox2l.conformance.case import TestCase
from videox2l.conformance.check_cache import BRIEF, examine, result_path, votes_once, write_result
from videox2l.conformance.key_heads import can_be_examined
from videox2l.demo.models import SHIPPED, checkpoint_of, load_backbone
from videox2l.engine.backbone import Backbone
from videox2l.errors import ModelError, X2LError
from videox2l.memory.features import votes_of
from videox2l.memory.votes import Votes
from videox2l.options import LoadOptions

FRAMES = 11
_HOUR = "1:00:00"

Say = Callable[[str], None]


def diagnose(
    name: str,
    options: LoadOptions | None = None,
    *,
    rope_theta: float | None = None,
    say: Say = lambda _: None,
    frames: int = FRAMES,
) -> Iterator[CheckResult]:
    """Yield the findings about a model as they come; what cannot be gone on from is the last one.

    `rope_theta`: the one that the model is known to have been trained with. `say` is told what is done next. What is
    found is remembered as the result that loading looks up.
    """
    options = LoadOptions() if options is None else options
    steps = _Steps(name, options.revision, rope_theta)
    for title, step in (("files", steps.files), ("adapter", steps.adapter), ("processor", steps.processor)):
        say(title)
        found = _try(title, step)
        yield found
        if not found.ok:
            return
    say("weights")
    try:
        backbone, _ = load_backbone(name, options)
    except X2LError as error:
        yield CheckResult("weights", False, str(error))
        return
    yield CheckResult("weights", True, _weights(backbone))
    yield _try("frames", lambda: _frames(backbone))
    yield CheckResult("attention", True, _kernel(backbone))
    for title, rope in (("rope", steps.rope), ("theta", steps.theta)):
        yield _try(title, lambda rope=rope: rope(backbone))  # type: ignore[misc]
    if not isinstance(backbone, HasStock):
        yield CheckResult(
            "stock model", False, f"{type(backbone).__name__} has no model and stock_inputs to check with"
        )
        return
    findings = []
    say("positions")
    names = tuple(EXACTNESS)
    for at, found in enumerate(examine(backbone, names, frames)):
        findings.append(found)
        yield found
        say(names[min(at + 1, len(names) - 1)])
    write_result(result_path(backbone, backbone.identity()), [found for found in findings if found.name in BRIEF])
    say("weights against transformers")
    yield _try("own load", lambda: _own_load(steps.checkpoint, backbone, options))
    say("key heads")
    yield CheckResult("key heads", True, _key_heads(backbone))
    say("memory")
    yield _try("memory", lambda: _memory(name, options, backbone))


class _Steps:
    """What is looked at before and after the weights."""

    def __init__(self, name: str, revision: str | None, theta: float | None) -> None:
        self.name, self.revision, self.expected = name, revision, theta

    @property
    def checkpoint(self) -> Checkpoint:
        return checkpoint_of(self.name, self.revision)

    def files(self) -> str:
        checkpoint = self.checkpoint
        with translate_errors(checkpoint):
            config = checkpoint.config
            checkpoint.check_weights()
        return f"{checkpoint.source or checkpoint.where}, model type {config['model_type']}, safetensors"

    def adapter(self) -> str:
        adapter: Any = adapter_for(self.checkpoint.config["model_type"])
        return f"{adapter.__module__}.{adapter.__qualname__}"

    def processor(self) -> str:
        checkpoint = self.checkpoint
        if checkpoint.config["model_type"] == "llava_qwen":
            return "CLIP's, with the prompt as published"
        with translate_errors(checkpoint):
            loading.load_tokenizer(checkpoint)
            found = loading.video_processor_config(checkpoint)
        return f"found, with {len(found)} settings, and a tokenizer"

    def rope(self, backbone: Any) -> str:
        return check_rope(self.checkpoint.config, backbone.model)

    def theta(self, backbone: Any) -> str:
        theta = effective_theta(backbone.model)
        if self.expected is not None:
            if theta is None or abs(theta / self.expected - 1) > 1e-3:
                raise ModelError(f"wrong rope theta: {self.expected:g} was expected, the model rotates by {theta}")
            return f"{theta:g}, as expected"
        if self.name in SHIPPED:
            return f"{theta:g}, as trained"
        return check_theta(self.checkpoint.config["model_type"], backbone.model)


def _try(title: str, step: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(title, True, step())
    except X2LError as error:
        return CheckResult(title, False, str(error))


def _key_heads(backbone: Any) -> str:
    """Find, once, the heads that say which chunk a question is about, and return them in words."""
    if not can_be_examined(backbone):
        return f"not looked for: layers {_votes(votes_of(backbone))} are read"
    found = votes_once(backbone, backbone.identity(), find=True)
    assert found is not None
    figures = f"right page first for {found.recall:.0%} of questions about a made-up film, chance {found.chance:.0%}"
    if not found.useful:
        return f"none found ({figures}): layers {_votes(votes_of(backbone))} are read, which may miss the moment"
    return f"{_votes(found.votes)}: {figures}"


def _own_load(checkpoint: Checkpoint, backbone: Any, options: LoadOptions) -> str:
    """Load the checkpoint once more, as a user of plain transformers does, and compare what the two models say.

    All other checks run on weights as this package loaded them; this one finds those that were loaded wrongly, such as
    quantized ones without their scales. Raises ModelError when they differ.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    if options.quantize is not None:
        return f"not compared: quantize={options.quantize!r} changes the weights on purpose"
    case = TestCase(backbone, made_up_clip(FRAMES), new=1)
    if "input_ids" not in case.inputs:
        return "not compared: transformers has no class of its own for this model"
    ours = case.stock_run[0]
    inputs = {**case.inputs, "attention_mask": torch.ones_like(case.inputs["input_ids"])}
    spread = {"device_map": options.device_map} if options.device_map is not None else {}
    if quantization_of(checkpoint.config) and not spread:
        spread = {"device_map": {"": str(backbone.device)}}  # quantized weights cannot be moved later
    try:
        with translate_errors(checkpoint), torch.no_grad():
            stock = AutoModelForImageTextToText.from_pretrained(
                checkpoint.where,
                dtype=backbone.shape.dtype,
                attn_implementation="eager",
                use_safetensors=True,
                **spread,
                **checkpoint.hub,
            )
            stock = stock.eval() if spread else stock.eval().to(backbone.device)
            theirs = stock(**inputs, use_cache=False).logits[0, -1].float().cpu()
    except (torch.OutOfMemoryError, MemoryError):
        return "not compared: there is no memory for a second copy of the weights"
    off = float((ours[0] - theirs).abs().max())
    if not off <= case.tolerance:
        raise ModelError(
            f"the weights are not those that transformers loads: logits differ by {off:.3g} of {case.scale:.3g}"
        )
    return f"transformers' own load of the checkpoint says the same: logits differ by {off:.2g} of {case.scale:.3g}"


def _votes(votes: Votes) -> str:
    return ", ".join(f"{layer} ({kind})" for layer, kind in votes)


def _weights(backbone: Any) -> str:
    placed = getattr(backbone.model, "hf_device_map", None) or {}
    where = ", ".join(sorted({str(device) for device in placed.values()})) or str(backbone.device)
    size, dtype = backbone.model.get_memory_footprint(), str(backbone.shape.dtype).removeprefix("torch.")
    return f"{size / 1e9:.3g} GB, {dtype}, on {where}"


def _frames(backbone: Any) -> str:
    """Return the settings by which frames become tokens, in a line."""
    found = backbone.processing()
    return ", ".join(f"{key} {value}" for key, value in _flat(found) if value is not None)[:400]


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _flat(dataclasses.asdict(value))
        else:
            yield key, value


def _kernel(backbone: Backbone) -> str:
    import torch

    if backbone.device.type != "cuda":
        return "the decoder's is this package's, on scaled_dot_product_attention"
    cuda: Any = torch.backends.cuda
    kernels = {"flash": cuda.flash_sdp_enabled(), "efficient": cuda.mem_efficient_sdp_enabled()}
    names = ", ".join(name for name, on in kernels.items() if on) or "plain"
    return f"the decoder's is this package's, on scaled_dot_product_attention ({names})"


def _memory(name: str, options: LoadOptions, backbone: Backbone) -> str:
    """Return what an hour of video takes at default settings, from shapes."""
    from videox2l.estimate.devices import device_for
    from videox2l.estimate.fit import estimator
    from videox2l.estimate.forecast import EstimateRequest
    from videox2l.estimate.header import read_header
    from videox2l.units import format_bytes

    device = device_for("cpu" if backbone.device.type == "cpu" else "h200")
    try:
        found = estimator(name, read_header(_HOUR), device)(EstimateRequest(load=options))
    except ModelError as error:  # an adapter of another package need not know
        return str(error)
    kept = ", ".join(f"{level} {format_bytes(count)}" for level, count in found.disk.items())
    return (
        f"an hour at 1280x720 and 1 frame per second: {found.tokens:,} visual tokens, {kept} "
        f"(full KV {format_bytes(found.question.full * found.token_bytes)})"
    )
