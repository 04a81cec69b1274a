"""The pages and pictures that are written by the program itself: `python docs/site/generated.py` writes them anew.

cli.md is made of what `incop … --help` prints, reference.md of the `__all__` lists of its public faces and first lines, and
architecture.svg and the other figures by the files in docs/figures/. tests/guards/test_site.py fails where one is not as it
would be written now; `make pages` writes all of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import util
from pathlib import Path

from faces import ROOT, faces

WIDE = "1000"  # columns: no line of a help is broken
ROW = re.compile(r"^│ (?P<name>\S.*?)(?:  +(?P<text>\S.*))?$")
MADE = "<!-- Written by docs/site/generated.py; `make pages` writes it anew. -->"


def help_of(*command: str) -> str:
    """What the program says of a command, in lines that are not broken."""
    environment = os.environ | {"COLUMNS": WIDE, "NO_COLOR": "1", "TERM": "dumb"}
    run = subprocess.run(
        [sys.executable, "-m", "incop", *command, "--help"], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout


def panels(said: str) -> tuple[list[str], dict[str, list[tuple[str, str]]]]:
    """The lines before the first panel of a help, and each panel's entries: name and text."""
    before: list[str] = []
    found: dict[str, list[tuple[str, str]]] = {}
    entries: list[tuple[str, str]] | None = None
    for line in said.splitlines():
        if line.startswith("╭"):
            entries = found.setdefault(line.strip("╭╮─ "), [])
        elif line.startswith("│") and entries is not None:
            text = line.rstrip("│ ")
            if row := ROW.match(text):
                entries.append((row["name"], row["text"] or ""))
            else:  # a line that goes on
                name, so_far = entries[-1]
                entries[-1] = (name, f"{so_far} {text.strip('│ ')}")
        elif entries is None:
            before.append(line)
    return before, found


def escaped(text: str) -> str:
    """Words of a help as Markdown says them; what stands between backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<\[\]])", r"\\\1", part) for part in parts)


def cli_page() -> str:
    """The command line's reference, from the program's own help."""
    before, found = panels(help_of())
    lines = ["# The command line", "", MADE, "", *before[2:], "```", before[0], "```", ""]
    commands = [name for name, _ in found["Commands"] if not name.startswith("-")]
    lines += [
        f"- [`incop {name}`](#incop-{name}): {escaped(text)}" if name in commands else f"- `{name}`: {escaped(text)}"
        for name, text in found["Commands"]
    ]
    lines += [
        "",
        "Exit status: 0 done, 2 bad input, 1 failure, 130 interrupted. What is wrong is one sentence on standard error;",
        "`--debug` shows where it came from. A flag that may be given several times stands here with `...`.",
        "",
    ]
    for command in commands:
        before, found = panels(help_of(command))
        lines += [f"## incop {command}", "", *before[2:], "```", before[0].removeprefix("Usage: "), "```", ""]
        for title, entries in found.items():
            lines += [f"**{title}**", ""]
            lines += [f"- `{name}`: {escaped(text)}" if text else f"- `{name}`" for name, text in entries]
            lines.append("")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def reference_page() -> str:
    """All public names with their first lines; in the site each leads to its description."""
    lines = [
        "# Reference",
        "",
        MADE,
        "",
        "Every public name, by the package or module it is imported from, with the first line of its docstring. Names that are",
        "not here are internal. The commands are on [a page of their own](cli.md), the rooms' order on [another](architecture.md).",
        "",
    ]
    for face in faces():
        lines += [f"## {face.module}", "", face.line, ""]
        for name in face.names:
            said = escaped(name.line) if name.line else f"`{name.value.partition(' = ')[2] or name.value}`"
            target = os.path.relpath(name.file, ROOT / "docs")
            lines.append(f"- [`{name.path}`]({target}): {said}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def figures() -> dict[Path, str]:
    """Every figure's file and what its program draws now."""
    folder = ROOT / "docs" / "figures"
    sys.path.insert(0, str(folder))
    drawn = {}
    for file in sorted(folder.glob("*.py")):
        if file.stem != "drawing":
            spec = util.spec_from_file_location(f"figure_{file.stem}", file)
            assert spec is not None
            assert spec.loader is not None
            module = util.module_from_spec(spec)
            spec.loader.exec_module(module)
            drawn[file.with_suffix(".svg")] = module.draw()
    return drawn


def pages() -> dict[Path, str]:
    return {ROOT / "docs" / "cli.md": cli_page(), ROOT / "docs" / "reference.md": reference_page()}


def main() -> int:
    """Write what is not as it should be."""
    for file, text in (pages() | figures()).items():
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            print(f"written: {file.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
