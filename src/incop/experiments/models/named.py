"""Models named by where they come from: a library's own, a Hugging Face folder, or a factory in the user's code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from incop.errors import InputError, quoted

LIBRARIES = ("torchvision", "timm", "hf")
FORMS = "torchvision:NAME, timm:NAME, hf:FOLDER_OR_NAME, FILE.py:FACTORY or MODULE:FACTORY"
TASKS = ("images", "text", "language")

Source = Literal["torchvision", "timm", "hf", "file", "module"]

# what factories call what they must know of the data, and what it is here
SIZES = {
    "classes": ("classes", "num_classes", "num_labels"),
    "channels": ("channels", "in_channels", "in_chans"),
    "size": ("size", "image_size", "img_size"),
}


@dataclass(frozen=True)
class Wanted:
    """What a network must take and give.

    Args:
        task: "images" (classify them), "text" (classify sequences of tokens) or "language" (predict the next token).
        classes: number of classes; of a language model it says nothing.
        channels: of an image.
        size: height and width of an image.
    """

    task: str
    classes: int
    channels: int = 0
    size: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        if self.task != "images":
            return f"sequences of tokens ({self.task}, {self.classes} classes)"
        return f"{self.channels}×{self.size[0]}×{self.size[1]} images of {self.classes} classes"


@dataclass(frozen=True)
class Named:
    """A model that is not one of incop's own.

    Args:
        source: "torchvision", "timm", "hf", "file" or "module".
        place: the file or module; of a library, nothing.
        name: what it is called there.
    """

    source: Source
    place: str
    name: str

    @property
    def is_code(self) -> bool:
        """Whether making it runs code that is neither incop's nor a known library's."""
        return self.source in ("file", "module")

    def absolute(self) -> str:
        """Return its name with paths in full, so that it means the same from any folder."""
        if self.source == "file":
            return f"{place(self.place).resolve()}:{self.name}"
        if self.source == "hf" and place(self.name).is_dir():
            return f"hf:{place(self.name).resolve()}"
        return f"{self.place or self.source}:{self.name}"


def parse(name: str) -> Named | None:
    """Read where a model comes from; None for a plain name, which is one of incop's own or of none.

    Nothing is imported or opened.
    """
    if not isinstance(name, str):
        raise InputError(f"the model must be a name, not {quoted(name)}")
    place, colon, rest = name.rpartition(":")
    library, _, within = name.partition(":")
    if colon and library in LIBRARIES:
        if not within.strip():
            raise InputError(f"the model {quoted(name)} names nothing of {library}: write {library}:NAME")
        return Named(library, "", within)  # type: ignore[arg-type]  # it is one of them
    if not colon:
        if name.endswith(".py"):
            raise InputError(
                f"the model {quoted(name)} is a file: name the function in it that makes the network, {name}:make"
            )
        return None
    if place.endswith(".py") and _dotted(rest):
        return Named("file", place, rest)
    if _dotted(place) and _dotted(rest):
        near = difflib.get_close_matches(place, LIBRARIES, n=1, cutoff=0.7)
        if near:  # nobody's package is called so, and importing it would only say that it is not there
            raise InputError(f"the model {quoted(name)} names no library: did you mean '{near[0]}:{rest}'?")
        return Named("module", place, rest)
    raise InputError(f"the model {quoted(name)} cannot be read: give a name of `incop list models`, {FORMS}")


def place(path: str) -> Path:
    """Return a path with the home in it written out."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{quoted(path)} begins with the home of an unknown user: write the path in full") from None


def refuse_arguments(name: str, arguments: Iterable[str], reserved: Iterable[str]) -> None:
    """Refuse arguments with which a library would read weights or code of its own choice."""
    for key in arguments:
        if key in reserved or key.startswith("_") or not key.isidentifier():
            raise InputError(
                f"the model {name} cannot be given {quoted(key)} by model_args: weights are named by --weights, code by "
                "FILE.py:FACTORY, and the rest is the library's own"
            )


def _dotted(text: str) -> bool:
    return bool(text) and all(part.isidentifier() for part in text.split("."))
