"""The rooms of the package and who imports whom, read from the source: nothing here is written by hand but the heights."""

import ast
import sys
from pathlib import Path

from drawing import Drawing

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "incop"


def heights() -> list[set[str]]:
    """The rooms in their order, from the guard that keeps it."""
    tree = ast.parse((ROOT / "tests" / "guards" / "test_rooms.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER":
            return ast.literal_eval(node.value)
    raise SystemExit("tests/guards/test_rooms.py has no ORDER of the rooms")


def imports() -> dict[str, set[str]]:
    """For every room the rooms that it imports from."""
    known = {file.stem if file.is_file() else file.name for file in SOURCE.iterdir()}
    found: dict[str, set[str]] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        home = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if home.startswith("__"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = (
                    [f"incop.{alias.name}" for alias in node.names] if node.module == "incop" else [node.module or ""]
                )
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                room = name.split(".")[1] if name.startswith("incop.") else ""
                if room in known and room != home:
                    found.setdefault(home, set()).add(room)
        found.setdefault(home, set())
    return found


def draw() -> str:
    """Rooms in rows; a line goes from a room to each one it imports, unless another import leads there already."""
    asked = imports()
    rows = [sorted(row & set(asked)) for row in heights() if row & set(asked)]
    out = Drawing(
        24 + 62 * len(rows) + 30, "The rooms of incop from the command line down to the errors, and what imports what"
    )
    place: dict[str, tuple[float, float, float]] = {}
    for k, row in enumerate(rows):
        widths = [7.3 * len(name) + 14 for name in row]
        gap = min(22.0, (460 - sum(widths)) / max(len(row) - 1, 1))
        x = (480 - sum(widths) - gap * (len(row) - 1)) / 2
        for name, width in zip(row, widths, strict=True):
            place[name] = (x, 20 + 62 * k, width)
            x += width + gap
    for home in sorted(asked):
        below = asked[home] & set(place)
        reached = {far for near in below for far in reach(asked, near)} if home in place else set()
        for room in sorted(below - reached):
            (x0, y0, w0), (x1, y1, w1) = place[home], place[room]
            if y1 == y0:  # within a row: a bracket below it
                out.line(
                    [(x0 + w0 / 2, y0 + 26), (x0 + w0 / 2, y0 + 34), (x1 + w1 / 2, y0 + 34), (x1 + w1 / 2, y0 + 26)],
                    "softline",
                    width=1,
                )
            else:
                out.line([(x0 + w0 / 2, y0 + 26), (x1 + w1 / 2, y1)], "softline", width=1)
    for name, (x, y, width) in place.items():
        out.box(x, y, width, 26)
        out.text(x + width / 2, y + 17, name, "code", "middle")
    y = 24 + 62 * len(rows)
    out.text(14, y, "A line leads down to what a room imports, a bracket along its row.", "soft small")
    out.text(14, y + 16, "Imports that another one implies are left out.", "soft small")
    return out.svg()


def reach(asked: dict[str, set[str]], room: str) -> set[str]:
    """All rooms below one, over any number of imports."""
    found: set[str] = set()
    waiting = list(asked.get(room, ()))
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += asked.get(one, ())
    return found


if __name__ == "__main__":
    sys.stdout.write(draw())
