"""No file of the package imports itself by way of others: not at its top, not inside functions, not for its types alone."""

import ast
from graphlib import CycleError, TopologicalSorter

from test_rooms import SOURCE

FILES = {
    ".".join(("incop", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in SOURCE.rglob("*.py")
}


def imports(source, modules):
    """The files that a file's import statements name, wherever these stand.

    `from incop.flow import Flow` names the package's face, `from incop.flow import meter` the file `incop.flow.meter`. That Python
    runs a package's face before its files is no import of the file's own: a face takes names from its files, never the other way.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from parts & modules
            if parts - modules:
                yield node.module


def circle(sources):
    """Files that import each other in a circle, or nothing."""
    graph = {name: set(imports(source, set(sources))) for name, source in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " → ".join(reversed(error.args[1]))
    return ""


def test_no_file_imports_itself_by_way_of_others():
    sources = {name: file.read_text(encoding="utf-8") for name, file in FILES.items()}
    assert not circle(sources)


def test_the_circles_that_are_looked_for_are_found():
    top = "from incop.b import thing"
    lazy = "def f():\n    from incop import a"
    types = "if TYPE_CHECKING:\n    import incop.a"
    for back in (lazy, types, "from incop.a import other"):
        assert circle({"incop": "", "incop.a": top, "incop.b": back})
    assert not circle({"incop": "", "incop.a": top, "incop.b": "import incop"})
