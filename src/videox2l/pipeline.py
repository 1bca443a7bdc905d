"""VideoX2L: ingest a video once, ask it many questions."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from videox2l.ask.answer import Answer
from videox2l.ask.chat import Chat
from videox2l.ask.library import LibraryAnswer, LibraryIndex
from videox2l.ask.run import Answering, OnText, QuestionRun, answering, run_together
from videox2l.ask.view import View
from videox2l.engine.backbone import Backbone
from videox2l.engine.hub import online
from videox2l.errors import MemoryFileError, SettingsError
from videox2l.ingest import Progress, append, finished, ingest_steps
from videox2l.memory import JointMemory, Memory
from videox2l.memory.disk.stores import open_store
from videox2l.options import (
    AskKeywords,
    AskOptions,
    IngestKeywords,
    IngestOptions,
    LibraryOptions,
    LoadKeywords,
    LoadOptions,
    check_callable,
    check_methods,
    check_path,
    check_text,
)
from videox2l.select import Selector, selector_by_name
from videox2l.select.embedding import DualEncoder
from videox2l.types import SOURCE, Turn
from videox2l.video import FrameSampling, FrameSource, VideoReader, open_video
from videox2l.video.audio import SoundTrack
from videox2l.video.speech import Transcript, transcriber_of
from videox2l.video.subtitles import read_subtitles


class VideoX2L:
    """A video LLM with two-level KV memories of videos and selective re-loading (arXiv 2506.21184).

    It holds no state of videos or questions: asking in another order never changes an answer.
    """

    def __init__(self, backbone: Backbone, source: str | None = None) -> None:
        self.backbone = backbone
        self.source = source
        self._libraries: dict[str, LibraryIndex] = {}
        self._selectors: dict[str, Selector] = {}  # by name: one may have loaded a model of its own

    @classmethod
    def from_pretrained(
        cls, name: str, options: LoadOptions | None = None, **keywords: Unpack[LoadKeywords]
    ) -> VideoX2L:
        """Load a model: "demo" (ships with the package), a local directory, or a hub id.

        Options, as `LoadOptions` or as keywords
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
            By default the model's own; frames of long videos get their share of its budget for a whole video.
        detail
            A word for `max_pixels`: "low", "medium" or "high" (`videox2l.options.DETAIL`).
        check
            Compare a made-up clip with the stock model (once per model, versions and device; the result is kept in
            `object_cache.cache_folder()`) and the rope settings with the model's; refuse the model where they differ.

        Raises ModelError, SettingsError.
        """
        from videox2l.demo.models import SHIPPED, load_backbone

        options = LoadOptions.from_keywords(options, keywords)
        check_path(name, "the model")
        backbone, checkpoint = load_backbone(name, options)
        x2l = cls(backbone, checkpoint.source)
        if options.check and name not in SHIPPED:
            from videox2l.backbones.checks import check_rope
            from videox2l.conformance import check_cache

            check_rope(checkpoint.config, getattr(backbone, "model", None))
            check_cache.check_once(backbone, x2l.identity)
            check_cache.votes_once(backbone, x2l.identity)
        return x2l

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
        options: IngestOptions | None = None,
        *,
        store: str | Path | None = None,
        progress: Progress | None = None,
        **keywords: Unpack[IngestKeywords],
    ) -> Memory:
        """Read a video once and return its memory.

        Parameters
        ----------
        video
            A file, or any FrameSource (options of sampling are then ignored; `at` is refused).
        store
            A folder or fsspec URL (s3://bucket/lecture) to keep the memory in: every chunk is there before the next one
            is read, levels finer than H stay there until a question wants them, and an ingest that was stopped goes on
            behind its last whole chunk.
        progress
            Called after each chunk with frames done, frames expected or None, and the pts reached.

        Options, as `IngestOptions` or as keywords
        ----------
        fps, max_frames
            Frames sampled per second of video (None: every frame), and at most this many: fps is lowered until they
            fit.
        start, end
            The part to read, in seconds or as "12:30"; by default all.
        at
            In place of these: the times, in seconds or as "12:30", at which exactly the frames that are shown are read.
        sampling
            "exact" decodes every frame, "fast" skips frames that cannot be sampled, "auto" is fast where safe.
        ratios
            Compression ratio of each level, finest (L) first; the last is H. `(1,)` keeps everything.
        compressor
            "keydiff", "echo", "snap", "uniform", "pool", "summary" (Video-XL alone), or an object with the Compressor
            protocol; default: "summary" for Video-XL, "keydiff" for all others.
        history
            What earlier chunks look like while a chunk is prefilled: "H", "L", "recent:n", "own" or "fused".
        l_tier
            "stored" makes and keeps all levels; "lazy" makes levels finer than H when a question first wants them,
            from visual tokens that are kept instead, with history "H" and a compressor by name; "none" keeps H alone.
        l_bits, h_bits
            Precision of the levels finer than H, and of H: 8, 4, or None for the model's own dtype.
        live
            More will be appended: no chunk is treated as the last one of the video.
        subtitles
            An SRT or VTT file, "embedded" for a text track of the video, or cues; for selector "text" and for prompts.
        transcribe, language, audio_track
            Write down what is said while the video is read, as subtitles: with a Whisper model by size ("base"), folder
            or hub id (extra `speech`), or an object with the Transcriber protocol; in this language, by default found
            in the sound; of this sound track, counted from 1.
        chunk_frames
            Sampled frames per chunk, the unit of selection; default: 10 for Video-XL, 8 for all others.
        window_chunks
            Chunks per window, the unit of prefill: the decoder reads so many chunks in one forward, each behind those
            before it in the window in full, and behind the history of all others. Default: 1, on CUDA as many as make
            about 2,000 tokens, of a live video 1; a memory that is gone on with keeps its own.
        embedder
            A dual encoder (CLIP, SigLIP, SigLIP 2) by directory or hub id, or loaded: some frames of each chunk are
            embedded, for selector "embedding".
        system
            The system text of the prompt, in place of the chat template's own. It stands before the video, so that the
            memory is one of video and system text, and every question about it is asked with that text.

        Raises SettingsError, VideoError, and MemoryFileError when the store cannot be written or holds another memory.
        """
        options = IngestOptions.from_keywords(options, keywords)
        check_callable(progress, "progress")
        check_video(video)
        target = None if store is None else open_store(store)
        cues = options.subtitles
        if isinstance(cues, (str, Path)):
            cues = read_subtitles(cues, video if isinstance(video, (str, Path)) else None)
        with contextlib.ExitStack() as stack:
            if isinstance(video, (str, Path)):
                video = stack.enter_context(open_video(video, frame_sampling(options)))
            elif options.at is not None and video.manifest.at != options.at:
                raise SettingsError("at goes with the path of a video: this source of frames chooses them by itself")
            said = cues if options.transcribe is None else self.transcript(video, options)
            return finished(
                ingest_steps(
                    video, self.backbone, options, self.identity, store=target, progress=progress, subtitles=said
                )
            )

    def transcript(self, video: FrameSource, options: IngestOptions) -> Transcript:
        """Return the transcription of an opened video file's sound that the options ask for; nothing of it is made yet.

        Raises SettingsError for a source that is no file, VideoError without sound, ModelError.
        """
        if not isinstance(video, VideoReader):
            raise SettingsError("transcribe needs a video file: this source of frames has no sound")
        track = SoundTrack(video.path, options.audio_track)
        transcriber = transcriber_of(options.transcribe, str(self.backbone.device), online)
        return Transcript(track, transcriber, options.language, options.start or 0.0, options.end)

    def append(
        self,
        memory: Memory | str | Path,
        video: str | Path | FrameSource,
        *,
        fps: float | None = 1.0,
        at: Sequence[float | str] | str | None = None,
        sampling: str = "auto",
        embedder: DualEncoder | None = None,
        progress: Progress | None = None,
    ) -> Memory:
        """Add a video behind the end of a memory, with its settings; return the memory, which is changed.

        Its time 0 is where the memory ends. Chunks can be asked about as they finish, also from other threads and,
        where the memory lies in a folder, from other processes. No chunk of it is treated as the last of the video.
        `at`, in place of `fps`, lists times of the added video.
        `embedder`: the memory's own, if it was made with one that cannot be loaded by name.
        Raises SettingsError, VideoError, MemoryFileError, ModelError.
        """
        memory = self._opened(memory)
        check_callable(progress, "progress")
        check_video(video)
        with contextlib.ExitStack() as stack:
            if isinstance(video, (str, Path)):
                options = IngestOptions(fps=fps, at=at, sampling=sampling)  # type: ignore[arg-type]  # made numbers
                video = stack.enter_context(open_video(video, frame_sampling(options)))
            append(memory, video, self.backbone, embedder=embedder, progress=progress)
        return memory

    def ask(
        self,
        memory: Memory | str | Path | Sequence[Memory | str | Path],
        question: str,
        options: AskOptions | None = None,
        *,
        history: Sequence[Turn] = (),
        on_text: OnText | None = None,
        **keywords: Unpack[AskKeywords],
    ) -> Answer:
        """Answer a question about a memory, or the one at a path or URL; the memory is not changed.

        Parameters
        ----------
        memory
            Several may be given as a list: their videos stand one behind the other, all chunks compete for one budget,
            and times are those of each video (docs/asking.md says what is exact).
        history
            Earlier turns of the dialogue; `chat` keeps them, and their KVs, by itself.
        on_text
            Called with each new piece of text while the answer is written.

        Options, as `AskOptions` or as keywords
        ----------
        reload
            What to re-load at L: a number of chunks, "all", "none", "tokens:N", "bytes:200M", "mass:0.9",
            "latency:0.5s" (docs/selection.md), or an object with the Budget protocol.
        selector
            What scores the chunks: "keys", "attention", "embedding", "embed-dot", "text", "uniform", "random",
            "manual:10:00-11:30", several as "fuse:keys+text", or an object with the Selector protocol.
        pinned, excluded
            Time ranges, as seconds or "10:00-11:30", whose chunks are re-loaded in any case, or never.
        as_of
            Only the chunks that are over at this time are seen, as if the video had come no further.
        within
            Only the chunks that overlap this time range are seen.
        said
            Only the chunks are seen during which subtitles with this text are shown, in upper or lower case.
        subtitles
            Put the subtitles of the re-loaded chunks in front of the question.
        escalate
            Answer with the best chunk re-loaded first, and re-load the rest of what `reload` plans bit by bit, only
            while the model is unsure. True, or an `Escalation` with settings of your own, such as to begin from H.
        reselect_every
            Score the chunks again after every so many tokens of the answer, with what is written so far; where the plan
            changes, the answer goes on behind the new cache.
        system
            The system text that the memory must have been made with; another one is refused.
        turns
            Examples, as pairs of question and answer or as chat messages, that stand behind the video and before the
            dialogue; selectors do not read them.
        prompt_template
            The text that is asked, with "{question}" in it; selectors read the question alone.
        choices
            Answers to weigh, as texts or "A,B,C": `answer.choices` has the log likelihood of each, `answer.text` is the
            one that is likeliest per token.
        calibrate
            Take the choice whose log likelihood gains most from the video, against the same prompt without it.
        json_schema
            The answer is JSON of this schema (a dictionary), whatever the sampling; needs the extra `schema`.
        abstain
            Nats: where the tokens of the answer surprise the model by more than this on average, the answer is that the
            video does not show it, and what was written is `answer.draft`.
        why
            Moments of which `answer.why(seconds)` is to say which words and heads looked at them, where the selector
            can; costs another look each. All else that it says needs no such preparation.
        max_new_tokens, temperature, top_p, seed
            Decoding; `temperature=0` is greedy.
        stop
            The answer ends before the first of these texts.

        Raises SettingsError, and MemoryFileError when the memory was made by another model.
        """
        options = AskOptions.from_keywords(options, keywords)
        (outcome,) = run_together([self.answering(memory, question, options, history=history, on_text=on_text)], 1)
        return outcome.answer

    def ask_many(
        self,
        questions: Sequence[tuple[Memory | str | Path | Sequence[Memory | str | Path], str]],
        options: AskOptions | None = None,
        *,
        batch: int = 8,
        **keywords: Unpack[AskKeywords],
    ) -> list[Answer]:
        """Answer questions about one memory or many, pairs of a memory and a question; options as of `ask`.

        `batch` of them decode together: the model's weights are read once per token for all of them. The answers are
        those of `ask`, up to the rounding of a matrix product with more rows. Raises what `ask` raises.
        """
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise SettingsError(f"batch={batch!r} is not possible: use a number of questions, 1 or more")
        options = AskOptions.from_keywords(options, keywords)
        if not isinstance(questions, (list, tuple)) or any(
            not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in questions
        ):
            raise SettingsError(f"questions must be a list of pairs (memory, question), got {questions!r:.80}")
        paths = {memory: self.open(memory) for memory, _ in questions if isinstance(memory, (str, Path))}  # once each
        begun = [
            self.answering(paths[memory] if isinstance(memory, (str, Path)) else memory, question, options)
            for memory, question in questions
        ]
        return [outcome.answer for outcome in run_together(begun, batch)]

    def answering(
        self,
        memory: Memory | str | Path | Sequence[Memory | str | Path],
        question: str,
        options: AskOptions,
        *,
        history: Sequence[Turn] = (),
        on_text: OnText | None = None,
    ) -> Answering:
        """Return the steps of `ask`, for a scheduler that lets several questions decode together.

        Nothing but the checks has run. Each `next` goes on to where the model has to read a token of the answer and
        returns the `TokenGenerator` that `videox2l.engine.decode.advance` does that with; the last one raises
        StopIteration with an `Outcome`.
        """
        options = self._with_selector(options)
        check_callable(on_text, "on_text")
        opened = self.open(memory)
        if options.why and isinstance(opened, JointMemory):
            raise SettingsError("why=... does not go with several videos: use answer.why(seconds, memory)")
        view = View.of(opened, options.as_of, options.within, said=options.said)
        run = QuestionRun.of(self.backbone, view, question, options, history=history)
        return answering(run, on_text=on_text)

    def ask_library(
        self,
        library: str | Path,
        question: str,
        options: AskOptions | None = None,
        *,
        searching: LibraryOptions | None = None,
        on_text: OnText | None = None,
        **keywords: Unpack[AskKeywords],
    ) -> LibraryAnswer:
        """Find what a question is about among all memories of a folder or fsspec URL, and answer from the best few.

        The features of all memories are compared first (`searching.search`); then the memories with the best moments,
        at most `searching.videos`, are asked as `ask` asks several: one selector and one budget over all their chunks.
        Features stay in host memory; memories that came, went or grew since the last question are read or let go.
        `as_of`, `within` and `said` hold for the search too. Memories of other models or settings are not mixed: their
        names, and why, are in `answer.left_out`. Other options are those of `ask`.

        Raises SettingsError, and MemoryFileError where there is no library or no memory in it can be asked.
        """
        options = self._with_selector(AskOptions.from_keywords(options, keywords))
        check_text(question, "the question")
        check_path(library, "the library")
        searching = LibraryOptions.from_keywords(searching)
        search = searching.search
        if isinstance(search, str):  # one may have loaded a model of its own
            search = self._with_selector(AskOptions(selector=search)).selector
            searching = LibraryOptions.from_keywords(searching, {"search": search})
        if str(library) not in self._libraries:
            self._libraries[str(library)] = LibraryIndex(library, self.backbone, self.identity)
        asked = replace(self.backbone.suffix(question), text=question)
        found = self._libraries[str(library)].search(asked, searching, options)
        memory = self.open(found.opened, found.memories)
        return LibraryAnswer.of(self.ask(memory, question, options, on_text=on_text), found)

    def chat(self, memory: Memory | str | Path | Sequence[Memory | str | Path], *, earlier: str = "keep") -> Chat:
        """Begin a dialogue about a memory, or several: `chat.ask(question)`, again and again.

        It sees the memory as it is at each question, also while the memory grows. `earlier` says what becomes of the
        turns before a question: "keep" keeps their KVs as they were computed, "recompute" reads their text again on
        the cache of each new question. Raises SettingsError, and MemoryFileError when another model made the memory.
        """
        return Chat(self.backbone, self.open(memory), earlier)

    def open(
        self, memory: Memory | str | Path | Sequence[Memory | str | Path], names: Sequence[str] | None = None
    ) -> Memory:
        """Return a memory that this model can be asked about, loaded where it is a path; several become one.

        `names` of several are by default their paths, or what their videos are called. Raises SettingsError, and
        MemoryFileError that says what differs when another model made one.
        """
        if isinstance(memory, (Memory, str, Path)):
            return self._opened(memory)
        if not isinstance(memory, Sequence) or not memory:
            raise SettingsError(f"memory must be a Memory, the path of one, or a list of them, got {memory!r:.80}")
        if names is not None and (not isinstance(names, (list, tuple)) or len(names) != len(memory)):
            raise SettingsError(f"names must be a list of {len(memory)}, one for each memory, got {names!r:.80}")
        if len(memory) == 1:
            return self._opened(memory[0])
        memories, called = [], []
        for number, one in enumerate(memory):
            name = names[number] if names is not None else str(one) if isinstance(one, (str, Path)) else ""
            opened = self._opened(one, name or f"memory {number + 1}")
            if isinstance(opened, JointMemory):
                raise SettingsError(
                    "several memories that were opened as one cannot stand in a list: list each by itself"
                )
            memories.append(opened)
            called.append(name or str(opened.manifest.get("source") or f"video {number + 1}"))
        return JointMemory.of(memories, distinct(called if names is None else names), self.backbone)

    def _opened(self, memory: Memory | str | Path, name: str = "") -> Memory:
        if isinstance(memory, (str, Path)):
            memory = Memory.load(memory)
        if not isinstance(memory, Memory):
            raise SettingsError(f"memory must be a Memory, or the path of one, got {type(memory).__name__}")
        try:
            memory.check_model(self.identity)
        except MemoryFileError as error:
            raise MemoryFileError(f"'{name}': {error}" if name else str(error)) from None
        return memory

    def _with_selector(self, options: AskOptions) -> AskOptions:
        """Keep selectors by name: one may have loaded a model of its own."""
        name = options.selector
        if not isinstance(name, str):
            return options
        if name not in self._selectors:
            self._selectors[name] = selector_by_name(name)
        return AskOptions.from_keywords(options, {"selector": self._selectors[name]})


def check_video(video: Any) -> None:
    """Raise SettingsError for what is neither the path of a video nor a source of frames."""
    if isinstance(video, (str, Path)):
        check_path(video, "video")
    else:
        cure = "the path of a video, or a source of frames such as ArraySource(frames, fps=1.0)"
        check_methods(video, "video", ["__iter__", "manifest", "expected_frames"], cure)


def frame_sampling(options: IngestOptions) -> FrameSampling:
    """Return which frames of a file the options take."""
    return FrameSampling(
        fps=options.fps if options.at is None else None,
        at=options.at,
        max_frames=options.max_frames,
        start=options.start,
        end=options.end,
        mode=options.sampling,  # type: ignore[arg-type]
    )


def distinct(names: Sequence[str]) -> list[str]:
    """Return names of videos, those that were given before with a number behind them: lecture.mp4, lecture.mp4 (2)."""
    found = list[str]()
    for name in names:
        free = (name if n == 1 else f"{name} ({n})" for n in itertools.count(1))
        found.append(next(one for one in free if one not in found))
    return found
