"""A dialogue about one memory: follow-up questions see what was said, and nothing said is read twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch

from videox2l.ask.answer import Answer
from videox2l.ask.run import OnText, Outcome, QuestionRun, run_question
from videox2l.ask.view import LoadedView, View
from videox2l.engine.backbone import Backbone
from videox2l.errors import SettingsError
from videox2l.memory import DialogueKV, Memory
from videox2l.options import AskKeywords, AskOptions
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
        if not isinstance(earlier, str) or earlier not in EARLIER:
            raise SettingsError(f"earlier='{earlier}' is not known: use {' or '.join(EARLIER)}")
        self.memory = memory
        self.earlier = earlier
        self.turns: tuple[Turn, ...] = ()
        self._backbone = backbone
        self._read: TextTokens | None = None  # the text of the dialogue that has KVs
        self._unread: TextTokens | None = None  # the last token of an answer that was cut
        self._kept: DialogueKV | None = None
        self._loaded: LoadedView | None = None

    def ask(
        self,
        question: str,
        options: AskOptions | None = None,
        *,
        on_text: OnText | None = None,
        **keywords: Unpack[AskKeywords],
    ) -> Answer:
        """Answer a question behind the turns so far, and remember both; options as of `VideoX2L.ask`.

        A question that fails leaves the dialogue as it was. Raises SettingsError.
        """
        options = AskOptions.from_keywords(options, keywords)
        kept = self._kept if self.earlier == "keep" else None
        view = View.of(self.memory, options.as_of, options.within, kept, options.said)
        run = QuestionRun.of(self._backbone, view, question, options, history=self.turns, prompt=self._prompt)
        loaded, self._loaded = self._loaded, None  # the cache is changed from here on
        outcome = run_question(run, loaded, on_text)
        self._remember(run, outcome)
        answer = outcome.answer
        self.turns = (*self.turns, Turn(question, answer.text if answer.draft is None else answer.draft))
        return answer

    def _prompt(self, question: str, examples: Sequence[Turn]) -> TextTokens:
        """Return what has to be read for a question: all that stands behind what is kept; examples begin a dialogue."""
        if self._read is None:
            return self._backbone.suffix(question, examples, self.memory.system)
        parts = [self._read] if self.earlier == "recompute" else []
        parts += [self._unread] if self._unread is not None else []
        first, *others = [*parts, self._backbone.follow_up(question)]
        return first.then(*others)

    def _remember(self, run: QuestionRun, outcome: Outcome) -> None:
        layout, generator, prompt = outcome.reloaded.loaded.layout, outcome.generator, outcome.reloaded.prompt
        before = run.view.memory.dialogue
        ids = torch.tensor(generator.ids, dtype=torch.long, device=prompt.ids.device)
        reply = TextTokens(ids, self._backbone.embed(ids))
        read, unread = (reply.part(0, -1), reply.part(-1)) if generator.unread is not None else (reply, None)
        self._read = prompt.then(read) if before is None or self._read is None else self._read.then(prompt, read)
        self._unread = unread
        first = layout.next_position - (0 if before is None else len(before))
        self._kept = DialogueKV(*layout.cache.columns(layout.offsets[-1]), first)
        self._loaded = outcome.reloaded.loaded
