"""When a run reads the test split: once for every ticket it reports, and never for the steps of a search unless asked."""

import pytest

from incop.experiments import runs
from incop.experiments.plan import Plan
from incop.experiments.preparation import resolve
from incop.training import Trainer

SMALL = Plan(method="incop", sparsity=0.8, levels=4, max_epochs=1.0, limit=150, seed=2, threads=1)


@pytest.fixture
def reads(monkeypatch):
    """Sizes of the splits that were read as test splits, one a reading."""
    found, evaluate = [], Trainer.evaluate

    def counted(self, model, split=None):
        if split is not None:
            found.append(len(split[1]))
        return evaluate(self, model, split)

    monkeypatch.setattr(Trainer, "evaluate", counted)
    return found


def run(tmp_path, **said):
    return runs.execute(resolve(Plan(**said).over(SMALL)), tmp_path / "R").levels()


def read_at(levels):
    return [level.level for level in levels if level.test_accuracy is not None]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, [0, 4]),
        ({"test_levels": True}, [0, 1, 2, 3, 4]),
        ({"last_level_full": False}, [0, 4]),
        ({"rule": "none"}, [0, 1, 2, 3, 4]),  # every level is trained in full
        ({"method": "lth-rate", "amount": "0.4"}, [0, 1, 2, 3, 4]),
        (
            {
                "method": "lth-rate",
                "amount": "0.4",
                "rule": "after 0.3 epochs",
                "check_every": "0.3",
                "test_levels": False,
            },
            [0, 4],
        ),
        (
            {
                "method": "lth-rate",
                "amount": "0.7",
                "rule": "after 0.3 epochs",
                "check_every": "0.3",
                "test_levels": False,
            },
            [0, 2],
        ),
    ],
)
def test_the_test_split_is_read_for_tickets_in_full_or_for_every_level(tmp_path, reads, said, wanted):
    levels = run(tmp_path, **said)
    assert read_at(levels) == wanted
    assert len(reads) == len(wanted)
    assert len(set(reads)) == 1
    assert all(level.val_accuracy is not None for level in levels)


def test_the_test_split_is_read_for_tickets_on_the_way(tmp_path, reads):
    levels = run(tmp_path, ticket_at=(0.5,), rule="after 0.2 epochs", check_every="0.2")
    reported = [level for level in levels if level.search is not None]
    assert len(reported) == 1
    assert 0.9 < reported[0].epochs < 1  # what is left of the budget is rounded to whole steps of the recipe's batches
    assert read_at(levels) == [0, reported[0].level, levels[-1].level]
    assert len(reads) == 3


def test_reading_the_test_split_changes_nothing_else(tmp_path):
    def rest(folder, **said):
        folder.mkdir()
        levels = [level.to_json() for level in run(folder, **said)]
        return [{k: v for k, v in level.items() if "seconds" not in k and k != "test_accuracy"} for level in levels]

    assert rest(tmp_path / "a") == rest(tmp_path / "b", test_levels=True)
