"""`incop list`: the names that search takes."""

from __future__ import annotations

from typing import Literal

from incop.cli.tables import plain_console, table


def list_(
    what: Literal["all", "models", "data", "methods", "selections", "rules"] = "all", /, *, debug: bool = False
) -> None:
    """List networks, data sets, methods, selections and rules by name.

    Parameters
    ----------
    what
        models, data, methods, selections, rules, or all.
    debug
        Show where an error came from.
    """
    from incop import methods
    from incop.experiments import datasets, models  # imports torch
    from incop.pruning.selection import SELECTIONS
    from incop.stopping import PHRASES

    console = plain_console()
    if what in ("all", "models"):
        entries = [models.entry(name) for name in models.names()]
        rows = [[e.name, e.source, f"{e.parameters:,}"] for e in entries]
        console.print(table("models", ("name", "source", "parameters"), rows, numbers=1))
        console.print(f"others by name: {models.FORMS}", highlight=False, soft_wrap=True)
    if what in ("all", "data"):
        data = [
            [r.name, f"{r.train:,}", f"{r.test:,}", "×".join(map(str, r.shape)), str(r.classes), str(r.found)]
            for r in datasets.describe()
        ]
        console.print(table("data", ("name", "train", "test", "shape", "classes", "found"), data))
    if what in ("all", "methods"):
        console.print(table("methods", ("name", "what it is"), list(methods.describe().items())))
    if what in ("all", "selections"):
        rows = [[form, about] for _, form, about, _ in SELECTIONS]
        console.print(table("selections", ("words", "who competes"), rows))
    if what in ("all", "rules"):
        console.print(table("rules, joined by 'or' and 'and'", ("words",), [[form] for _, form, _ in PHRASES]))
