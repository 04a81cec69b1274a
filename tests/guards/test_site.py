"""The site's pages: all in the navigation, the generated ones as they would be written now, every public name described.

What needs the site's own tools (its strict build, its links, its formulas) is checked by `make docs`.
"""

import importlib
import inspect
import re
import sys
from functools import cache

import pytest
from documents import ROOT

sys.path.insert(0, str(ROOT / "docs" / "site"))
import faces
import finish
import generated
import stage

NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
figures = cache(generated.figures)


def test_every_page_is_in_the_navigation_once():
    named = re.findall(r"^ +- (?:.+: )?([\w./-]+\.md)$", NAVIGATION, re.MULTILINE)
    there = [file.relative_to(ROOT).as_posix() for file in stage.sources()]
    missing, strange = sorted(set(there) - set(named)), sorted(set(named) - set(there))
    assert not missing, f"add to nav in mkdocs.yml a line such as '- Title: {missing[0]}'"
    assert not strange, f"nav in mkdocs.yml names {strange}, which are not there"
    assert len(named) == len(set(named))


@pytest.mark.parametrize("page", ["cli.md", "reference.md"])
def test_a_generated_page_is_as_it_would_be_now(page):
    now = {"cli.md": generated.cli_page, "reference.md": generated.reference_page}[page]()
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == now, f"`make pages` writes docs/{page} anew"


def test_the_figures_are_as_they_would_be_drawn_now():
    others = [file.name for file, drawn in figures().items() if file.read_text(encoding="utf-8") != drawn]
    assert others == [], "`make pages` draws them anew"
    outside = [
        file.name for file, drawn in figures().items() if "http" in drawn.replace("http://www.w3.org/2000/svg", "")
    ]
    assert outside == []
    assert [file.name for file, drawn in figures().items() if "<title>" not in drawn] == []


def test_every_figure_is_shown_on_a_page_and_loads_nothing():
    shown = "".join(page.read_text(encoding="utf-8") for page in stage.sources())
    files = sorted((ROOT / "docs" / "figures").glob("*.svg"))  # those of docs/figures/*.py, and what benchmarks drew
    assert set(figures()) <= set(files)
    assert [file.name for file in files if f"figures/{file.name})" not in shown] == []
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(?:href|src)=[\"'](?!#)|url\((?!#)|@import|<script", text), (
            f"{file.name} loads something"
        )


