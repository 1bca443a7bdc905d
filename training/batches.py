"""Batches: one video and many questions in one sequence, in the words and positions of the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.geometry import TOKENS_PER_GRID, video_positions
from videox2l.demo.questions import WorldQuestion
from videox2l.demo.tokens import build_tokenizer

Conversation = Sequence[WorldQuestion]
"""One or more turns about one video."""


@dataclass
class Batch:
    """Sequences `prefix, video, conversation, conversation, ...`; conversations do not see each other."""

    ids: Tensor  # (b, s); video_pad where a visual token stands
    positions: Tensor  # (3, b, s)
    mask: Tensor  # (b, 1, t, s) 0 where one of the t tokens after the video sees a token, else -inf
    labels: Tensor  # (b, s) the next token where it is part of an answer, else -100
    answer: Tensor  # (b, s) number of the answer that a label belongs to, else -1
    kinds: list[str]  # the kind of every answer
    video: slice  # where the visual tokens stand


class Packer:
    """Turns questions into batches; knows the tokens that stand around them."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        self.tokenizer = build_tokenizer(more)
        token = self.tokenizer.convert_tokens_to_ids
        self.prefix = token(["<|im_start|>", "user", "<|vision_start|>"])
        self.pad, self.video_pad, self.unseen = token(["<|endoftext|>", "<|video_pad|>", "<|unk|>"])
        self.vision_end, self.end = token(["<|vision_end|>", "<|im_end|>"])
        self.user, self.assistant = token(["<|im_start|>", "user"]), token(["<|im_start|>", "assistant"])
        self.cache: dict[str, list[int]] = {}

    def words(self, text: str) -> list[int]:
        """Return the tokens of some words."""
        if text not in self.cache:
            self.cache[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.cache[text]

    def conversation(self, turns: Conversation) -> tuple[list[int], list[int]]:
        """Return the tokens after the video, and for each the number of the turn it answers, or -1."""
        ids, turn = [self.vision_end], [-1]
        for i, question in enumerate(turns):
            asked = (self.user if i else []) + self.words(question.question) + [self.end] + self.assistant
            said = [*self.words(question.answer), self.end]
            ids += asked + said
            turn += [-1] * len(asked) + [i] * len(said)
        return ids, turn

    def pack(self, grids: int, steps: Sequence[float], conversations: Sequence[Sequence[Conversation]]) -> Batch:
        """Make a batch of videos of `grids` grids each, `steps` apart in time, with their conversations."""
        rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
        kinds: list[str] = []
        visual = grids * TOKENS_PER_GRID
        head = len(self.prefix) + visual
        for step, talks in zip(steps, conversations, strict=True):
            ids: list[int] = []
            places: list[int] = []
            segments: list[int] = []
            answers: list[int] = []
            after = len(self.prefix) + max(int((grids - 1) * step), 2) + 1
            for segment, turns in enumerate(talks):
                tokens, turn = self.conversation(turns)
                ids += tokens
                places += range(after, after + len(tokens))
                segments += [segment + 1] * len(tokens)
                answers += [len(kinds) + t if t >= 0 else -1 for t in turn]
                kinds += [question.kind for question in turns]
            rows.append((ids, places, segments, answers))
        longest = max(len(row[0]) for row in rows)
        b, s = len(rows), head + longest
        ids_ = torch.full((b, s), self.pad)
        ids_[:, : len(self.prefix)] = torch.tensor(self.prefix)
        ids_[:, len(self.prefix) : head] = self.video_pad
        positions, segment_ = torch.zeros(3, b, s, dtype=torch.long), torch.full((b, s), -1)
        segment_[:, :head] = 0
        labels, answer = torch.full((b, s), -100), torch.full((b, s), -1)
        for i, ((ids, places, segments, answers), step) in enumerate(zip(rows, steps, strict=True)):
            here = slice(head, head + len(ids))
            ids_[i, here], segment_[i, here] = torch.tensor(ids), torch.tensor(segments)
            positions[:, i, : len(self.prefix)] = torch.arange(len(self.prefix))
            positions[:, i, len(self.prefix) : head] = video_positions(grids, step, len(self.prefix))
            positions[:, i, here] = torch.tensor(places)
            answer[i, head - 1 : head - 1 + len(ids)] = torch.tensor(answers)
        labels[:, :-1] = torch.where(answer[:, :-1] >= 0, ids_[:, 1:], -100)
        causal = torch.ones(s - head, s, dtype=torch.bool).tril(head)
        same = (segment_[:, head:, None] == segment_[:, None, :]) | (segment_[:, None, :] == 0)
        mask = torch.zeros(b, 1, s - head, s).masked_fill_(~(same & causal)[:, None], float("-inf"))
        return Batch(ids_, positions, mask, labels, answer, kinds, slice(len(self.prefix), head))
