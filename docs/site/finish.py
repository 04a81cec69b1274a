"""Finish the built site: formulas become MathML, pages refuse outside loads, and everything in them is checked.

Checked are, in every page: that each link, picture, style and script leads to a file of the site and to an anchor that is
there; that nothing is loaded from another host; that no formula or example is left as it was typed; and, over all pages,
that every public name of the package has its place.
"""

from __future__ import annotations

import html
import os
import re
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

from faces import homes
from stage import BUILD

SITE = BUILD / "site"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
POLICY = (  # the browser itself refuses what would come from elsewhere; file: is for pages read without a server
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'self' file: data: blob: 'unsafe-inline'\">"
)
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("object", "data"), ("video", "src")}
LOADING = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch", "manifest"}
STYLE_LOAD = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])(?:https?:)?//[^)'\"]*")
EXAMPLE = re.compile(r"<p>\s*(?:&gt;){3} ")


class Page(HTMLParser):
    """What a page offers and asks for: its anchors, its links, what it loads, and its text outside code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {key: value or "" for key, value in attrs}
        self.anchors |= {said[key] for key in ("id", "name") if key in said and (key == "id" or tag == "a")}
        if tag in ("a", "area") and "href" in said:
            self.links.append(said["href"])
        if tag == "link" and LOADING & set(said.get("rel", "").split()):
            self.loads.append(said.get("href", ""))
        self.loads += [said[key] for kind, key in LOADED if kind == tag and key in said]


SAID_OTHERWISE = (  # what the converter does not know by this name
    (re.compile(r"\\(begin|end){aligned}"), r"\\\1{split}"),
    (re.compile(r"\\operatorname\*"), r"\\operatorname"),
    (re.compile(r"\\arg(?![a-zA-Z])"), r"\\operatorname{arg}"),
)
UNKNOWN = re.compile(r">(\\[^<]*|&(?:amp;|#x0*26;)?)<")


def mathml(typed: str, display: str) -> str:
    """A formula as the browser sets it by itself.

    Raises:
        ValueError: a part of it is not known.
    """
    from latex2mathml.converter import convert  # of the site's environment; all else here needs nothing

    for known, name in SAID_OTHERWISE:
        typed = known.sub(name, typed)
    made = convert(typed, display=display)
    if left := UNKNOWN.search(made):
        raise ValueError(f"{left[1]} is not known here")
    return made


def with_formulas(text: str, page: str) -> str:
    """The page with MathML in place of what was typed between dollars, so that reading needs no script and no font."""

    def one(found: re.Match[str]) -> str:
        typed = html.unescape(found[3]).strip()
        try:
            return mathml(typed, "block" if found[2] == "[" else "inline")
        except Exception as error:
            raise SystemExit(f"{page}: the formula {typed!r} cannot be set: {type(error).__name__} {error}") from error

    return FORMULA.sub(one, text)


def problems_of(name: str, text: str, page: Page, pages: dict[str, Page]) -> list[str]:
    """What is wrong with a page, a sentence each."""
    found = []
    for target in page.links + page.loads:
        if re.match(r"[a-z][a-z0-9+.-]*:|//", target):
            if target in page.loads and not target.startswith("data:"):
                found.append(f"loads {target} from outside")
            elif not target.startswith(("https://", "mailto:", "data:", "javascript:")):
                found.append(f"links to {target}, which is not https")
            continue
        path, _, anchor = unquote(target).partition("#")
        file = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
        file = f"{file}/index.html" if (SITE / file).is_dir() else file
        if not (SITE / file).is_file():
            found.append(f"links to {target}, which is not in the site")
        elif anchor and file in pages and anchor not in pages[file].anchors and not anchor.startswith("__"):
            found.append(f"links to {target}, and there is no such anchor")
    found += [f"loads {load} in its style" for load in STYLE_LOAD.findall(text)]
    if 'class="arithmatex"' in text or 'class="mermaid"' in text:
        found.append("has a formula or a diagram that only a script from elsewhere would draw")
    if EXAMPLE.search(text):
        found.append("shows an example of a docstring as a paragraph: it belongs under 'Example:'")
    return found


def main() -> int:
    """Finish and check all pages; print what is wrong; return 1 if anything is."""
    texts: dict[str, str] = {}
    for file in sorted(SITE.rglob("*.html")):
        name, text = file.relative_to(SITE).as_posix(), file.read_text(encoding="utf-8")
        if "<title>" in text and "md-main" in text:  # not a report that is shown as it is
            text = with_formulas(text, name).replace("<head>", f"<head>{POLICY}", 1)
            file.write_text(text, encoding="utf-8")
        texts[name] = text
    pages = {name: Page(text) for name, text in texts.items()}
    wrong = [
        f"{name} {said}"
        for name, page in pages.items()
        if name != "404.html"  # its links begin at the root of whatever serves it
        for said in problems_of(name, texts[name], page, pages)
    ]
    for style in sorted(SITE.rglob("*.css")):
        wrong += [
            f"{style.relative_to(SITE)} loads {load}" for load in STYLE_LOAD.findall(style.read_text(encoding="utf-8"))
        ]
    anchors = set().union(*(page.anchors for name, page in pages.items() if name.startswith("docs/reference/")))
    wrong += [
        f"{name.path} is public and has no place in the reference"
        for name in homes().values()
        if name.path not in anchors
    ]
    for one in sorted(set(wrong)):
        print(one, file=sys.stderr)
    print(
        f"{len(pages)} pages built, {sum(len(page.links) for page in pages.values())} links checked, {len(set(wrong))} faults"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
