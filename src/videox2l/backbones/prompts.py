"""The prompt around a video: chat template, cut where the video stands, and the markup of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from videox2l.errors import ModelError, SettingsError
from videox2l.types import Turn, VideoInfo

_ANSWER = "<the answer ends here>"


def messages(
    question: str, history: Sequence[Turn], videos: int = 1, system: str | None = None
) -> list[dict[str, Any]]:
    """Return the dialogue as chat messages; the videos stand in the first of the user's."""
    questions = [turn.question for turn in history] + [question]
    chat: list[dict[str, Any]] = []
    if system is not None:
        chat.append({"role": "system", "content": [{"type": "text", "text": system}]})
    for index, text in enumerate(questions):
        content: list[dict[str, str]] = [{"type": "text", "text": text}]
        if index == 0:
            content = [*({"type": "video"} for _ in range(videos)), *content]
        chat.append({"role": "user", "content": content})
        if index < len(history):
            chat.append({"role": "assistant", "content": [{"type": "text", "text": history[index].answer}]})
    return chat


class ChatPrompt:
    """Renders prompts with a tokenizer's chat template and cuts them at the video placeholder."""

    def __init__(self, tokenizer: Any, placeholder: str, template: str | None = None) -> None:
        if not tokenizer.chat_template and template is None:
            raise ModelError("the model's tokenizer has no chat template: set tokenizer.chat_template")
        self.tokenizer = tokenizer
        self.placeholder = placeholder
        self.template = template
        self.special = sorted({*tokenizer.all_special_tokens, placeholder})
        self.control = sorted(set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab()) | {placeholder})

    def cut(self, question: str, history: Sequence[Turn] = (), system: str | None = None) -> tuple[str, str]:
        """Return the prompt before and after the video placeholder.

        Raises SettingsError where the chat template does not write the system text before the video.
        """
        for text in (question, *(turn.question for turn in history)):
            self.check_text(text)
        for turn in history:
            self.check_text(turn.answer, "an answer", self.special)
        if system is not None:
            self.check_text(system, "the system text")
        text = self._render(messages(question, history, 1, system))
        before, found, after = text.partition(self.placeholder)
        if not found or self.placeholder in after:
            raise ModelError(
                f"the chat template must render one '{self.placeholder}' for a video, it rendered: {text!r}"
            )
        if system is not None and system.strip() not in before:
            raise SettingsError(
                "the model's chat template has no place for a system text before the video: leave it out, and write it "
                "into the question or a prompt template"
            )
        return before, after

    def before(self, markup: VideoMarkup, facts: VideoInfo) -> str:
        """Return the prompt before the first group of frames."""
        return self.cut("What happens?", (), facts.system)[0] + markup.intro(facts)

    def prefix_ids(self, markup: VideoMarkup, facts: VideoInfo) -> list[int]:
        """Return the token ids of the prompt before the first group of frames."""
        before = self.before(markup, facts)
        if markup.opening(0, [0.0]):
            return self.opening_ids(before)
        ids = self.opening_ids(before + markup.pad)
        pad = self.tokenizer.convert_tokens_to_ids(markup.pad)
        return ids[: len(ids) - 1 - ids[::-1].index(pad)]  # behind it may stand what a tokenizer adds

    def group_words(self, markup: VideoMarkup, times: Sequence[Sequence[float]], facts: VideoInfo) -> list[int]:
        """Return how many tokens of words each group of a video has; `times`: the pts of each one's frames."""
        ids = self.ids(markup.groups(0, times, [1] * len(times)), self.before(markup, facts))
        pad = self.tokenizer.convert_tokens_to_ids(markup.pad)
        pads = [at for at, token in enumerate(ids) if token == pad]
        behind = len(ids) - 1 - pads[-1]
        return [at - last - 1 + behind * (group == 0) for group, (last, at) in enumerate(pairwise([-1, *pads]))]

    def between(self, videos: int) -> list[str]:
        """Return what the template puts between so many videos and the next of them; around them is what is always.

        Raises ModelError for a template that renders several videos in another way.
        """
        question = "What happens?"
        text = self._render(messages(question, (), videos))
        first, *between, last = text.split(self.placeholder)
        if len(between) != videos - 1 or (first, last) != self.cut(question):
            raise ModelError(
                f"the chat template does not put {videos} videos one behind the other, it rendered: {text!r}; ask "
                "about one video at a time"
            )
        return between

    def follow_up(self, question: str) -> str:
        """Return what stands between the end of an answer and the answer to the next question.

        Raises ModelError where the chat template leaves out earlier answers.
        """
        self.check_text(question)
        text = self._render(messages(question, (Turn("-", _ANSWER),)))
        _, found, after = text.partition(_ANSWER)
        if not found:
            raise ModelError(f"the chat template must render earlier answers, it rendered: {text!r}")
        return str(after)

    def header(self) -> tuple[str, str]:
        """Return what stands between a video and an answer, and the space that is put before the answer, if any."""
        before, header = self.cut("What happens?")
        whole = self._render(messages("What happens?", (Turn("What happens?", _ANSWER),)))
        begun, found, _ = whole.partition(before + self.placeholder + header)[2].partition(_ANSWER)
        return header, begun if found and not begun.strip() else ""

    def _render(self, chat: list[dict[str, Any]]) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat, chat_template=self.template, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # a template is a program of its own
            line = getattr(error, "lineno", None)
            where = "" if line is None else f" in line {line}"
            raise ModelError(
                f"the model's chat template fails{where} for a question about a video ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no message'}): it may be the one of the text model; "
                "the processor's belongs into chat_template.jinja"
            ) from error

    def check_text(self, text: str, what: str = "the question", control: Sequence[str] | None = None) -> None:
        """Raise SettingsError for text that is empty or holds control tokens; answers may hold added ones."""
        if not isinstance(text, str):
            raise SettingsError(f"{what} must be text, got {text!r}")
        if not text.strip():
            raise SettingsError(f"{what} is empty: ask something")
        for token in self.control if control is None else control:
            if token in text:
                raise SettingsError(f"the text holds the control token {token!r}: leave it out")

    def ids(self, text: str, context: str = "") -> list[int]:
        """Return the token ids of a piece of rendered prompt as they are behind `context`; nothing is added.

        Raises ModelError where the tokenizer joins the end of the context with the text: they cannot be cut there.
        """
        if not context:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        before, whole = self.ids(context), self.ids(context + text)
        if whole[: len(before)] != before:
            raise ModelError(f"the tokenizer joins {context[-12:]!r} and {text[:12]!r}: the prompt cannot be cut there")
        return whole[len(before) :]

    def opening_ids(self, text: str) -> list[int]:
        """Return the token ids of the beginning of a prompt: with the token for it, if the tokenizer adds one."""
        plain = self.ids(text)
        bos = self.tokenizer.bos_token
        if bos is not None and text.startswith(bos):
            return plain
        whole = list(self.tokenizer(text)["input_ids"])
        added = len(whole) - len(plain)
        while added and whole[added : added + len(plain)] != plain:  # tokens may be added at the end as well
            added -= 1
        return whole[:added] + plain


