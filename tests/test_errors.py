import copy
import pickle

import pytest

from incop.errors import SHOWN, IncopError, InputError, MissingExtra, TrainingError, unknown


@pytest.mark.parametrize(
    ("kind", "builtin"), [(InputError, ValueError), (TrainingError, RuntimeError), (MissingExtra, ImportError)]
)
def test_one_family(kind, builtin):
    assert issubclass(kind, IncopError)
    assert issubclass(kind, builtin)


def test_a_missing_extra_is_told_by_name_and_survives_pickling():
    error = MissingExtra("pyarrow", "data", "reading parquet")
    assert str(error) == (
        "reading parquet needs the package 'pyarrow', which is not installed: pip install 'incop[data]'"
    )
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is MissingExtra
        assert str(twin) == str(error)


@pytest.mark.parametrize("error", [InputError("a"), TrainingError("b"), unknown("model", "x", ["y"])])
def test_errors_survive_pickling(error):
    twin = pickle.loads(pickle.dumps(error))
    assert (type(twin), str(twin)) == (type(error), str(error))


def test_unknown_suggests_the_nearest_whatever_its_case():
    assert "did you mean 'Lenet-5'?" in str(unknown("model", "LENET5", ["Lenet-5", "vgg-16"]))


def test_unknown_suggests_nothing_when_nothing_is_near():
    assert str(unknown("model", "zzz", ["lenet-5"])) == "unknown model 'zzz': (known: lenet-5)"


def test_unknown_names_every_choice_up_to_a_limit():
    few = [f"layer{i}" for i in range(SHOWN)]
    assert all(name in str(unknown("layer", "?", few)) for name in few)
    assert "more" not in str(unknown("layer", "?", few))
    many = str(unknown("layer", "?", [*few, "one", "two"]))
    assert many.endswith("and 2 more)")
    assert "one" not in many


def test_unknown_takes_whatever_was_given():
    assert "unknown level 3" in str(unknown("level", 3, ["a"]))
    assert "(known: none)" in str(unknown("layer", "a", []))
