"""The user's code: the one place that runs it, only when told to, and says which file it was."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from incop.errors import InputError, nearest, quoted
from incop.experiments.models.named import SIZES, Named, Wanted, place


class _Fresh(importlib.machinery.SourceFileLoader):
    """Reads the source every time: a cached compilation is told from the source by whole seconds only."""

    def path_stats(self, path: str | bytes) -> Mapping[str, Any]:
        """Say that there is nothing by which a cache could be trusted; none is then read or written."""
        raise OSError(f"{path!r} is not cached")


def check(named: Named) -> None:
    """Refuse a file that is not there, is no Python, or defines nothing of that name; it is read, not run."""
    if named.source == "file" and not place(named.place).is_file():
        raise InputError(
            f"the model's file {quoted(named.place)} does not exist: check the path in {quoted(_said(named))}"
        )
    if named.source == "file":
        _check_defined(named, place(named.place))


def _check_defined(named: Named, path: Path) -> None:
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise InputError(f"the model's file {quoted(named.place)} cannot be read as Python: {error}") from error
    # what is defined at the top, or anywhere within an `if` or `try` there; a name that is imported may be any
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    imports = [a for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for a in node.names]
    names |= {(alias.asname or alias.name).partition(".")[0] for alias in imports}
    first = named.name.partition(".")[0]
    if first not in names and "*" not in names and "__getattr__" not in names:
        public = sorted(name for name in names if not name.startswith("_"))
        raise InputError(
            f"{named.place} has nothing called {first!r}: {nearest(first, public)}it is named as {_said(named)!r}"
        )


def factory(named: Named) -> tuple[Callable[..., Any], str]:
    """Run the file or import the module, and return what it calls by that name, with a line that says which code it was."""
    check(named)
    path = place(named.place).resolve() if named.source == "file" else None
    with _told(named), _findable(path.parent if path else Path.cwd()):
        module = importlib.import_module(named.place) if path is None else _loaded(path)
    found: Any = module
    for part in named.name.split("."):
        if not hasattr(found, part):
            near = nearest(part, [name for name in vars(found) if not name.startswith("_")])
            raise InputError(f"{named.place} has nothing called {part!r}: {near}the model is named {_said(named)!r}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{_said(named)} is a {type(found).__name__}: name a function or class that makes the network")
    file = path or Path(getattr(module, "__file__", None) or "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
    return found, f"{file} sha256 {digest}"


def run(make: Callable[..., Any], named: Named, wanted: Wanted, arguments: Mapping[str, Any]) -> nn.Module:
    """Call the factory with its arguments, and with classes, channels and size where it takes them."""
    beside = place(named.place).resolve().parent if named.source == "file" else Path.cwd()
    given = {**_fitting(make, wanted, arguments), **arguments}
    _check_call(make, named, given)
    with _told(named), _findable(beside):
        model = make(**given)
    if not isinstance(model, nn.Module):
        raise InputError(f"{_said(named)} made a {type(model).__name__}, not a torch.nn.Module: return the network")
    return model


def _said(named: Named) -> str:
    return f"{named.place}:{named.name}"


def _loaded(path: Path) -> ModuleType:
    name = f"incop_model_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Fresh(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _findable(folder: Path) -> Iterator[None]:
    """Let imports find what lies beside the code, as when it is run by itself."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


@contextmanager
def _told(named: Named) -> Iterator[None]:
    """Say in a sentence what the user's code threw, and where."""
    try:
        yield
    except ModuleNotFoundError as error:
        if named.source == "module" and error.name and (named.place + ".").startswith(error.name + "."):
            raise InputError(
                f"there is no module {error.name!r} for the model {_said(named)!r}: install it, or run from its folder"
            ) from error
        raise InputError(
            f"the model's code {_said(named)!r} needs the module {error.name!r}, which is not there"
        ) from error
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:300] or "no message"
        raise InputError(
            f"the model's code {_said(named)!r} failed with {type(error).__name__}: {said} ({where.filename}, line {where.lineno})"
        ) from error


def _fitting(make: Callable[..., Any], wanted: Wanted, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the factory takes of classes, channels and size by one of their names and was not given."""
    try:
        takes = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return {}
    named = [p.name for p in takes.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    found: dict[str, Any] = {}
    for what, words in SIZES.items():
        if not any(word in arguments for word in words):
            found |= {word: getattr(wanted, what) for word in words if word in named}
    return found


def _check_call(make: Callable[..., Any], named: Named, given: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):
        return
    takes = list(signature.parameters)
    free = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    strange = [] if free else [key for key in given if key not in takes]
    if strange:
        raise InputError(
            f"{_said(named)} takes no {strange[0]!r}: {nearest(strange[0], takes)}(it takes {', '.join(takes) or 'nothing'})"
        )
    try:
        signature.bind(**given)
    except TypeError as error:
        raise InputError(
            f"{_said(named)} cannot be called with {', '.join(given) or 'nothing'}: {error}; give it by model_args"
        ) from None
