"""One family of errors: each says what happened, the likely cause and the remedy, with the user's own values."""

from __future__ import annotations

import difflib
import functools
import reprlib
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

__all__ = ["Diverged", "IncopError", "InputError", "MissingExtra", "TrainingError"]

P = ParamSpec("P")
T = TypeVar("T")

SHOWN_NAME = 200  # signs of a name that are compared: a longer one is near to nothing
SHOWN = 30  # names in a message: a network may have hundreds


class IncopError(Exception):
    """Anything incop refuses or cannot go on with; the command line prints it as one sentence."""


class InputError(IncopError, ValueError):
    """Something the user gave cannot be used; known before it costs anything (exit status 2)."""


class TrainingError(IncopError, RuntimeError):
    """Training or measuring went wrong on the way (exit status 1): a loss not finite, a rewind not exact, disk full."""


class Diverged(TrainingError):
    """Training has left the finite numbers: a loss, a gradient, a weight or a flow is NaN or infinite.

    A search with `on_divergence="retry"` begins the level again with a smaller learning rate when its trainer raises this.

    Args:
        what: what is not finite, and where.
        remedy: what to do about it.
    """

    def __init__(
        self,
        what: str,
        remedy: str = "training diverged; lower the learning rate, or check the data for extreme values",
    ) -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}: {remedy}")

    def __reduce__(self) -> tuple[type[Diverged], tuple[str, str]]:
        """Pickle by the parts, so that a worker process can hand the error on."""
        return type(self), (self.what, self.remedy)


class MissingExtra(IncopError, ImportError):
    """An optional package is absent; the message names the extra that brings it (exit status 2)."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.parts = (package, extra, purpose)
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: pip install 'incop[{extra}]'"
        )

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str, str]]:
        """Pickle by the parts, so that a worker process can hand the error on."""
        return type(self), self.parts


def quoted(value: object, most: int = 120) -> str:
    """Return a value of a stranger's file for a message: quoted, on one line, and never long or deep."""
    form = reprlib.Repr()
    form.maxlevel, form.maxstring, form.maxother, form.maxlong = 5, most, most, most
    try:
        return form.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return f"a {type(value).__name__} too long to show"


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return "did you mean …? " with the choice nearest to a name; empty when none is near."""
    lower = {str(choice).lower(): str(choice) for choice in choices}
    near = difflib.get_close_matches(str(name)[:SHOWN_NAME].lower(), lower, n=1, cutoff=0.6)
    return f"did you mean {lower[near[0]]!r}? " if near else ""


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """An error for a name that is not among the choices, with the nearest one suggested.

    Args:
        kind: what the name should have named, in the singular ("model", "plan key").
        name: what the user gave.
        choices: every valid name.
    """
    known = [str(choice) for choice in choices]
    shown = ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
    return InputError(f"unknown {kind} {quoted(name)}: {nearest(name, known)}(known: {shown or 'none'})")


def refuse(problems: Iterable[str], source: str = "") -> None:
    """Raise one error that lists all problems; none at all is no error.

    Args:
        problems: a sentence each; the same one twice counts once.
        source: the file they are in, if any.
    """
    if found := "; ".join(dict.fromkeys(problems)):
        raise InputError(f"{source}: {found}" if source else found)


def renamed(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Have a function refuse arguments by names they no longer have, and say the new one."""

    def refusing(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in names.keys() & kwargs.keys():
                raise InputError(f"{name}= is now called {names[name]}=")
            return function(*args, **kwargs)

        return called

    return refusing