@dataclass(frozen=True)
class VideoMarkup:
    """The words around a video's visual tokens; by default there are none.

    `placeholder` is what the chat template renders for a video, `pad` the token that stands for one visual token. A
    group of frames is written as `opening`, its pads, `close`; the video as `intro`, its groups, `outro`. `pad` and
    `close` are control tokens, so that no word is joined over the end of a group.
    """

    placeholder: str
    pad: str
    close: str = ""
    outro: str = ""

    def intro(self, facts: VideoInfo) -> str:
        """Return what stands before the first group of frames."""
        return ""

    def opening(self, group: int, times: Sequence[float]) -> str:
        """Return what stands before a group: its number in the video, from 0, and the pts (seconds) of its frames."""
        return ""

    def groups(self, first: int, times: Sequence[Sequence[float]], pads: Sequence[int]) -> str:
        """Return a run of groups, the first of number `first`: the pts of each one's frames, and its visual tokens."""
        return "".join(
            self.opening(first + i, pts) + self.pad * count + self.close
            for i, (pts, count) in enumerate(zip(times, pads, strict=True))
        )

    def video(self, times: Sequence[Sequence[float]], facts: VideoInfo, pads: Sequence[int]) -> str:
        """Return a whole video, as it stands in a prompt."""
        return self.intro(facts) + self.groups(0, times, pads) + self.outro
