"""Every command and flag that a page shows is one the program takes, and a block marked `console` is a real transcript."""

import re
import shlex
import sys

import pytest
from cyclopts import CycloptsError, MissingArgumentError
from documents import DOCUMENTS, ROOT

from incop.cli.app import app

sys.path.insert(0, str(ROOT / "docs" / "site"))
import stage
import transcripts

PAGES = sorted(
    {
        *DOCUMENTS,
        *(
            ROOT / name
            for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "tests/campaigns/README.md")
        ),
    }
)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(?:python -m )?incop +(?P<words>[^:].*)$")
FLAG = re.compile(r"^--[a-z][a-z-]*")
OTHERS = {  # of programs other than incop
    "--runs",  # of the benchmarks
    "--repeats",
    "--index-url",
    "--extra-index-url",
    "--nproc-per-node",  # of torchrun
    "--nnodes",
    "--node-rank",
    "--max-restarts",
    "--standalone",
    "--pruning",  # of open_lth
    "--rewinding",
}
MADE = "docs/cli.md"  # written from the help itself


def text_of(page):
    return page.read_text(encoding="utf-8")


def commands(text):
    """The words after `incop` of every command in a page's blocks and spans."""
    for block in stage.FENCE.finditer(text):
        head, _, body = block[0].partition("\n")
        if head.strip("`~ ") in ("", "console", "bash", "sh", "shell"):
            for line in re.sub(r" *\\\n *", " ", body).splitlines():
                output = "console" in head and not line.startswith("$ ")
                if not output and (found := COMMAND.match(line.strip())):
                    yield found["words"]
    for span in SPAN.findall(stage.FENCE.sub("", text)):
        if found := COMMAND.match(" ".join(span.split())):
            yield found["words"]


def flags(text):
    """The flags that stand alone in a span, `--rule` or `--rule "flow within 0.05"`."""
    for span in SPAN.findall(stage.FENCE.sub("", text)):
        if found := FLAG.match(span):
            yield found[0]


def known_flags():
    found = {"--help", "--version"}
    for command in app:
        if not command.startswith("-"):
            found |= {name for argument in app[command].assemble_argument_collection() for name in argument.names}
    return found


KNOWN = known_flags() | OTHERS


def refusal(words):
    """Why the program would not take these words, or nothing. What a page leaves open (…, a file still to be named) is let pass."""
    tokens = []
    for token in shlex.split(words, comments=True):
        if token in ("|", "&&", ";", ">", "2>&1", "&"):
            break
        if token not in ("…", "...", "[…]"):
            tokens.append("1" if token in ("N", "K", "SEED") else token.partition("|")[0])  # of ray|slurm, the first
    if not tokens or "COMMAND" in tokens or tokens[-1] == "--help":
        return None if not tokens or tokens[0] in (*app, "COMMAND", "--help") else f"there is no command {tokens[0]}"
    try:
        app.parse_args(tokens, exit_on_error=False, print_error=False)
    except MissingArgumentError:
        return None
    except CycloptsError as error:
        return str(error)
    return None


def test_commands_are_taken():
    said = {
        (page.name, words): refusal(words) for page in PAGES if page != ROOT / MADE for words in commands(text_of(page))
    }
    assert {where: why for where, why in said.items() if why} == {}
    assert sorted({(page.name, flag) for page in PAGES for flag in flags(text_of(page)) if flag not in KNOWN}) == []


@pytest.mark.parametrize(
    "text",
    [
        "```\nincop search --sparsty 0.9\n```",
        "```console\n$ incop searh\n```",
        "see `incop search --levels many`",
        "```\n.venv/bin/incop search --data digits \\\n  --nowhere x\n```",
        "`incop nothing RUN`",
    ],
)
def test_the_guard_sees(text):
    assert [words for words in commands(text) if refusal(words)]


def test_the_guard_sees_a_flag():
    assert [flag for flag in flags('`--ruel "flow within 0.05"`') if flag not in KNOWN] == ["--ruel"]
    assert "--rule" in KNOWN


def test_many_commands_are_looked_at():
    assert sum(len(list(commands(page.read_text(encoding="utf-8")))) for page in PAGES) > 40


@pytest.mark.parametrize(
    "text",
    ["```\nmake demo  # incop search --x\n```", "`incop: --x needs`", "`incop show RUN`", "`incop search … --seed N`"],
)
def test_the_guard_lets_pass(text):
    assert [words for words in commands(text) if refusal(words)] == []


def test_a_target_of_make_that_a_page_shows_is_there():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        for words in re.findall(r"`make ([^`]*)`", page.read_text(encoding="utf-8")):
            said = [word for word in words.split() if re.fullmatch(r"[a-z][\w-]*", word)]
            assert set(said) <= targets, f"{page.name}: make {words}"


TRANSCRIBED = [page for page in DOCUMENTS if transcripts.BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", TRANSCRIBED, ids=lambda page: page.name)
def test_a_transcript_is_real(page, tmp_path):
    """Run anew, each command prints what the page shows, but for the numbers, which are of one machine and one day."""
    for block in transcripts.BLOCK.findall(page.read_text(encoding="utf-8")):
        for command, shown in transcripts.steps(block):
            assert transcripts.shape(transcripts.printed(command, tmp_path)) == transcripts.shape(shown), command
