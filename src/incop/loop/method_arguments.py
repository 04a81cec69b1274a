"""The arguments of a search that a method's row gives where the user gives none."""

from __future__ import annotations

from typing import Any

from incop import flow, methods, pruning, stopping
from incop.errors import InputError
from incop.loop.tickets import budget_of
from incop.recipe import LevelRecipe


def with_method(given: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the arguments of a search with those of a method in place of every None.

    Args:
        given: the arguments by name; those that the user left out are None.
        name: one of `incop.methods.METHODS`.

    Raises:
        InputError: there is no such method, or the trainer does not say its epochs, of which the method's levels take shares.
    """
    trainer = given["trainer"]
    epochs = budget_of(trainer, 1)
    methods.method(name)
    if epochs is None:
        raise InputError(
            f"the method {name!r} trains shares of a level's budget, and the trainer ({type(trainer).__name__}) does not say it: "
            "give it an attribute `epochs`, the epochs of a level trained in full"
        )
    asked = {key: given[key] for key in ("sparsity", "levels", "max_drop")}
    row = methods.arguments(name, epochs=epochs, **asked)
    found: dict[str, Any] = {
        **{key: row.get(key) for key in ("levels", "sparsity", "rewind", "check_every")},
        "amount": pruning.parse_amount(row["amount"]),
        "selection": pruning.parse_selection(row["selection"]),
        "score": pruning.parse_score(row.get("score", "magnitude"), seed=int(getattr(trainer, "seed", 0))),
        "meter": flow.parse_meter(row["meter"]),
        "rule": None if row["rule"] == "none" else stopping.parse(row["rule"]),
    }
    if "search_lr" in row:
        batch = 1 / methods.BATCH_SHARE
        found["search_recipe"] = LevelRecipe(1.0, batch, row["search_lr"], row["keep_optimizer"])
        if "last_epochs" in row:
            found["last_recipe"] = LevelRecipe(row["last_epochs"] / epochs, batch, row["search_lr"])
    if callable(getattr(trainer, "probe", None)):
        found["probe"] = trainer.probe()
    return given | {key: value for key, value in found.items() if given[key] is None}
