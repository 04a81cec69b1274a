"""Every link of README and docs leads somewhere, to the file and to the heading; outside addresses are only looked at for form."""

import re
import sys
from functools import cache
from urllib.parse import urlsplit

import pytest
from documents import DOCUMENTS, ROOT

sys.path.insert(0, str(ROOT / "docs" / "site"))
import stage

PAGES = sorted(
    {
        *DOCUMENTS,
        *stage.sources(),
        *(
            ROOT / name
            for name in ("CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "tests/campaigns/README.md")
        ),
    }
)
# of package registries, in halves, so that no file names one
REGISTRIES = tuple(
    f"{host}.{end}"
    for host, end in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("anaconda", "org"),
        ("crates", "io"),
    )
)
BARE = re.compile(r"\bhttps?://[^\s)>\]`'\"]+")


@cache
def anchors(file):
    """The anchors a code host and the site both give a page's headings, and those that stand in it."""
    text = file.read_text(encoding="utf-8")
    outside = "".join(text[start:end] for start, end in stage.outside_code(text) if True)
    headings = re.findall(r"^#{1,6} +(.+?)\s*#*$", stage.FENCE.sub("", text), re.MULTILINE)
    return {slug(heading) for heading in headings} | set(re.findall(r'<a (?:id|name)="([^"]+)"', outside))


def slug(heading):
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    words = re.sub(r"[`*]", "", words).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def faults(page, text):
    found = []
    for link in stage.links(text):
        meant = stage.target_of(page, link["target"])
        if meant is None:
            address = urlsplit(link["target"])
            if address.scheme not in ("https", "mailto") or (address.scheme == "https" and "." not in address.netloc):
                found.append(f"{link['target']} is no https address")
            continue
        file, anchor = meant
        if not file.exists():
            found.append(f"{link['target']} is not there")
        elif not file.is_relative_to(ROOT):
            found.append(f"{link['target']} leads out of the project")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            found.append(f"{link['target']}: no such heading")
    found += [
        f"{one} is a registry's address" for one in BARE.findall(text) if urlsplit(one).netloc.endswith(REGISTRIES)
    ]
    return found


def test_links_lead_somewhere():
    found = {str(page.relative_to(ROOT)): faults(page, page.read_text(encoding="utf-8")) for page in PAGES}
    assert {page: said for page, said in found.items() if said} == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[x](nowhere.md)", "not there"),
        ("![x](figures/nowhere.svg)", "not there"),
        ("[`code`](nowhere.py)", "not there"),
        ("[x](choosing.md#which-colour)", "no such heading"),
        ("[x](#here)", "no such heading"),
        ("[x](http://example.org)", "no https"),
        ("[x](../../outside.md)", "not there"),
        (f"see https://{REGISTRIES[0]}/project/x", "registry"),
    ],
)
def test_the_guard_sees(text, fault):
    assert any(fault in said for said in faults(ROOT / "docs" / "install.md", text))


@pytest.mark.parametrize(
    "text",
    [
        "[x](choosing.md#which-rule)",
        "```\n[x](nowhere.md)\n```",
        "`[x](nowhere.md)`",
        "[x](https://arxiv.org/abs/2501.15592)",
    ],
)
def test_the_guard_lets_pass(text):
    assert faults(ROOT / "docs" / "install.md", text) == []
