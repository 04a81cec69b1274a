"""Recipes: a method's way of training reaches any trainer through the watch, relative to the trainer's own settings."""

import pytest
import torch
from torch import nn

import incop
from incop import stopping
from incop.errors import InputError
from incop.recipe import USUAL, LevelRecipe

X, Y = torch.randn(240, 6, generator=torch.Generator().manual_seed(0)), torch.arange(240) % 3


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("name", "value"),
    [("budget", 0.0), ("budget", 1.5), ("batch", -1), ("batch", float("nan")), ("lr", 0), ("lr", "x"), ("lr", True)],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name}="):
        LevelRecipe(**{name: value})


def test_a_batch_is_a_share_rounded_down_and_never_empty():
    assert [LevelRecipe(batch=1 / 3).batch_size(n) for n in (60, 64, 3, 1)] == [20, 21, 1, 1]
    assert USUAL.batch_size(7) == 7


def records(**more):
    trainer = incop.Trainer(
        (X, Y), (X, Y), epochs=4, schedule="cosine", **({"batch_size": 60} | more.pop("trainer", {}))
    )
    arguments = {"levels": 3, "rewind": "rate", "rule": stopping.AfterEpochs(0.5), "check_every": 0.5} | more
    return [ticket.record for ticket in incop.search(network(), trainer, **arguments)], trainer


def test_search_levels_and_the_last_are_trained_by_their_recipes():
    levels, _ = records(search_recipe=LevelRecipe(batch=0.5, lr=2.0), last_recipe=LevelRecipe(budget=0.25, batch=0.5))
    assert [level.epochs for level in levels] == [4, 0.5, 0.5, 1]
    assert [level.steps for level in levels] == [16, 4, 4, 8]
    assert [level.max_epochs for level in levels] == [4, 4, 4, 1]


def test_a_recipe_trains_as_the_trainers_own_settings_for_the_search_do():
    by_recipe, _ = records(search_recipe=LevelRecipe(batch=1 / 3, lr=2.0, keep_optimizer=True))
    own = {"search_batch_size": 20, "search_lr": 2.0, "keep_optimizer": True}
    by_trainer, _ = records(trainer=own)
    plain, _ = records()
    assert [level.val_accuracy for level in by_recipe] == [level.val_accuracy for level in by_trainer]
    assert (
        [level.steps for level in by_recipe]
        == [level.steps for level in by_trainer]
        != [level.steps for level in plain]
    )


def test_the_schedule_spans_the_recipes_budget():
    rates = []

    class Told(incop.Trainer):
        def rate(self, epoch, *, of=None):
            found = super().rate(epoch, of=of)
            rates.append((epoch, of))
            return found

    trainer = Told((X, Y), (X, Y), epochs=4, batch_size=60, schedule="cosine")
    list(incop.search(network(), trainer, levels=1, rewind="rate", last_recipe=LevelRecipe(budget=0.25)))
    assert rates[16:] == [(0.0, 1.0), (0.25, 1.0), (0.5, 1.0), (0.75, 1.0)]


def test_an_own_fit_is_told_its_recipe_and_when_it_changes():
    told = []

    class Own:
        epochs = 4.0

        def fit(self, model, masks, watch):
            for _ in range(4):
                told.append((watch.level, watch.recipe))
                if watch.look(accuracy=0.5).stop:
                    return

        def evaluate(self, model):
            return 0.5

    search, last = LevelRecipe(lr=2.0), LevelRecipe(budget=0.5)
    arguments = {"amount": 0.5, "levels": 2, "rewind": "rate", "rule": stopping.AfterEpochs(2)}
    levels = [
        ticket.record
        for ticket in incop.search(
            network(), Own(), **arguments, ticket_at=[0.5], search_recipe=search, last_recipe=last
        )
    ]
    assert [one for level, one in told if level == 0] == [USUAL] * 4
    assert [one for level, one in told if level == 1] == [search, search, last, last]
    assert [one for level, one in told if level == 2] == [last] * 4
    assert [level.max_epochs for level in levels] == [4, 2, 2]
