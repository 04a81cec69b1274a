"""Offload: copies of a network that need not lie where it is trained: in the CPU's memory, or on the disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from incop.errors import InputError, TrainingError


class Offload:
    """Where copies of a network's tensors are kept.

    Args:
        to: None: beside the tensors, on their device; "cpu": in the CPU's memory; a folder, as `Path`: in files there, which go
            when nobody holds the copy any more, and at the latest with the process (one ended at once leaves its hidden folder).
    """

    def __init__(self, to: str | Path | None = None) -> None:
        if isinstance(to, str) and to != "cpu":
            raise InputError(f"offload={to!r}: give 'cpu', or a folder as pathlib.Path({to!r})")
        if isinstance(to, Path) and to.exists() and not to.is_dir():
            raise InputError(f"offload={str(to)!r} is a file: give a folder")
        self.to = to
        self._folder: _Folder | None = None

    def copy(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return copies that training cannot reach."""
        if isinstance(self.to, Path):
            return self._written(self.to, tensors)
        if self.to == "cpu":
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def _written(self, folder: Path, tensors: Mapping[str, Tensor]) -> _File:
        try:
            if self._folder is None:
                self._folder = _Folder(folder)
            handle, name = tempfile.mkstemp(dir=self._folder.path, suffix=".safetensors")
            open(handle, "rb").close()
            # a tied weight has two names and one storage, which a file must not
            held: dict[int, str] = {}
            names = {key: held.setdefault(_place(tensor), key) for key, tensor in tensors.items()}
            save_file({key: tensors[key].detach().contiguous() for key in held.values()}, name)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"a copy of the network cannot be written to {str(folder)!r}: {error}") from error
        return _File(Path(name), names, {key: tensor.device for key, tensor in tensors.items()}, self._folder)


def _place(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.numel() else id(tensor)


class _Folder:
    """A folder that goes with the last who holds it, and at the latest with the process."""

    def __init__(self, within: Path) -> None:
        self.path = tempfile.mkdtemp(dir=within, prefix=".offload.")
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class _File(Mapping[str, Tensor]):
    """Tensors in a file; each is read when it is asked for."""

    def __init__(
        self, file: Path, names: Mapping[str, str], devices: Mapping[str, torch.device], folder: _Folder
    ) -> None:
        self._file = file
        self._names = dict(names)
        self._devices = dict(devices)
        self._folder = folder  # it goes when the last of its files does
        self._gone = weakref.finalize(self, file.unlink, missing_ok=True)

    def __getitem__(self, name: str) -> Tensor:
        key = self._names[name]
        try:
            with safe_open(str(self._file), framework="pt") as content:
                return content.get_tensor(key).to(self._devices[name])  # type: ignore[no-any-return]
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"the copy of the network in {str(self._file)!r} cannot be read: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
