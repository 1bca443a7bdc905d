"""What the API takes and gives, as its OpenAPI description tells it. Chat completions are in `chat`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator


class UploadRequest(BaseModel):
    """A file that is to come in pieces."""

    filename: str = Field(max_length=500)
    bytes: int = Field(ge=1, lt=1 << 60)
    purpose: str = Field("user_data", max_length=100)


class MemoryRequest(BaseModel):
    """A memory to be made: of an uploaded file or a URL, with the fields of IngestOptions."""

    file_id: str | None = None
    url: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class SubtitlesRequest(BaseModel):
    """Where subtitles are: a text (SRT, VTT), an upload (also a video with a track), or the memory's own video."""

    text: str | None = None
    file_id: str | None = None
    embedded: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> SubtitlesRequest:
        if sum(value is not None for value in (self.text, self.file_id, self.embedded)) != 1:
            raise ValueError("give one of text, file_id and embedded")
        return self


class ReportRequest(BaseModel):
    """Answers, each as `x2l.answer` of a response with `"detail": true`, and what is made of them.

    `format`: a page (html), or a list of their re-loaded moments.
    """

    answers: list[dict[str, Any]] = Field(min_length=1, max_length=1000)
    format: Literal["html", "srt", "vtt", "csv", "edl"] = "html"


class SeveralReportRequest(ReportRequest):
    """Answers about several memories, and the ids of these."""

    memories: list[str] = Field(min_length=1, max_length=1000)


class ErrorBody(BaseModel):
    """What is wrong: the parameter, if it is one, and a short code."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """An error, in OpenAI's shape."""

    error: ErrorBody


class FileReply(BaseModel):
    """A file, in OpenAI's shape; `status` is "uploading" or "processed"."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploading", "processed"]
    sha256: str | None


class ProgressReply(BaseModel):
    """How far an ingest is, in frames and seconds of the video, and the seconds that it will still take."""

    frames: int
    expected_frames: int | None
    reached: float
    seconds_left: float | None


class MemoryReply(BaseModel):
    """A memory; `covers` and all below it are there once a chunk is ingested."""

    id: str
    object: Literal["memory"]
    name: str
    created_at: int
    state: Literal["queued", "ingesting", "complete", "cancelled", "failed"]
    error: str | None
    file_id: str | None
    has_video: bool
    progress: ProgressReply
    chunks: int
    covers: tuple[float, float] | None = None
    duration: float | None = None
    levels: dict[str, float] | None = None
    tokens: int | None = None
    subtitles: int | None = None
    warnings: list[str] | None = None


class FileList(BaseModel):
    """Files, newest first."""

    object: Literal["list"]
    data: list[FileReply]
    has_more: bool


class MemoryList(BaseModel):
    """Memories, newest first."""

    object: Literal["list"]
    data: list[MemoryReply]


class DeletedReply(BaseModel):
    """Something that is no more."""

    id: str
    object: str
    deleted: bool


def content(kind: str, text: str, **more: Any) -> dict[str, Any]:
    """Return how OpenAPI describes a response that is no JSON of ours: its media type, and what it is."""
    return {"description": text, "content": {kind: {"schema": more or {"type": "string", "format": "binary"}}}}


REPORT_TYPES = {
    "html": "text/html",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "csv": "text/csv",
    "edl": "text/plain",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in (("4XX", "What is wrong with the request."), ("5XX", "The server cannot do it now."))
}

REPORT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": {kind: {"schema": {"type": "string"}} for kind in REPORT_TYPES.values()},
    }
}
EVENTS = {"type": "object", "properties": {"data": {"type": "string"}}}
CONTENT_RANGE = {
    "parameters": [
        {
            "name": "Content-Range",
            "in": "header",
            "required": True,
            "description": "Which bytes of the file these are; `bytes */N` sends none and asks how many are here.",
            "schema": {"type": "string", "pattern": r"^bytes (\d{1,18}-\d{1,18}|\*)/\d{1,18}$"},
        }
    ],
    "requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
}
SUBTITLES = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": SubtitlesRequest.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                }
            },
        },
    }
}