def test_every_flag_of_the_help_has_words():
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^- `[^`]+`$", text, re.MULTILINE) == []


def test_the_page_of_the_command_line_says_all_that_the_help_says(capsys, monkeypatch):
    """By another way than the page's own: the program is asked for its parameters, not for its help's text."""
    from incop.cli.app import app

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in ("search", "compare", "replay", "report", "measure", "show", "resume", "list"):
        section = page.partition(f"\n## incop {command}\n")[2].partition("\n## ")[0]
        for argument in app[command].assemble_argument_collection():
            if argument.parameter.show and argument.names:
                assert any(f"{name}" in section for name in argument.names), f"{command} {argument.names}"


def offered():
    """Every name of every face, asked of the modules themselves."""
    for module in faces.FACES:
        try:
            found = importlib.import_module(module)
        except ImportError:  # an extra that is not here
            continue
        assert found.__all__, f"{module} offers nothing"
        for name in found.__all__:
            yield module, name, getattr(found, name)


def test_every_public_name_is_in_the_reference():
    described = {name.path for name in faces.homes().values()}
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for module, name, thing in offered():
        if inspect.ismodule(thing):
            assert f"\n## {thing.__name__}\n" in page, f"{module}.{name} has no page"
            continue
        home = f"{thing.__module__}.{thing.__qualname__}" if inspect.isclass(thing) or inspect.isfunction(thing) else ""
        assert f"{module}.{name}" in described or home in faces.homes(), (
            f"{module}.{name} is public and not in the reference"
        )
    for path in described:
        assert f"[`{path}`](" in page


def test_what_is_described_is_there():
    """The reference names nothing that cannot be reached."""
    there = {module: {name for found, name, _ in offered() if found == module} for module in faces.FACES}
    for face in faces.faces():
        assert not there[face.module] or {name.path.rpartition(".")[2] for name in face.names} <= there[face.module]


def test_pages_import_only_what_is_public():
    """What README, docs and examples show comes from the faces, so that no user builds on an inner module."""
    public = {f"{module}.{name}" for module in faces.FACES for name in faces.exported(module)} | set(faces.FACES)
    public |= {"incop.cli.main"}  # the command line from Python
    files = [*stage.sources(), *sorted((ROOT / "examples").rglob("*.py"))]
    shown = {
        f"{module}.{name.split(' as ')[0].strip()}": file.name
        for file in files
        for module, names in re.findall(
            r"^ *from (incop[\w.]*) import ([\w, ]+)", file.read_text(encoding="utf-8"), re.M
        )
        for name in names.split(",")
    }
    assert len(shown) > 20
    assert {name: file for name, file in shown.items() if name not in public} == {}


def test_links_are_gathered_as_they_lie(tmp_path):
    text = "See [`Masks`](../src/incop/masks/value.py), [data](../benchmarks/README.md#x), `[no](link.md)`, <b>[out](https://a.org)</b>.\n"
    linked = set()
    said = stage.rewritten(ROOT / "docs" / "page.md", text, linked)
    assert "[`Masks`](reference/incop.md#incop.Masks)" in said
    assert "[data](../benchmarks/README.md#x)" in said
    assert "`[no](link.md)`" in said
    assert linked == {ROOT / "benchmarks" / "README.md"}
    with pytest.raises(SystemExit, match="not there"):
        stage.rewritten(ROOT / "docs" / "page.md", "[x](nowhere.md)", set())


PAGE = '<html><head></head><body><h2 id="here">Here</h2>{}</body></html>'


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="nowhere.html">x</a>', "not in the site"),
        ('<a href="#there">x</a>', "no such anchor"),
        ('<a href="other.html#there">x</a>', "no such anchor"),
        ('<a href="http://example.org">x</a>', "not https"),
        ('<img src="nowhere.svg">', "not in the site"),
        ('<img src="https://example.org/x.png">', "from outside"),
        ('<script src="//cdn.example.org/x.js"></script>', "from outside"),
        ('<link rel="stylesheet" href="https://fonts.example.org/css">', "from outside"),
        ("<style>a{background:url(https://example.org/x.png)}</style>", "in its style"),
        ("<style>@import '//example.org/x.css';</style>", "in its style"),
        ('<span class="arithmatex">\\(x\\)</span>', "a formula"),
        ("<p>&gt;&gt;&gt; 1 + 1</p>", "example of a docstring"),
    ],
)
def test_what_is_wrong_with_a_built_page_is_seen(body, fault, tmp_path, monkeypatch):
    monkeypatch.setattr(finish, "SITE", tmp_path)
    texts = {"docs/page.html": PAGE.format(body), "docs/other.html": PAGE.format("")}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    pages = {name: finish.Page(text) for name, text in texts.items()}
    assert any(
        fault in said
        for said in finish.problems_of("docs/page.html", texts["docs/page.html"], pages["docs/page.html"], pages)
    )
    fine = PAGE.format(
        '<a href="other.html#here">x</a><a href="#here">x</a><a href="https://example.org">x</a><a href=".">x</a>'
    )
    (tmp_path / "docs" / "index.html").write_text("")
    assert finish.problems_of("docs/page.html", fine, finish.Page(fine), pages) == []


def test_only_packages_and_faces_list_their_names():
    """What is public can be seen in one place: inner modules have no `__all__`."""
    for file in sorted((ROOT / "src" / "incop").rglob("*.py")):
        module = ".".join(file.relative_to(ROOT / "src").with_suffix("").parts)
        if file.name != "__init__.py" and module not in faces.FACES:
            assert not faces.exported(module), f"{module} lists its names, and is not in docs/site/faces.py"
