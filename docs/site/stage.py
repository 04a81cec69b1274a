"""Gather the site's pages under build/docs/pages as they lie in the repository, so that every relative link stays true.

Linked files come along: results and reports as they are, sources as pages of their own, and a link to the package's
source leads to the reference. Nothing is fetched. `make docs` runs this, then zensical, then `finish.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from faces import ROOT, faces, homes

BUILD = ROOT / "build" / "docs"
PAGES = BUILD / "pages"
ALWAYS = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
SHOWN = {".py": "python", ".toml": "toml", ".sh": "bash", ".txt": "text", ".yml": "yaml", ".sbatch": "bash", "": "text"}
FENCE = re.compile(r"^(?P<mark> *(?:```+|~~~+)).*?\n(?:.*\n)*?(?P=mark) *$", re.MULTILINE)
SPAN = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(
    r"(?P<open>!?\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\()(?P<target>[^()\s]+(?:\([^()\s]*\)[^()\s]*)*)(?P<close>\))"
)
OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:")


def sources() -> list[Path]:
    """The pages that make up the site, before what they link to."""
    return [ROOT / name for name in ALWAYS if (ROOT / name).exists()] + sorted((ROOT / "docs").rglob("*.md"))


def outside_code(text: str) -> Iterator[tuple[int, int]]:
    """The stretches of a page that are not in a code block or span: there, brackets are links."""
    blocks = [(found.start(), found.end()) for found in FENCE.finditer(text)]
    blanked = list(text)
    for start, end in blocks:
        blanked[start:end] = "\0" * (end - start)
    spans = [(found.start(), found.end()) for found in SPAN.finditer("".join(blanked)) if "\n\n" not in found[0]]
    place = 0
    for start, end in sorted(blocks + spans):
        if start >= place:
            yield place, start
        place = max(place, end)
    yield place, len(text)


def links(text: str) -> Iterator[re.Match[str]]:
    """All links and pictures of a page, not those that are only shown in code; a link's text may itself be code."""
    hidden = [True] * len(text)
    for start, end in outside_code(text):
        hidden[start:end] = [False] * (end - start)
    for found in LINK.finditer(text):
        if not hidden[found.start()] and not hidden[found.end() - 1]:
            yield found


def target_of(page: Path, target: str) -> tuple[Path, str] | None:
    """File and anchor that a relative link means; None for an address outside the project."""
    if OUTSIDE.match(target):
        return None
    path, _, anchor = target.partition("#")
    file = Path(os.path.normpath(page.parent / path)) if path else page
    return (file / "README.md" if file.is_dir() else file), anchor


def staged_name(file: Path) -> str:
    """Where a file of the repository lies in the site's pages."""
    name = file.relative_to(ROOT).as_posix()
    return f"{name}.md" if file.suffix in SHOWN else name


def reference_of(file: Path, text: str) -> str:
    """Page of the reference, with anchor, that a link to the package's source means: the name in its text, or the package."""
    named = text.strip("`")
    module = ".".join(file.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    for name in homes().values():
        if name.path == named or name.home == f"{module}.{named.rpartition('.')[2]}":
            return f"docs/reference/{name.path.rpartition('.')[0]}.md#{name.path}"
    owners = [face for face in faces() if f"{module}.".startswith(f"{face.module}.")]
    return max(owners, key=lambda face: len(face.module)).page


def rewritten(page: Path, text: str, linked: set[Path]) -> str:
    """The page with its links as they are in the site; what it links to is added to `linked`."""
    parts, place = [], 0
    for found in links(text):
        meant = target_of(page, found["target"])
        if meant is None:
            continue
        file, anchor = meant
        if not file.exists():
            raise SystemExit(f"{page.relative_to(ROOT)} links to {found['target']}, which is not there")
        here = page.relative_to(ROOT).parent
        if file.is_relative_to(ROOT / "src" / "incop") and file.suffix == ".py":
            there = reference_of(file, found["text"])
        else:
            linked.add(file)
            there = staged_name(file) + (f"#{anchor}" if anchor else "")
        target = f"#{anchor}" if file == page and anchor else os.path.relpath(there, here)
        parts += [text[place : found.start("target")], target]
        place = found.end("target")
    return "".join([*parts, text[place:]])


def as_the_site_reads(text: str) -> str:
    """A code host's ways of writing maths, ```math blocks and $`…`$, as dollars; a bar in a table's code without its slash."""
    text = re.sub(r"^```math\n(.*?)\n```$", r"$$\n\1\n$$", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\$`([^`\n]+)`\$", r"$\1$", text)
    return re.sub(
        r"^\|.*\|$", lambda row: SPAN.sub(lambda span: span[0].replace("\\|", "|"), row[0]), text, flags=re.MULTILINE
    )


def write(name: str, text: str) -> None:
    file = PAGES / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def gather() -> None:
    """Write all pages and what they link to."""
    waiting, done = sources(), set()
    while waiting:
        file = waiting.pop()
        if file in done:
            continue
        done.add(file)
        if file.suffix == ".md":
            linked: set[Path] = set()
            write(staged_name(file), as_the_site_reads(rewritten(file, file.read_text(encoding="utf-8"), linked)))
            waiting += sorted(linked)
        elif file.suffix in SHOWN:
            text = file.read_text(encoding="utf-8").rstrip()
            write(
                staged_name(file), f"# {file.relative_to(ROOT).as_posix()}\n\n````{SHOWN[file.suffix]}\n{text}\n````\n"
            )
        else:
            (PAGES / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, PAGES / file.relative_to(ROOT))


def write_reference() -> list[str]:
    """Write a page for every face, and return the lines of the navigation that name them."""
    for face in faces():
        lines = [f"# {face.module}", "", face.line, ""]
        for name in face.names:
            if name.line or not name.value:
                lines += [f"::: {name.path}", "    options:", "      heading_level: 2", ""]
            else:  # a constant, which mkdocstrings does not always find
                lines += [f'## <a id="{name.path}"></a>`{name.path}`', "", f"```python\n{name.value}\n```", ""]
        write(face.page, "\n".join(lines))
    return [f"{face.module}: {face.page}" for face in faces()]


def copy_source() -> None:
    """The package's source for mkdocstrings: it knows `Examples:` as a section of code, and signatures of `__init__` only."""
    for file in sorted((ROOT / "src" / "incop").rglob("*.py")):
        copy = BUILD / "src" / file.relative_to(ROOT / "src")
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="utf-8")
        text = re.sub(r"^( +)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
        copy.write_text(text.replace("def __new__(\n        cls,", "def __init__(\n        self,"), encoding="utf-8")


def write_settings(pages: list[str]) -> None:
    """mkdocs.yml with the reference's pages in place of its mark."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    mark = re.search(r"^( +)# faces$", settings, re.MULTILINE)
    if mark is None:
        raise SystemExit("mkdocs.yml has no line '# faces' for the pages of the reference")
    settings = settings.replace(mark[0], "\n".join(f"{mark[1]}- {line}" for line in pages))
    (BUILD / "mkdocs.yml").write_text(settings.replace("build/docs/", ""), encoding="utf-8")


def main() -> None:
    """Begin with an empty folder, and fill it."""
    shutil.rmtree(BUILD, ignore_errors=True)
    gather()
    pages = write_reference()
    copy_source()
    write_settings(pages)
    for style in sorted((ROOT / "docs" / "site").glob("*.css")):
        shutil.copyfile(style, PAGES / style.name)
    print(f"{len(list(PAGES.rglob('*.md')))} pages, {len(homes())} public names in {len(pages)} pages of the reference")


if __name__ == "__main__":
    sys.exit(main())
