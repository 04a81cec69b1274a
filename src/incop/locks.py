"""A lock on a folder: one process at a time writes to it, and a second one is told who does."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from incop.errors import InputError

try:
    import fcntl
except ImportError:  # not a POSIX system: nobody is kept out there
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "Lock"]

LOCK = ".lock"
NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # a link out of the folder is not followed
AGAIN = 0.05  # seconds between two attempts of one who waits


class Lock:
    """Held while a process writes to a folder; the system lets go of it when the process ends, however it ends.

    Args:
        folder: the folder, which must exist.
        patience: seconds to wait for a process that is about to let go.

    Raises:
        InputError: another process holds it, or the folder cannot be written to; nothing has been changed.

    Example:
        >>> import tempfile
        >>> from incop.locks import Lock
        >>> with tempfile.TemporaryDirectory() as folder, Lock(folder):
        ...     try:
        ...         Lock(folder).__enter__()
        ...     except ValueError as error:
        ...         print("is in use by process" in str(error))
        True
    """

    def __init__(self, folder: str | Path, *, patience: float = 0.0) -> None:
        self.file = Path(folder) / LOCK
        self.patience = patience
        self._handle: int | None = None

    def __enter__(self) -> Self:
        until = time.monotonic() + self.patience
        while not self._taken():
            if time.monotonic() >= until:
                raise InputError(
                    f"the folder {str(self.file.parent)!r} is in use by {self._holder()}: wait until it has ended, or stop it"
                )
            time.sleep(AGAIN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):  # the folder may be gone
                self.file.unlink()
            os.close(self._handle)
            self._handle = None

    def _taken(self) -> bool:
        try:
            handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | NO_LINK, 0o644)
        except OSError as error:
            why = error.strerror or error
            raise InputError(f"the folder {str(self.file.parent)!r} cannot be written to: {why}") from error
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:
            pass  # a file system without locks: better to work there than not
        if not self._is(handle):  # its last holder has removed it since it was opened
            os.close(handle)
            return False
        holder = {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with contextlib.suppress(OSError):  # on a full disk nobody reads who holds it, but it is held
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(holder).encode(), 0)
        self._handle = handle
        return True

    def _is(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.file))
        except OSError:
            return False

    def _holder(self) -> str:
        try:
            found: Any = json.loads(self.file.read_text(encoding="utf-8"))
            return f"process {found['pid']} on {found['host']} since {found['since']}"
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"
