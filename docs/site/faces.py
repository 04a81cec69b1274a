"""The public names of incop, face by face, read from the source without importing it: name, home, first line."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"

# The packages and plain modules that a user imports from, in the order of the reference. All names of their `__all__` are
# public, no others are; `incop.cli` is described by cli.md.
FACES = (
    "incop",
    "incop.records",
    "incop.flow",
    "incop.pruning",
    "incop.stopping",
    "incop.errors",
    "incop.rundir",
    "incop.checkpoint_files",
    "incop.flat_state",
    "incop.experiments.datasets",
    "incop.methods",
    "incop.experiments.models",
    "incop.export",
    "incop.reports",
    "incop.integrations.hugging_face",
    "incop.integrations.lightning",
    "incop.integrations.trackers",
)
LONGEST = 300  # signs of a constant's value


@dataclass(frozen=True)
class Name:
    """A public name: where it is documented and defined, the first line it says of itself, and of a constant its value."""

    path: str
    home: str
    line: str
    value: str = ""

    @property
    def file(self) -> Path:
        return file_of(self.home.rpartition(".")[0])


@dataclass(frozen=True)
class Face:
    """A page of the reference: a package or module with its public names."""

    module: str
    line: str
    names: tuple[Name, ...]

    @property
    def page(self) -> str:
        return f"docs/reference/{self.module}.md"


def file_of(module: str) -> Path:
    stem = SOURCE.joinpath(*module.split("."))
    return stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(file_of(module).read_text(encoding="utf-8"))


def exported(module: str) -> list[str]:
    """What the module's `__all__` lists, in its order."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                return [str(name) for name in ast.literal_eval(node.value)]
    return []


def first_line(documented: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return (ast.get_docstring(documented) or "").partition("\n\n")[0].replace("\n", " ")


def definition(module: str, name: str) -> tuple[str, ast.AST | None]:
    """The path at which a name is defined, followed through imports, and what defines it there."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name and node in tree(module).body:
            return f"{module}.{name}", node
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("incop"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    if file_of(f"{node.module}.{alias.name}").exists():
                        return f"{node.module}.{alias.name}", tree(f"{node.module}.{alias.name}")
                    return definition(str(node.module), alias.name)
    return f"{module}.{name}", None


def value(path: str) -> str:
    """The assignment that makes a constant, cut where it is long; of a tuple of them, its own part."""
    module, _, name = path.rpartition(".")
    for node in tree(module).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                parts = (
                    zip(target.elts, node.value.elts, strict=True)
                    if isinstance(target, ast.Tuple)
                    else [(target, node.value)]
                )
                for part, said in parts:
                    if isinstance(part, ast.Name) and part.id == name:
                        text = f"{name} = {ast.unparse(said)}"
                        return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
    return ""


@cache
def faces() -> tuple[Face, ...]:
    """All faces; a thing that several offer stands in the first of them."""
    found, seen = [], set(FACES)
    for module in FACES:
        names = []
        for name in exported(module):
            path, node = definition(module, name)
            if path not in seen:
                seen.add(path)
                line = first_line(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else ""
                names.append(Name(f"{module}.{name}", path, line, "" if line else value(path)))
        found.append(Face(module, first_line(tree(module)), tuple(names)))
    return tuple(found)


def homes() -> dict[str, Name]:
    """Where each thing is documented, by the path at which it is defined."""
    return {name.home: name for face in faces() for name in face.names}
