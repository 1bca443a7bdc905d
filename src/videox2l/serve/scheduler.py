"""Who uses the model when: one thread, in which questions come before the next frame of an ingest."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any, Protocol

from videox2l.engine.decode import TokenGenerator, advance
from videox2l.serve.errors import APIError

Steps = Generator[TokenGenerator, None, Any]
"""A question on its way; it stops wherever the model has to read a token of its answer."""


class Pending(Protocol):
    """A question that was asked: `future` gets its result."""

    future: Future[Any]

    def cancel(self) -> None:
        """Give the question up."""


class CancelledError(Exception):
    """Nobody waits for this question any more."""


class Ticket:
    """A question that waits or runs, in `steps`. `future` gets its result; `cancel` ends it at its next token."""

    def __init__(self, steps: Callable[[Ticket], Steps], seconds: float) -> None:
        self.steps = steps(self)
        self.waits: TokenGenerator | None = None
        self.future: Future[Any] = Future()
        self.asked = time.monotonic()
        self.seconds = 0.0  # of the model's thread that it took so far
        self.deadline = self.asked + seconds
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Give the question up; it ends at its next token, or is not begun."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise CancelledError where nobody waits, and APIError where the time is over."""
        if self._cancelled.is_set():
            raise CancelledError
        if time.monotonic() > self.deadline:
            raise APIError(503, "the answer took longer than the server allows (--timeout)", code="timeout")


def check_queue(waiting: int, limit: int, pace: float) -> None:
    """Raise APIError 429 with Retry-After where too many questions wait; `pace` are the seconds of one."""
    if waiting >= limit:
        seconds = str(max(1, round(waiting * pace)))
        text = f"{waiting} questions wait already, which is the limit (--queue): try again in {seconds} s"
        raise APIError(429, text, code="queue_full", headers={"Retry-After": seconds})


class Scheduler:
    """One thread that owns the model.

    Questions wait in a queue for each client and are taken in turns, so that no client holds up another; up to `batch`
    of them decode together, and one that comes joins those that run. While there is none, ingests run one after the
    other, frame by frame: a question waits for one frame at most, or for the chunk that it completes. An ingest is an
    iterator; closing it stops it behind its last whole chunk.
    """

    def __init__(self, limit: int, seconds: float, batch: int) -> None:
        self.limit, self.seconds, self.batch = limit, seconds, batch
        self.pace = 1.0  # seconds of a question, a moving mean
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._ingests: deque[Iterator[object]] = deque()
        self._active: list[Ticket] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="x2l-model", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return sum(len(queue) for queue in self._queues.values())

    @property
    def ingesting(self) -> int:
        """How many ingests run or wait."""
        return len(self._ingests)

    def ask(self, client: str, steps: Callable[[Ticket], Steps]) -> Ticket:
        """Put a question in the queue of a client. Raises APIError 429 with Retry-After where too many wait."""
        ticket = Ticket(steps, self.seconds)
        with self._wake:
            if self._stopping:
                raise APIError(503, "the server is stopping", code="stopping", headers={"Retry-After": "10"})
            check_queue(self.waiting, self.limit, self.pace)
            self._queues.setdefault(client, deque()).append(ticket)
            self._wake.notify()
        return ticket

    def ingest(self, steps: Iterator[object]) -> None:
        """Put an ingest behind those that wait; it tells by itself how it goes, and raises nothing."""
        with self._wake:
            self._ingests.append(steps)
            self._wake.notify()

    def stop(self) -> None:
        """Finish the questions that run, refuse those that wait, close all ingests; return when the thread ended."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._stopping or self._active or self._queues or self._ingests):
                    self._wake.wait()
                if self._stopping and not self._active:
                    break
                while not self._stopping and len(self._active) < self.batch and (ticket := self._next()) is not None:
                    if ticket.future.set_running_or_notify_cancel():
                        self._active.append(ticket)
                steps = next(iter(self._ingests), None) if not self._active else None
            if self._active:
                self._answer()
            elif steps is not None and next(steps, self) is self:
                self._ingests.popleft()
        for queue in self._queues.values():
            for ticket in queue:
                if ticket.future.set_running_or_notify_cancel():
                    ticket.future.set_exception(APIError(503, "the server is stopping", code="stopping"))
        for steps in self._ingests:
            steps.close()  # type: ignore[attr-defined]  # a generator

    def _next(self) -> Ticket | None:
        """Take a question of the client whose turn it is."""
        if not self._queues:
            return None
        client, queue = self._queues.popitem(last=False)
        ticket = queue.popleft()
        if queue:
            self._queues[client] = queue
        return ticket

    def _answer(self) -> None:
        """Take every question that runs one token further."""
        begun, running = time.monotonic(), len(self._active)
        self._advance([ticket for ticket in self._active if ticket.waits is not None])
        for ticket in list(self._active):
            try:
                ticket.check()
                ticket.waits = next(ticket.steps)
            except StopIteration as end:
                self._end(ticket, end.value)
            except BaseException as error:
                self._end(ticket, error)
            ticket.seconds += (time.monotonic() - begun) / running

    def _advance(self, tickets: list[Ticket]) -> None:
        """Have the model read a token of each answer; where that fails, one by one, so that one fails alone."""
        if not tickets:
            return
        try:
            advance([ticket.waits for ticket in tickets if ticket.waits is not None])
        except Exception as error:
            if len(tickets) == 1:
                self._end(tickets[0], error)
            else:
                for ticket in tickets:
                    self._advance([ticket])

    def _end(self, ticket: Ticket, result: Any) -> None:
        self._active.remove(ticket)
        ticket.steps.close()
        if isinstance(result, BaseException):
            ticket.future.set_exception(result)
        else:
            ticket.future.set_result(result)
        self.pace += 0.2 * (ticket.seconds - self.pace)
