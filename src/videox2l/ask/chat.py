"""A dialogue about one memory: follow-up questions see what was said, and nothing said is read twice."""

from __future__ import annotations

from typing import Unpack

import torch

from videox2l.ask.answer import Answer
from videox2l.ask.options import AskKeywords, resolve_options
from videox2l.ask.run import QuestionRun, joined_words, run_question
from videox2l.ask.view import LoadedView, View
from videox2l.engine.backbone import Backbone
from videox2l.errors import SettingsError
from videox2l.memory import DialogueKV, Memory
from videox2l.select import TimeRange
from videox2l.types import TextTokens, Turn

EARLIER = ("keep", "recompute")


class Chat:
    """A dialogue about a memory; made by `VideoX2L.chat`.

    All state of the dialogue is in here: other dialogues and stateless questions about the same memory are never
    changed by it. `turns` are the questions and answers so far.

    The text of a dialogue follows the video. With `earlier="keep"` the KVs of earlier turns are kept as they were
    computed, at their positions, and only a new turn is prefilled. As long as the plan stays the same that equals one
    pass over the whole dialogue. Where a new question has other chunks re-loaded, the video's part of the cache changes
    and earlier turns stay what they were: they saw the chunks that were re-loaded for them. `earlier="recompute"` reads
    the whole dialogue again for each question, on its own mix: slower with every turn, and what a stateless question
    with the same history gives.

    Selectors see the dialogue too: those that look at attention read a question behind the turns before it, those that
    compare words get its words first and those of the dialogue after them.
    """

    def __init__(self, backbone: Backbone, memory: Memory, earlier: str = "keep") -> None:
        if earlier not in EARLIER:
            raise SettingsError(f"earlier='{earlier}' is not known: use {' or '.join(EARLIER)}")
        self.memory = memory
        self.earlier = earlier
        self.turns: tuple[Turn, ...] = ()
        self._backbone = backbone
        self._read: TextTokens | None = None  # the text of the dialogue that has KVs
        self._unread: TextTokens | None = None  # the last token of an answer that was cut
        self._kept: DialogueKV | None = None
        self._laid: LoadedView | None = None

    def ask(
        self,
        question: str,
        *,
        as_of: float | None = None,
        within: TimeRange | None = None,
        **options: Unpack[AskKeywords],
    ) -> Answer:
        """Answer a question behind the turns so far, and remember both; options as of `VideoX2L.ask`.

        A question that fails leaves the dialogue as it was. Raises SettingsError.
        """
        wish = resolve_options(**options)
        view = View.of(self.memory, as_of, within, self._kept if self.earlier == "keep" else None)
        said = joined_words(question, self.turns)
        asking = QuestionRun(self._backbone, view, question, self._prompt, wish, said, self._laid)
        self._laid = None  # the cache is changed from here on
        answer = run_question(asking)
        self._remember(asking)
        self.turns = (*self.turns, Turn(question, answer.text))
        return answer

    def _prompt(self, question: str) -> TextTokens:
        """Return what has to be read for a question: all that stands behind what is kept."""
        if self._read is None:
            return self._backbone.suffix(question)
        parts = [self._read] if self.earlier == "recompute" else []
        parts += [self._unread] if self._unread is not None else []
        first, *others = [*parts, self._backbone.follow_up(question)]
        return first.then(*others)

    def _remember(self, asking: QuestionRun) -> None:
        assert asking.laid is not None
        mixed, writer = asking.laid.mixed, asking.writer
        before = asking.view.memory.dialogue
        written = torch.tensor(writer.ids, dtype=torch.long, device=asking.text.ids.device)
        told = TextTokens(written, self._backbone.embed(written))
        read, unread = (told.part(0, -1), told.part(-1)) if writer.unread is not None else (told, None)
        self._read = (
            asking.text.then(read) if before is None or self._read is None else self._read.then(asking.text, read)
        )
        self._unread = unread
        first = mixed.next_position - (0 if before is None else len(before))
        self._kept = DialogueKV(*mixed.cache.columns(mixed.offsets[-1]), first)
        self._laid = asking.laid
