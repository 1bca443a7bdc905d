"""OpenAI's chat completions: requests to questions, answers to responses."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from videox2l.ask.answer import Answer, TokenLogprob, score_ranks
from videox2l.errors import SettingsError
from videox2l.memory import Memory
from videox2l.options import AskOptions
from videox2l.serve.errors import APIError
from videox2l.types import Turn

_FORBIDDEN = {
    "tools": (None, []),
    "functions": (None, []),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "audio": (None,),
    "n": (None, 1),
}


class StreamOptions(BaseModel):
    """What a stream holds besides the answer."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request for a chat completion.

    `x2l` holds the fields of AskOptions, `memory` or `memories`, and `ingest` options.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=1000)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    stop: str | list[str] | None = None
    x2l: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class ChatQuestion:
    """What a request asks.

    `video` is a URL, also such as memory:ID, or `file_id` is that of an upload, or `memories` are the ids of several,
    or "all". `system`: the text of system messages.
    """

    text: str
    history: tuple[Turn, ...]
    system: str
    video: str | None
    file_id: str | None
    options: AskOptions
    ingest: dict[str, Any]
    memories: tuple[str, ...] | str = ()
    detail: bool = False

    def behind(self, memory: Memory) -> tuple[str, tuple[Turn, ...]]:
        """Return the question and the turns before it, with the system text in front unless the memory has it."""
        if not self.system or self.system == memory.system:
            return self.text, self.history
        if not self.history:
            return f"{self.system}\n{self.text}", ()
        first, *others = self.history
        return self.text, (Turn(f"{self.system}\n{first.question}", first.answer), *others)


def question_of(request: ChatRequest, longest: int) -> ChatQuestion:
    """Return the question of a request. Raises APIError and SettingsError for what is not served."""
    extra = request.model_extra or {}
    for name, neutral in _FORBIDDEN.items():
        if extra.get(name) not in neutral:
            raise APIError(400, f"{name} is not served: leave it out", param=name, code="unsupported_parameter")
    ours = {**_json_schema(extra.get("response_format")), **(request.x2l or {})}
    ingest, memory, detail = ours.pop("ingest", None) or {}, ours.pop("memory", None), ours.pop("detail", False)
    if not isinstance(ingest, dict):
        raise APIError(400, "x2l.ingest must be an object of ingest options", param="x2l.ingest")
    text, history, system, videos = _dialogue(request.messages)
    several = _memories(ours.pop("memories", None))
    options = _ask_options(request, ours, longest)
    if several and not videos and memory is None:
        return ChatQuestion(text, history, system, None, None, options, {}, several, detail is True)
    if several:
        raise APIError(
            400, "x2l.memories does not go with another video: put its memory there too", param="x2l.memories"
        )
    if memory is not None:
        videos.append(("url", f"memory:{memory}"))
    if len(set(videos)) != 1:
        told = "names no video" if not videos else "names several videos"
        cure = "give one, as a video_url, a file, or x2l.memory; several are x2l.memories"
        raise APIError(400, f"the request {told}: {cure}", param="messages")
    kind, value = videos[-1]
    return ChatQuestion(
        text=text,
        history=history,
        system=system,
        video=value if kind == "url" else None,
        file_id=value if kind == "file" else None,
        options=options,
        ingest={**_video_kwargs(request), "system": options.system, **ingest},
        detail=detail is True,
    )


def _json_schema(wanted: Any) -> dict[str, Any]:
    """Return the option that OpenAI's `response_format` stands for. Raises APIError."""
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if kind in (None, "text"):
        return {}
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    given = wanted.get("json_schema") if kind == "json_schema" and isinstance(wanted, dict) else None
    schema = given.get("schema") if isinstance(given, dict) else None
    if not isinstance(schema, dict):
        told = "response_format must be text, json_object, or json_schema with a schema"
        raise APIError(400, told, param="response_format")
    return {"json_schema": schema}


