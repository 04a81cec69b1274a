"""The application: commands by name, and one sentence with the right exit status for whatever goes wrong."""

from __future__ import annotations

import sys
import traceback

from cyclopts import App, CycloptsError

import incop
from incop import distributed
from incop.cli.bench_export import bench_export
from incop.cli.compare import compare
from incop.cli.export import export
from incop.cli.list_ import list_
from incop.cli.measure import measure
from incop.cli.replay import replay
from incop.cli.report import report
from incop.cli.resume import resume
from incop.cli.search import search
from incop.cli.show import show
from incop.cli.tables import printable
from incop.errors import Diverged, IncopError, InputError, MissingExtra

HELP = """Find sparse networks by iterative pruning, guided by the flow of information between their layers.

Start with `incop search`: it needs no data and ends in seconds.
"""

LONGEST = 4000  # signs of a sentence: the values in it may be of any length

app = App(name="incop", help=HELP, version=incop.__version__, help_format="plaintext")
app.command(search, name="search")
app.command(resume, name="resume")
app.command(compare, name="compare")
app.command(export, name="export")
app.command(bench_export, name="bench-export")
app.command(replay, name="replay")
app.command(report, name="report")
app.command(measure, name="measure")
app.command(show, name="show")
app.command(list_, name="list")


def run(arguments: list[str]) -> int:
    """Carry out one command; print a sentence instead of a traceback, unless --debug is among the words."""
    debug = "--debug" in arguments
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _complain(str(error), 2, error)
    try:
        command(*bound.args, **bound.kwargs)
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            traceback.print_exc()
        return _status(error)
    return 0


def _status(error: BaseException) -> int:  # noqa: PLR0911  # one return for each way a command may end
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if isinstance(error, KeyboardInterrupt):
        return _complain(
            str(error) or "interrupted; what was finished is in the run folder", getattr(error, "status", 130), error
        )
    if isinstance(error, BrokenPipeError):  # the reader of our output went away, as in `incop show RUN | head -1`
        sys.stderr.close()
        return 1
    if isinstance(error, InputError | MissingExtra):
        return _complain(str(error), 2, error)
    if isinstance(error, IncopError):
        return _complain(str(error), 1, error)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"{error.strerror or error}{where}", 1)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _complain("out of memory: lower --batch-size or --probe-size, or use a smaller network", 1)
    if not isinstance(error, Exception):
        raise error
    first = (str(error).strip() or "no message").splitlines()[0]
    return _complain(f"unexpected {type(error).__name__}: {first} (run again with --debug to see where)", 1)


def _told_by_another(error: BaseException) -> bool:
    """Say whether the first of several processes tells this one's error too: one sentence is enough."""
    return distributed.number() > 0 and (
        getattr(error, "shared", False) or isinstance(error, Diverged | KeyboardInterrupt | CycloptsError)
    )


def _complain(sentence: str, status: int, error: BaseException | None = None) -> int:
    if error is not None and _told_by_another(error):
        return status
    if distributed.number() > 0:
        sentence = f"process {distributed.number()}: {sentence}"
    said = printable(" ".join(sentence.split()))
    shown = said if len(said) <= LONGEST else f"{said[:LONGEST]} …"
    print(f"incop: {shown}", file=sys.stderr)
    return status
