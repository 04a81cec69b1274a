"""A lock on a folder: one process at a time writes to it, and a second one is told who does, on this host or another."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from incop.errors import InputError, TrainingError

try:
    import fcntl
except ImportError:  # not a POSIX system: nobody is kept out there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # a link out of the folder is not followed
AGAIN = 0.05  # seconds between two attempts of one who waits
BEAT = 5.0  # seconds between two signs of life of a holder: it touches the file
STALE = 60.0  # seconds after which a holder on another host that gave no sign is taken for dead
SETTLE = 2.0  # seconds in which two hosts that take over from a dead third see which of them was last


class LockLost(TrainingError):
    """Another host has taken the folder, because this process stood still for too long."""


class Lock:
    """Held while a process writes to a folder; the system lets go of it when the process ends, however it ends.

    On one machine that is the system's own lock on a file. Between machines it may not be: not every network file system
    carries such locks. So the file also says who holds it and is touched every 5 seconds; what another machine has not touched
    for 60 seconds, by the file system's clock, is free.

    Args:
        folder: the folder, which must exist.
        patience: seconds to wait for a process that is about to let go.
    """

    def __init__(self, folder: str | Path, *, patience: float = 0.0) -> None:
        self.file = Path(folder) / LOCK
        self.patience = patience
        self.lost = False
        self._handle: int | None = None
        self._ended = threading.Event()
        self._beats: threading.Thread | None = None

    def __enter__(self) -> Self:
        until = time.monotonic() + self.patience
        while not self._taken():
            if time.monotonic() >= until:
                raise InputError(
                    f"the folder {str(self.file.parent)!r} is in use by {_said(self.file)}: wait until it has ended, or stop it"
                )
            time.sleep(AGAIN)
        self._ended.clear()
        self._beats = threading.Thread(target=self._beat, name="incop-lock", daemon=True)
        self._beats.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is None:
            return
        self._ended.set()
        if self._beats is not None:
            self._beats.join()
        if _is(self._handle, self.file):
            with contextlib.suppress(OSError):  # the folder may be gone
                self.file.unlink()
        os.close(self._handle)
        self._handle = None

    def check(self) -> None:
        """Refuse to go on when another machine has taken the folder: this process stood still for too long."""
        if self.lost:
            raise LockLost(
                f"the folder {str(self.file.parent)!r} was taken over by {_said(self.file)}, because this process gave no sign of "
                f"life for {STALE:.0f} seconds: it stood still, or its file system did; the other goes on with the run"
            )

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            assert self._handle is not None
            with contextlib.suppress(OSError):
                os.utime(self._handle)
            if _exists(self.file) and not _is(self._handle, self.file):
                self.lost = True
                return

    def _taken(self) -> bool:
        try:
            before = _opened(self.file, os.O_RDWR)
            with _closed(before):
                if before is not None and not _left(before, self.file):
                    return False
                return self._put(before)
        except OSError as error:
            why = error.strerror or error
            raise InputError(f"the folder {str(self.file.parent)!r} cannot be written to: {why}") from error

    def _put(self, before: int | None) -> bool:
        """Put a file of our own, locked already, in the place of one that was left, or where there is none."""
        mine = self.file.with_name(f"{LOCK}.new.{secrets.token_hex(4)}")
        handle = os.open(mine, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | NO_LINK, 0o644)
        held = False
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks: better to work there than not
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # on a full disk nobody reads who holds it, but it is held
                os.pwrite(handle, json.dumps(_about_us()).encode(), 0)
            held = _placed(mine, self.file, over=before is not None)
            if held and before is not None and _elsewhere(before, self.file) is not None:
                time.sleep(SETTLE)  # another host may have found it left at the same moment
                held = _is(handle, self.file)
        finally:
            with contextlib.suppress(OSError):
                mine.unlink(missing_ok=True)
            if not held:
                os.close(handle)
        self._handle = handle if held else None
        return held


def holder(folder: str | Path) -> str | None:
    """Say who holds a folder, on this host or another; None when nobody does."""
    file = Path(folder) / LOCK
    try:
        handle = _opened(file, os.O_RDONLY)
        with _closed(handle):
            if handle is None or _left(handle, file, share=True) or not _is(handle, file):
                return None
    except OSError:
        return None
    return _said(file)


@functools.cache
def _machine() -> str:
    """Return what tells machines apart: two containers of one have it in common, and the system's locks too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


def _about_us() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "machine": _machine(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _opened(file: Path, how: int) -> int | None:
    try:
        return os.open(file, how | os.O_CLOEXEC | NO_LINK)  # opening a file asks a network file system what is true now
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _closed(handle: int | None) -> Iterator[None]:
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _left(handle: int, file: Path, *, share: bool = False) -> bool:
    """Say whether nobody holds a lock's file any more; the system's own lock on it is ours then."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if share else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    if not _is(handle, file):  # its last holder has removed it since it was opened
        return False
    age = _elsewhere(handle, file)
    return age is None or age > STALE


def _elsewhere(handle: int, file: Path) -> float | None:
    """Return the age of the last sign of life where the holder is or was on another machine, else None."""
    try:
        found: Any = json.loads(os.pread(handle, 1000, 0))
        other = found["machine"] != _machine()
    except (OSError, ValueError, TypeError, KeyError):  # written to a full disk: by whom cannot be told
        return None
    return _clock(file.parent) - os.fstat(handle).st_mtime if other else None


def _clock(folder: Path) -> float:
    """Return the time by the clock of the file system, which is what signs of life have: hosts' clocks differ."""
    file = folder / f"{LOCK}.new.{secrets.token_hex(4)}"
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError:
        return time.time()
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        file.unlink(missing_ok=True)


def _placed(mine: Path, file: Path, *, over: bool) -> bool:
    """Put a file over one that was left or where there is none, whole from its first moment; False when another was faster."""
    if over:
        os.replace(mine, file)
        return True
    try:
        os.link(mine, file)  # holds between hosts too
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if _exists(file):
            return False
        os.replace(mine, file)
    return True


def _is(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except OSError:
        return False


def _exists(file: Path) -> bool:
    return os.path.lexists(file)


def _said(file: Path) -> str:
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