def _memories(given: Any) -> tuple[str, ...] | str:
    """Return the ids of `x2l.memories`, or "all"; none where there is no such field. Raises APIError."""
    if given is None or given == "all":
        return given or ()
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        raise APIError(400, 'x2l.memories must be a list of ids, or "all"', param="x2l.memories")
    return tuple(given)


def _ask_options(request: ChatRequest, ours: dict[str, Any], longest: int) -> AskOptions:
    if request.top_logprobs is not None and not request.logprobs:
        raise APIError(400, "top_logprobs goes with logprobs: true", param="top_logprobs")
    wanted = {
        "max_new_tokens": request.max_completion_tokens or request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "presence_penalty": request.presence_penalty,
        "seed": request.seed,
        "logprobs": (request.top_logprobs or 0) if request.logprobs else None,
        "stop": request.stop,
    }
    keywords = {name: value for name, value in {**wanted, **ours}.items() if value is not None}
    for name in ("reload", "selector"):
        if name in keywords and not isinstance(keywords[name], (str, int)):
            raise SettingsError(f"{name} must be text or a number, got {keywords[name]!r}")
    if not isinstance(keywords.get("escalate", False), bool):
        raise SettingsError("escalate must be true or false")
    try:
        options = AskOptions.from_keywords(None, keywords)
    except TypeError as error:
        raise SettingsError(f"the options cannot be read: {error}") from None
    if options.max_new_tokens > longest:
        raise APIError(400, f"max_tokens must be at most {longest} here (--max-answer)", param="max_tokens")
    return options


def _video_kwargs(request: ChatRequest) -> dict[str, Any]:
    """Return the ingest options that vLLM's names mean."""
    io = request.media_io_kwargs or {}
    found = dict(io.get("video") or {}) if isinstance(io.get("video", {}), dict) else {}
    found |= request.mm_processor_kwargs or {}
    if "max_pixels" in found:
        raise APIError(400, "max_pixels is chosen when the server starts (--max-pixels)", param="mm_processor_kwargs")
    frames = found.get("num_frames")
    return {"fps": found.get("fps"), "max_frames": None if frames in (None, -1) else frames}


def _dialogue(messages: list[dict[str, Any]]) -> tuple[str, tuple[Turn, ...], str, list[tuple[str, str]]]:
    """Return the last question, the turns before it, the system text, and the videos that are named."""
    system, asked, turns, videos = "", "", list[Turn](), list[tuple[str, str]]()
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role, text = message.get("role"), _text_of(message.get("content"), videos, where)
        if role in ("system", "developer"):
            system = f"{system}\n{text}".strip()
        elif role == "user":
            asked = f"{asked}\n{text}".strip()
        elif role == "assistant":
            if not asked:
                raise APIError(400, f"{where}: an answer without a question before it", param="messages")
            turns.append(Turn(asked, text))
            asked = ""
        else:
            raise APIError(400, f"{where}: role {role!r} is not served", param="messages")
    if not asked:
        raise APIError(400, "the last message must be the user's, with a text", param="messages")
    return asked, tuple(turns), system, videos


def _text_of(content: Any, videos: list[tuple[str, str]], where: str) -> str:
    """Return the text of a message; videos that it names are added to `videos`."""
    if isinstance(content, str):
        return content.strip()
    if not isinstance(content, list):
        raise APIError(400, f"{where}: content must be text or a list of parts", param="messages")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get(kind) if isinstance(part, dict) and isinstance(kind, str) else None
        if kind == "text" and isinstance(value, str):
            texts.append(value)
        elif kind == "video_url":
            url = value.get("url") if isinstance(value, dict) else value
            if not isinstance(url, str):
                raise APIError(400, f"{where}: a video_url is an object with a url", param="messages")
            videos.append(("url", url))
        elif kind == "file" and isinstance(value, dict) and isinstance(value.get("file_id"), str):
            videos.append(("file", value["file_id"]))
        else:
            raise APIError(400, f"{where}: a part of type {kind!r} is not served", param="messages")
    return " ".join(texts).strip()


