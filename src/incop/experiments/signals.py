"""Signals: the first ctrl-C or SIGTERM is noted, so that a step can be finished; the second ends the process's work at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; the sentence says how to go on.

    Args:
        sentence: for people.
        number: the signal's number; the process's exit status is 128 more.
    """

    def __init__(self, sentence: str, number: int = signal.SIGINT) -> None:
        super().__init__(sentence)
        self.status = 128 + number


class Signals:
    """While inside, a first ctrl-C or SIGTERM is noted, and a second raises `Interrupted` wherever the process stands.

    Outside the main thread, and for signals that the process was told to ignore, nothing is changed.

    Args:
        sentence: of what is raised; it says how to go on.
        at_once: raise at the first signal already.
    """

    def __init__(self, sentence: str, *, at_once: bool = False) -> None:
        self.sentence = sentence
        self.at_once = at_once
        self.noted: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted is None and not self.at_once:
            self.noted = number
            return
        self.noted = number
        raise Interrupted(self.sentence, number)
