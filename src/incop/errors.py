"""One family of errors: each says what happened, the likely cause and the remedy, with the user's own values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["IncopError", "InputError", "MissingExtra", "TrainingError", "unknown"]


SHOWN = 30  # names in a message: a network may have hundreds


class IncopError(Exception):
    """Anything incop refuses or cannot go on with; the command line prints it as one sentence."""


class InputError(IncopError, ValueError):
    """Something the user gave cannot be used; known before it costs anything (exit status 2)."""


class TrainingError(IncopError, RuntimeError):
    """Training or measuring went wrong on the way (exit status 1): a loss not finite, a rewind not exact, disk full."""


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


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """An error for a name that is not among the choices, with the nearest one suggested.

    Args:
        kind: what the name should have named, in the singular ("model", "plan key").
        name: what the user gave.
        choices: every valid name.

    Returns:
        The error, for the caller to raise.

    Example:
        >>> from incop.errors import unknown
        >>> print(unknown("model", "lenet5", ["lenet-5", "vgg-16"]))
        unknown model 'lenet5': did you mean 'lenet-5'? (known: lenet-5, vgg-16)
    """
    known = [str(choice) for choice in choices]
    lower = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.6)
    hint = f"did you mean {lower[near[0]]!r}? " if near else ""
    shown = ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
    return InputError(f"unknown {kind} {name!r}: {hint}(known: {shown or 'none'})")