@dataclass(frozen=True)
class Reply:
    """An answer with what is told of its memories: `covers` are the seconds of each, by id.

    `system`: where the system text of the request stands, if it has one. `replica`: which one answered, of several.
    """

    answer: Answer
    covers: dict[str, tuple[float, float]]
    complete: bool
    why: tuple[float, ...] = ()
    detail: bool = False
    system: str | None = None
    replica: str | None = None

    @classmethod
    def of(cls, answer: Answer, memories: Mapping[str, Memory], question: ChatQuestion) -> Reply:
        """Return the reply of an answer to a question about memories, by their ids, as they were asked."""
        covers = {name: (memory.chunks[0].start, memory.chunks[-1].end) for name, memory in memories.items()}
        complete = all(memory.complete for memory in memories.values())
        same = all(memory.system == question.system for memory in memories.values())
        place = ("before the video" if same else "before the question") if question.system else None
        return cls(answer, covers, complete, question.options.why, question.detail, place)

    def usage(self) -> dict[str, Any]:
        """Return OpenAI's usage: the memory's KVs are the prompt's cached part."""
        cost = self.answer.cost
        cached = cost.tokens + cost.dialogue_tokens
        prompt = cached + cost.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": cost.new_tokens,
            "total_tokens": prompt + cost.new_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def logprobs(self) -> dict[str, Any] | None:
        """Return OpenAI's logprobs of all tokens, or None where they were not asked for."""

        def token(one: TokenLogprob) -> dict[str, Any]:
            whole = "\ufffd" not in one.text  # else it is a part of a character
            return {"token": one.text, "logprob": one.logprob, "bytes": list(one.text.encode()) if whole else None}

        told = self.answer.logprobs
        if told is None:
            return None
        return {"content": [{**token(one), "top_logprobs": [token(top) for top in one.top]} for one in told]}

    def x2l(self) -> dict[str, Any]:
        """Return what is ours of a response."""
        answer, ranks = self.answer, score_ranks(self.answer.evidence)
        reasons = [answer.why(at) for at in self.why]
        about = {
            **({} if self.replica is None else {"replica": self.replica}),
            "memory": next(iter(self.covers)) if len(self.covers) == 1 else None,
            "memories": list(self.covers),
            "system": self.system,
            "incomplete": not self.complete,
            "covers": list(*self.covers.values()) if len(self.covers) == 1 else self.covers,
        }
        if self.detail:
            why = [{**asdict(reason), "lines": reason.lines()} for reason in reasons]
            return {**about, "answer": answer.to_dict(), "why": why}
        return {
            **about,
            "evidence": [{**asdict(moment), "rank": rank} for moment, rank in zip(answer.evidence, ranks, strict=True)],
            "cost": asdict(answer.cost),
            "entropy": None if answer.confidence is None else answer.confidence.entropy,
            "confidence": None if answer.confidence is None else asdict(answer.confidence),
            "draft": answer.draft,
            "choices": [asdict(choice) for choice in answer.choices],
            "steps": len(answer.steps),
            "why": [{"seconds": reason.seconds, "lines": reason.lines()} for reason in reasons],
        }


class Completion:
    """The id, time and model that all objects of one response carry."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, reply: Reply) -> dict[str, Any]:
        """Return a response that is not streamed."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.answer.text, "refusal": None}
        if reply.answer.thought:
            message["reasoning_content"] = reply.answer.thought
        choice = {"index": 0, "message": message, "logprobs": reply.logprobs(), "finish_reason": reply.answer.finish}
        head = {**self._head, "object": "chat.completion"}
        return {**head, "choices": [choice], "usage": reply.usage(), "x2l": reply.x2l()}

    def chunk(self, delta: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """Return a piece of a stream."""
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": None, **more}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def last_chunk(self, reply: Reply) -> dict[str, Any]:
        """Return the piece that ends the answer: it tells how, the log likelihoods of all tokens, and what is ours."""
        ended = self.chunk({}, finish_reason=reply.answer.finish, logprobs=reply.logprobs())
        return {**ended, "x2l": reply.x2l()}

    def usage_chunk(self, reply: Reply) -> dict[str, Any]:
        """Return the piece of a stream that tells the usage."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": reply.usage()}
