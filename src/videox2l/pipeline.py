"""VideoX2L: ingest a video once, ask it many questions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from videox2l.ask.answer import Answer
from videox2l.ask.chat import Chat
from videox2l.ask.escalation import Escalation
from videox2l.ask.options import resolve_options
from videox2l.ask.run import QuestionRun, joined_words, run_question
from videox2l.ask.view import View
from videox2l.compress import COMPRESSORS, Compressor, compressor_by_name
from videox2l.engine.backbone import Backbone
from videox2l.errors import SettingsError
from videox2l.ingest import IngestSettings, Progress, append, ingest
from videox2l.memory import Memory
from videox2l.memory.disk.stores import RemoteStore, open_store
from videox2l.select import DEFAULT_SELECTOR, Budget, Selector, TimeRange, selector_by_name
from videox2l.select.embedding import DualEncoder, same_encoder
from videox2l.types import SOURCE, Turn
from videox2l.units import Cue
from videox2l.video import FrameSampling, FrameSource, open_video
from videox2l.video.subtitles import read_subtitles


class VideoX2L:
    """A video LLM with two-level KV memories of videos and selective re-loading (arXiv 2506.21184).

    It holds no state of videos or questions: asking in another order never changes an answer.
    """

    def __init__(self, backbone: Backbone, source: str | None = None) -> None:
        self.backbone = backbone
        self.source = source
        self._selectors: dict[str, Selector] = {}  # by name: one may have loaded a model of its own

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        device: str | None = None,
        dtype: str = "auto",
        device_map: Any = None,
        quantize: Any = None,
        revision: str | None = None,
        max_pixels: int | None = None,
        check: bool = True,
    ) -> VideoX2L:
        """Load a model: "demo" (ships with the package), a local directory, or a hub id.

        Parameters
        ----------
        device
            "cpu", "cuda", "cuda:1", ...: by default CUDA where there is one.
        dtype
            "auto" (what the checkpoint says; float32 on the CPU), "float32", "bfloat16" or "float16".
        device_map
            In place of `device`: "auto", or a map of modules to devices, to spread a model over several GPUs and host
            memory (accelerate). KVs of a layer lie where the layer is.
        quantize
            "4bit" or "8bit" (bitsandbytes), or a quantization config of transformers.
        revision
            Branch, tag or commit of a hub repository; the commit is recorded in memories.
        max_pixels
            Pixels of a frame at most, where the family resizes to a pixel budget; the fewer, the fewer visual tokens.
        check
            Compare a made-up clip with the stock model (once per model, versions and device; the verdict is kept in
            `verdicts.cache_folder()`) and the rope settings with the model's; refuse the model where they differ.

        Raises ModelError, SettingsError.
        """
        from videox2l.backbones import loading

        backbone = loading.from_pretrained(
            name,
            device=device,
            dtype=dtype,
            device_map=device_map,
            quantize=quantize,
            revision=revision,
            max_pixels=max_pixels,
        )
        checkpoint = loading.checkpoint_of(name, revision)
        found = cls(backbone, checkpoint.source)
        if check and name not in loading.SHIPPED:
            from videox2l.backbones.checks import check_rope
            from videox2l.conformance import check_cache

            check_rope(checkpoint.config, getattr(backbone, "model", None))
            check_cache.check_once(backbone, found.identity)
        return found

    @classmethod
    def from_model(cls, model: Any, processor: Any, *, max_pixels: int | None = None) -> VideoX2L:
        """Use a transformers model and its processor that are already loaded.

        The model's text decoder is switched to this package's attention function; results of the model elsewhere
        stay the same up to rounding.
        """
        from videox2l.backbones import loading

        return cls(loading.from_objects(model, processor, max_pixels))

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a memory must agree on with this model, and where on the hub it was fetched from, which is only told."""
        identity = self.backbone.identity()
        return identity if self.source is None else {**identity, SOURCE: self.source}

    def ingest(
        self,
        video: str | Path | FrameSource,
        *,
        fps: float | None = 1.0,
        max_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        sampling: str = "auto",
        ratios: Sequence[float] = (2, 32),
        compressor: str | Compressor | None = None,
        history: str = "H",
        l_tier: str = "stored",
        l_bits: int | None = None,
        h_bits: int | None = None,
        store: str | Path | None = None,
        live: bool = False,
        subtitles: str | Path | Sequence[Cue] = (),
        chunk_frames: int | None = None,
        embedder: str | DualEncoder | None = None,
        progress: Progress | None = None,
    ) -> Memory:
        """Read a video once and return its memory.

        Parameters
        ----------
        video
            A file, or any FrameSource (the sampling arguments are then ignored).
        fps, max_frames
            Frames sampled per second of video, and at most this many: fps is lowered until they fit.
        start, end
            Seconds of the part to read; by default all.
        sampling
            "exact" decodes every frame, "fast" skips frames that cannot be sampled, "auto" is fast where safe.
        ratios
            Compression ratio of each level, finest (L) first; the last is H. `(1,)` keeps everything.
        compressor
            "keydiff", "snap", "uniform", "pool", "summary" (Video-XL alone), or an object with the Compressor
            protocol; default: "summary" for Video-XL, "keydiff" for all others.
        history
            What earlier chunks look like while a chunk is prefilled: "H", "L", "recent:n", "own" or "fused".
        l_tier
            "stored" makes and keeps all levels; "lazy" makes levels finer than H when a question first wants them,
            from visual tokens that are kept instead, with history "H" and a compressor by name; "none" keeps H alone.
        l_bits, h_bits
            Precision of the levels finer than H, and of H: 8, 4, or None for the model's own dtype.
        store
            A folder to keep the memory in: every chunk is on disk before the next one is read, levels finer than H
            stay there until a question wants them, and an ingest that was stopped goes on behind its last whole chunk.
        endless
            More will be appended: no chunk is treated as the last one of the video.
        subtitles
            An SRT or VTT file, "embedded" for a text track of the video, or lines; for selector "text" and for prompts.
        chunk_frames
            Sampled frames per chunk, the unit of selection; default: 10 for Video-XL, 8 for all others.
        embedder
            A dual encoder (CLIP, SigLIP, SigLIP 2) by directory or hub id, or loaded: some frames of each chunk are
            embedded, for selector "embedding".
        progress
            Called after each chunk with frames done, frames expected or None, and the pts reached.

        Raises SettingsError, VideoError, and MemoryFileError when the store cannot be written or holds another memory.
        """
        if l_tier == "none":
            ratios, l_tier = tuple(ratios)[-1:], "stored"
        compressor = self.backbone.default_compressor if compressor is None else compressor
        if l_tier == "lazy" and not isinstance(compressor, str):
            raise SettingsError("l_tier='lazy' needs a compressor by name: levels are made later, maybe elsewhere")
        found = compressor_by_name(compressor) if isinstance(compressor, str) else compressor
        encoder = DualEncoder.from_pretrained(embedder, self.backbone.device) if isinstance(embedder, str) else embedder
        settings = IngestSettings(
            ratios=tuple(float(ratio) for ratio in ratios),
            history=history,
            compressor=compressor if isinstance(compressor, str) else repr(compressor),
            chunk_frames=self.backbone.default_chunk_frames if chunk_frames is None else chunk_frames,
            l_tier=l_tier,
            l_bits=l_bits,
            h_bits=h_bits,
            live=live,
            embedder=None if encoder is None else encoder.identity(),
        )
        place = None if store is None else open_store(store)
        if isinstance(place, RemoteStore):
            raise SettingsError(f"store='{place}' is not possible: ingest into a local folder, then save it there")
        if isinstance(subtitles, (str, Path)):
            subtitles = read_subtitles(subtitles, video if isinstance(video, (str, Path)) else None)
        with contextlib.ExitStack() as stack:
            if isinstance(video, (str, Path)):
                plan = FrameSampling(fps=fps, max_frames=max_frames, start=start, end=end, mode=sampling)  # type: ignore[arg-type]
                video = stack.enter_context(open_video(video, plan))
            return ingest(video, self.backbone, found, settings, self.identity, progress, place, subtitles, encoder)

    def append(
        self,
        memory: Memory,
        video: str | Path | FrameSource,
        *,
        fps: float | None = 1.0,
        sampling: str = "auto",
        embedder: DualEncoder | None = None,
        progress: Progress | None = None,
    ) -> Memory:
        """Add a video behind the end of a memory, with the memory's settings; return the memory, which is changed.

        Its time 0 is where the memory ends. Chunks can be asked about as they finish, also from other threads and,
        where the memory lies in a folder, from other processes. No chunk of it is treated as the last of the video.
        `embedder`: the memory's own, if it was made with one that cannot be loaded by name.
        Raises SettingsError, VideoError, MemoryFileError, ModelError.
        """
        memory.check_model(self.identity)
        known = {key: value for key, value in memory.settings.items() if key != "ratios"}
        settings = IngestSettings(ratios=tuple(memory.settings["ratios"]), **known)
        if settings.compressor not in COMPRESSORS:
            raise SettingsError(f"compressor {settings.compressor} has no name: a memory made with it cannot grow")
        if settings.embedder is not None:
            embedder = embedder or DualEncoder.from_pretrained(settings.embedder["name"], self.backbone.device)
            embedder = same_encoder(embedder, settings.embedder)
        with contextlib.ExitStack() as stack:
            if isinstance(video, (str, Path)):
                video = stack.enter_context(open_video(video, FrameSampling(fps=fps, mode=sampling)))  # type: ignore[arg-type]
            append(memory, video, self.backbone, compressor_by_name(settings.compressor), settings, progress, embedder)
        return memory

    def ask(
        self,
        memory: Memory,
        question: str,
        *,
        reload: int | str | Budget = 3,
        selector: str | Selector = DEFAULT_SELECTOR,
        pinned: Sequence[TimeRange] = (),
        excluded: Sequence[TimeRange] = (),
        as_of: float | None = None,
        within: TimeRange | None = None,
        subtitles: bool = False,
        history: Sequence[Turn] = (),
        escalate: bool | Escalation = False,
        reselect_every: int | None = None,
        why: Sequence[float] = (),
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a question about a memory; the memory is not changed.

        Parameters
        ----------
        reload
            What to re-load at L: a number of chunks, "all", "none", "tokens:N", "bytes:200M", "mass:0.9",
            "latency:0.5s" (docs/selection.md), or an object with the Budget protocol.
        selector
            What scores the chunks: "keys", "attention", "embedding", "embed-dot", "text", "uniform", "random",
            "manual:10:00-11:30", several as "fuse:keys+text", or an object with the Selector protocol.
        pinned, excluded
            Time ranges (seconds) whose chunks are re-loaded in any case, or never.
        as_of
            Only the chunks that are over at this second are seen, as if the video had come no further.
        within
            Only the chunks that overlap this time range (seconds) are seen.
        subtitles
            Put the subtitles of the re-loaded chunks in front of the question.
        history
            Earlier turns of the dialogue; `chat` keeps them, and their KVs, by itself.
        escalate
            Answer with the best chunk re-loaded first, and re-load the rest of what `reload` plans bit by bit, only
            while the model is unsure. True, or an `Escalation` with settings of your own, such as to begin from H.
        reselect_every
            Score the chunks again after every so many tokens of the answer, with what is written so far; where the plan
            changes, the answer goes on behind the new mix.
        why
            Moments (seconds) of which `answer.why(seconds)` is to say which words and heads looked at them, where the
            selector can; costs another look each. All else that it says needs no such preparation.
        max_new_tokens, temperature, top_p, seed
            Decoding; `temperature=0` is greedy.
        on_text
            Called with each new piece of text while the answer is written.

        Raises SettingsError, and MemoryFileError when the memory was made by another model.
        """
        wish = resolve_options(
            reload=reload,
            selector=self._selector(selector) if isinstance(selector, str) else selector,
            pinned=pinned,
            excluded=excluded,
            subtitles=subtitles,
            escalate=escalate,
            reselect_every=reselect_every,
            why=why,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            on_text=on_text,
        )
        memory.check_model(self.identity)
        view = View.of(memory, as_of, within)
        said = joined_words(question, history)
        return run_question(
            QuestionRun(self.backbone, view, question, lambda text: self.backbone.suffix(text, history), wish, said)
        )

    def _selector(self, name: str) -> Selector:
        if name not in self._selectors:
            self._selectors[name] = selector_by_name(name)
        return self._selectors[name]

    def chat(self, memory: Memory, *, earlier: str = "keep") -> Chat:
        """Begin a dialogue about a memory: `chat.ask(question)`, again and again.

        It sees the memory as it is at each question, also while the memory grows. `earlier` says what becomes of the
        turns before a question: "keep" keeps their KVs as they were computed, "recompute" reads their text again on
        the mix of each new question. Raises SettingsError, and MemoryFileError when another model made the memory.
        """
        memory.check_model(self.identity)
        return Chat(self.backbone, memory, earlier)
