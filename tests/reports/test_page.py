import dataclasses
import html as html_module
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from incop.records import Check
from incop.reports import Replay, html, read
from incop.reports.page_contents import page_of
from incop.reports.run_figures import threshold, tracks
from incop.rundir import RunDir

from .conftest import flow_at, read_jobs, write_comparison, write_jobs, write_run

EVIL = "<script>alert('x')</script>\"'><img src=http://evil.example/x onerror=alert(1)>"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
CSP = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'

LEVEL = {
    "level": 1,
    "epochs": 4.0,
    "full_epochs": 10.0,
    "saved": 6.0,
    "accuracy": 0.9,
    "estimate": False,
    "reason": "why",
}
POINT = {"within": 0.05, "epochs": 4.0, "full_epochs": 10.0, "accuracy": 0.9, "levels": 1}
REPLAYS = [
    Replay("flow within 0.05", levels=[LEVEL, LEVEL | {"level": 2, "estimate": True}]),
    Replay("flow within 0.01,0.1", curve=[POINT, POINT | {"within": 0.01, "epochs": 9.0, "accuracy": None}]),
]


class Tree(HTMLParser):
    """What the tests ask of a page: tags with their attributes, ids, headings."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def comparison_page(comparison_folder):
    return html(read([comparison_folder]), replays=REPLAYS)


@pytest.fixture(scope="module")
def run_page(tmp_path_factory):
    sparsities = (0.2, 0.36, 0.488, 0.59, 0.672, 0.738, 0.79, 0.832, 0.866, 0.893)
    accuracies = [0.96 - 0.003 * k for k in range(10)]
    folder = tmp_path_factory.mktemp("page") / "run"
    return html(read([write_run(folder, sparsities=sparsities, accuracies=accuracies, ticket_at=(0.59,))]))


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "c"
    methods = {EVIL: (None, 2.0, (0.1, 0.2, 0.3)), "x" * 400: (EVIL, 20.0, (0.1, 0.2, 0.4))}
    settings = {"command": EVIL, "name": EVIL, EVIL: EVIL}
    write_comparison(folder, seeds=2, methods=methods, places=((EVIL, "m" * 300),), settings=settings)
    jobs = read_jobs(folder)
    jobs.append(jobs[0] | {"seed": 9, "state": "failed", "error": EVIL})
    write_jobs(folder, jobs)
    return html(read([folder]), replays=[Replay(EVIL, levels=[LEVEL | {"reason": EVIL}]), Replay(EVIL, curve=[POINT])])


@pytest.fixture(params=["comparison_page", "run_page", "hostile_page"])
def page(request):
    return request.getfixturevalue(request.param)


def test_page_is_one_file_that_asks_for_nothing(page):
    tree = Tree(page)
    assert CSP in page
    assert len(page.encode()) < 3_000_000
    assert not tree.all("script")
    assert not tree.all("img")
    for _, attributes in tree.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,"
        assert not [name for name in attributes if name.startswith("on")]
    styles = "".join(re.findall(r"<style>.*?</style>", page, re.S))
    assert "http" not in styles
    assert "@import" not in styles


def test_page_is_told_to_those_who_do_not_see_it(page):
    tree = Tree(page)
    for landmark in ("header", "main", "nav", "footer"):
        assert len(tree.all(landmark)) == 1
    assert len(tree.all("h1")) == 1
    assert tree.all("html")[0]["lang"] == "en"
    assert tree.all("a")[0] == {"class": "skip", "href": "#verdict"}
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in tree.all("a")} <= set(ids)
    assert all("scope" in attributes for attributes in tree.all("th"))
    assert len(tree.all("caption")) == len(tree.all("table"))
    pictures = [attributes for attributes in tree.all("svg") if attributes.get("role") == "img"]
    assert pictures
    assert all(attributes["aria-label"] for attributes in pictures)
    assert len(tree.all("figcaption")) == len(tree.all("figure"))
    for figure in re.findall(r"<figure.*?</figure>", page, re.S):
        assert "<table" in figure  # every picture has its numbers


@pytest.mark.parametrize(
    "title",
    [
        "Difference to lth",
        "Difference to the controls",
        "Accuracy against sparsity",
        "Accuracy against spent, at sparsity 0.5",
        "Accuracy against spent, at sparsity 0.9",
        "Epochs of each level",
        "What was spent, to sparsity 0.9",
        "Distance of the flow from the dense network&#39;s",
        "Flow between the layers",
        "Sparsity of each layer",
        "Replay",
        "Settings",
    ],
)
def test_comparison_page_has(comparison_page, title):
    assert f">{title}</h" in comparison_page


def test_comparison_page_begins_with_the_verdict(comparison_page):
    lead = re.search(r'<p class="lead">(.*?)</p>', comparison_page)[1]
    assert lead == "None of incop-if and incop-gf is shown to be better than all of its controls in any of 3 settings."
    assert comparison_page.index(lead) < comparison_page.index("<figure")
    assert "non-inferior in" in comparison_page
    assert "Five seeds are few" in comparison_page
    assert "incop compare study/comparison.toml --out NEW_FOLDER" in comparison_page


def test_a_win_is_over_all_controls_and_none_may_be_missing(tmp_path):
    methods = {
        "lth": (None, 20.0, (0.1, 0.2, 0.3)),
        "incop-if": (None, 2.0, (0.1, 0.2, 0.3)),
        "random=incop-if": ("incop-if", 2.0, (3.0, 4.0, 5.0)),
        "oneshot=incop-if": ("incop-if", 2.0, (3.0, 4.0, 5.0)),
    }
    folder = write_comparison(tmp_path / "c", methods=methods)
    assert page_of(read([folder])).verdict[0] == "Better than all of its own controls: incop-if (in 3 of 3 settings)."
    jobs = read_jobs(folder)
    write_jobs(folder, [job | ({"state": "failed"} if job["label"].startswith("one") else {}) for job in jobs])
    assert page_of(read([folder])).verdict[0].startswith("incop-if is not shown to be better than all of its controls")


def test_run_page_has_its_command_and_its_notices(run_folder):
    run = RunDir(run_folder)
    summary = run.read_summary()
    levels = (*summary.levels[:-1], dataclasses.replace(summary.levels[-1], notices=("conv1 lost <all> its weights",)))
    run.write_summary(dataclasses.replace(summary, levels=levels))
    text = html(read([run_folder]))
    assert "incop search run/plan.toml --out NEW_FOLDER" in text
    assert "level 3: conv1 lost &lt;all&gt; its weights" in text
    assert "at sparsity 0.900" in text.lower()


def test_hostile_text_stays_text(hostile_page):
    assert "<script" not in hostile_page
    assert "<img" not in hostile_page
    assert html_module.escape("<script>alert(", quote=False) in hostile_page


def test_the_same_folder_gives_the_same_page(run_folder):
    assert html(read([run_folder])) == html(read([run_folder]))


@pytest.mark.parametrize("status", ["failed", "running", "interrupted"])
def test_an_unfinished_run_is_said_to_be(tmp_path, status):
    folder = write_run(tmp_path / "r", status=status, error="loss is <NaN>" if status == "failed" else None)
    verdict = page_of(read([folder])).verdict
    assert verdict[0].startswith(f"This run is not finished ({status}")
    assert "loss is &lt;NaN&gt;" in html(read([folder])) or status != "failed"


def test_a_run_of_the_dense_level_only(tmp_path):
    folder = write_run(tmp_path / "r", sparsities=(), accuracies=())
    assert "Only the dense network has been trained" in html(read([folder]))


def test_a_run_with_no_finished_level(tmp_path):
    folder = write_run(tmp_path / "r", sparsities=(), accuracies=())
    run = RunDir(folder)
    run.levels_file.unlink()
    run.checks_file.unlink()
    run.summary_file.unlink()
    assert "There is no finished level to report." in html(read([folder]))


def test_a_run_without_flow_has_no_picture_of_it(tmp_path):
    text = html(read([write_run(tmp_path / "r", flow=False, rule="after 2 epochs")]))
    assert "Distance of the flow" not in text
    assert "Sparsity of each layer" in text


def test_a_distance_that_is_nan_is_said(tmp_path):
    recorded = read([write_run(tmp_path / "r", nan=True)])
    assert "without a finite distance cannot be drawn" in html(recorded)
    found = tracks(recorded.checks())
    assert [track.level for track in found] == [1, 2, 3]
    assert math.isnan(found[0].y[0])


def test_ten_thousand_checks_make_a_small_page(tmp_path):
    folder = write_run(tmp_path / "r")
    with RunDir(folder).checks_file.open("a") as out:
        for number in range(10_000):
            check = Check(4, number, number / 10, flow=flow_at(1), distance=1 / (number + 1))
            out.write(json.dumps(check.to_json()) + "\n")
    assert len(html(read([folder]))) < 500_000


def test_a_level_that_was_trained_on_is_marked_where_its_rule_stopped_it(run_folder):
    level_2 = tracks(read([run_folder]).checks())[1]
    assert (level_2.stop, level_2.by_rule) == (0, True)
    assert len(level_2.x) == 10


@pytest.mark.parametrize(
    ("rule", "within"),
    [
        ("flow within 0.11 or accuracy restored", 0.11),
        ("flow within 5e-2", 0.05),
        ("flow within 0.5 relative", 0.5 * math.hypot(0.01, 0.02, 0.03)),
        ("after 2 epochs", None),
        ("flow within ...", None),
    ],
)
def test_threshold_of_a_rule(tmp_path, rule, within):
    found = threshold(read([write_run(tmp_path / "r", rule=rule)]))
    assert found == (None if within is None else pytest.approx(within))


def test_an_unfinished_comparison_says_so(tmp_path):
    folder = write_comparison(tmp_path / "c", seeds=1)
    jobs = [job | {"state": "failed", "error": "disk full"} for job in read_jobs(folder)]
    write_jobs(folder, jobs)
    text = html(read([folder]))
    assert "There is nothing to compare yet" in text
    assert "disk full" in text
    write_jobs(folder, [])
    assert "There is nothing to compare yet" in html(read([folder]))


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
)
FRAME = """<!doctype html><meta name="color-scheme" content="light dark">
<style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<script>addEventListener("message", e => document.title = e.data)</script>
<iframe src="{source}" width="{width}" height="1500"></iframe>"""  # a window itself is never so narrow
MEASURE = """<script>
addEventListener("error", e => errors.push(String(e.message))); var errors = [];
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const shown = [...document.querySelectorAll("figure > svg")].filter(s => s.getBoundingClientRect().height > 50);
  parent.postMessage(JSON.stringify({
    width: document.documentElement.clientWidth, scroll: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, pre, svg, .skip, .hidden")
      && e.getBoundingClientRect().right > innerWidth + 1).length,
    figures: document.querySelectorAll("figure").length, pictures: shown.length,
    resources: performance.getEntriesByType("resource").map(r => r.name), errors, dark,
    ink: getComputedStyle(document.body).color, paper: getComputedStyle(document.body).backgroundColor,
  }), "*");
});
</script>"""


def browse(folder, text, *, width=None, dark=False):
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    if width is not None:
        (folder / "frame.html").write_text(FRAME.format(source=file.name, width=width))
        file = folder / "frame.html"
    done = subprocess.run(
        [
            BROWSER,
            *FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            "--window-size=1280,1600",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium, chromium-browser or google-chrome")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_browser_shows_every_figure_without_overflow_on_a_phone(tmp_path, page, dark):
    # The product page allows no script, so a copy without its policy is measured.
    probed = page.replace(CSP, "").replace("<body>", f"<body>{MEASURE}")
    dom, console = browse(tmp_path, probed, width=390, dark=dark)
    found = json.loads(html_module.unescape(re.search(r"<title>(.*?)</title>", dom, re.S)[1]))
    assert console == []
    assert found["errors"] == []
    assert found["resources"] == []
    assert found["width"] == 390
    assert found["scroll"] <= 390
    assert found["wide"] == 0
    assert found["figures"] == page.count("<figure")
    assert found["pictures"] == len(re.findall(r'<svg viewBox="[^"]*" role="img"', page))
    assert found["dark"] is dark
    assert found["ink"] == ("rgb(231, 235, 241)" if dark else "rgb(27, 35, 48)")


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium, chromium-browser or google-chrome")
def test_browser_has_nothing_to_say_about_the_page_itself(tmp_path, page):
    dom, console = browse(tmp_path, page)
    assert console == []
    assert dom.count("<figure") == page.count("<figure")
