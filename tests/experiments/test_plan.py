import dataclasses
import tomllib

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from incop.errors import InputError
from incop.experiments.plan import DEFAULTS, RANGES, Plan

KEYS = [f.name for f in dataclasses.fields(Plan)]


def test_every_key_is_explained_with_its_default():
    import contextlib
    import io
    from typing import Annotated

    from cyclopts import App, Parameter

    app = App(help_format="plaintext")

    @app.default
    def run(*, plan: Annotated[Plan, Parameter(name="*")] = Plan()) -> None: ...  # noqa: B008

    with contextlib.redirect_stdout(io.StringIO()) as out:
        app.help_print([])
    text = " ".join(out.getvalue().replace("│", " ").split())
    for key in KEYS:
        assert f"--{key.replace('_', '-')}" in text, key
    assert text.count("Default:") >= len(KEYS) - 1  # --sparsity has none


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "data": st.text(max_size=10),
            "levels": st.integers(1, 100),
            "lr": st.floats(1e-9, 10),
            "check_before": st.booleans(),
            "skip": st.lists(st.text("abc.*", max_size=5), max_size=3),
        },
    )
)
def test_toml_there_and_back(values):
    plan = Plan.from_mapping(values)
    again = Plan.from_mapping(tomllib.loads(tomli_w.dumps(plan.given())))
    assert again == plan


def test_flags_go_before_the_file():
    assert Plan(seed=3).over(Plan(seed=1, levels=2)) == Plan(seed=3, levels=2)


def test_numbers_may_stand_for_words_and_whole_numbers_for_fractions():
    plan = Plan.from_mapping({"amount": 0.2, "check_every": 2, "max_epochs": 3, "probe-size": 10})
    assert (plan.amount, plan.check_every, plan.max_epochs, plan.probe_size) == ("0.2", "2", 3.0, 10)


def test_all_problems_are_told_at_once():
    with pytest.raises(InputError) as error:
        Plan.from_mapping({"level": 3, "seed": "one", "augment": 1, "skip": "fc1"}, source="p.toml")
    for part in (
        "p.toml",
        "did you mean 'levels'",
        "seed = 'one' must be a whole number",
        "augment = 1 must be true or false",
        "skip = 'fc1' must be a list, each a text",
    ):
        assert part in str(error.value)
    with pytest.raises(InputError) as error:
        Plan(levels=0, sparsity=1.2, lr=-1.0).check()
    for part in ("--levels 0", "--sparsity 1.2", "--lr -1.0"):
        assert part in str(error.value)


@pytest.mark.parametrize("key", RANGES)
def test_ranges_belong_to_keys_and_hold_the_defaults(key):
    assert key in KEYS
    if key in DEFAULTS:
        Plan(**{key: DEFAULTS[key]}).check()


@pytest.mark.parametrize(
    "values",
    [
        {"levels": 0},
        {"sparsity": 0.0},
        {"sparsity": 1.0},
        {"seed": -1},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"momentum": 1.0},
        {"validation": 1.0},
        {"limit": 1},
        {"probe_size": 1},
        {"batch_size": 0},
        {"max_epochs": 0.0},
        {"threads": 0},
    ],
)
def test_out_of_range(values):
    with pytest.raises(InputError, match="must be"):
        Plan(**values).check()


def test_dense_may_have_no_levels():
    Plan(method="dense", levels=0).check()
