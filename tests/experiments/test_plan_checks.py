"""What is wrong with a plan is found together, names the nearest valid word, and costs no training."""

import re

import pytest

from incop.errors import InputError
from incop.experiments import datasets
from incop.experiments.plan import Plan
from incop.experiments.plan_checks import of_data
from incop.experiments.preparation import prepare, resolve
from incop.rundir import RunDir

SILLY = {
    "levels": (0, "--levels 0 must be between 1 and 10000"),
    "threads": (10**9, "--threads 1000000000 must be between 1 and 1024"),
    "lr": (float("nan"), "--lr nan must be"),
    "batch_size": (10**30, "--batch-size 1000000000000000000000000000000 must be"),
    "ticket_at": ((0.5, 1.5), "--ticket-at 1.5 must be between 0 and 1"),
    "optimizer": ("sdg", "did you mean 'sgd'"),
    "schedule": ("cosin", "did you mean 'cosine'"),
    "precision": ("float23", "did you mean 'float32'"),
    "device": ("cdua", "did you mean 'cuda'"),
    "method": ("incop-fi", "did you mean 'incop-if'"),
    "model": ("lenet6", "did you mean 'lenet-5'"),
    "data": ("minst", "did you mean 'mnist'"),
    "rule": ("flow wihtin 0.11", "did you mean 'flow within X [relative]'"),
    "meter": ("informaton", "did you mean 'information'"),
    "amount": ("many", "the amount 'many' cannot be read"),
    "selection": ("globl", "did you mean 'global'"),
    "score": ("magnitud", "did you mean 'magnitude'"),
    "rewind": ("erly:2", "did you mean 'early'"),
    "check_every": ("often", "'often' is no stretch of training"),
    "keep": (("int",), "did you mean 'init'"),
}


def test_every_silly_key_is_told_in_one_sentence():
    plan = Plan(**{key: value for key, (value, _) in SILLY.items()})
    with pytest.raises(InputError) as error:
        resolve(plan)
    for key, (_, sentence) in SILLY.items():
        assert sentence in str(error.value), key
    assert "\n" not in str(error.value)
    alone = []
    for key, (value, _) in SILLY.items():
        with pytest.raises(InputError) as one:
            resolve(Plan(**{key: value}))
        alone.append(str(one.value))
    assert sorted(str(error.value).split("; ")) == sorted("; ".join(alone).split("; "))


@pytest.mark.parametrize("key", SILLY)
def test_each_is_told_alone_too(key):
    value, sentence = SILLY[key]
    with pytest.raises(InputError) as error:
        resolve(Plan(**{key: value}))
    assert sentence in str(error.value)


def test_no_rule_of_ten_billion_levels():
    with pytest.raises(InputError, match="more than 10000 levels"):
        resolve(Plan(amount="flow to 0.9 in 10000000000"))


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (Plan(method="lth", rule="flow within 0.1"), "needs a meter, and --meter none measures nothing"),
        (Plan(method="lth", sparsity=0.5, ticket_at=(0.7,)), "--ticket-at 0.7 lies at or beyond --sparsity 0.5"),
        (Plan(method="lth", amount="0.2", levels=5, sparsity=0.9), "the amount 0.2 leads to 0.6723 in 5 levels"),
        (Plan(method="lth", amount="0.2", levels=2, ticket_at=(0.5,)), "--ticket-at 0.5 cannot be reached"),
        (Plan(method="lth", amount="to 0.9 in 10", levels=5, sparsity=0.9), "leads to 0.6838 in 5 levels"),
        (Plan(method="lth", amount="cubic to 0.8 in 10", levels=5, sparsity=0.8), "leads to 0.7000 in 5"),
        (Plan(method="incop", amount="flow to 0.8 in 10", levels=10, sparsity=0.9), "leads to 0.8000"),
        (Plan(method="lth", selection="2:4", sparsity=0.9), "a sparsity of 0.5 whatever the amount"),
        (Plan(method="lth", rewind="early:3", max_epochs=3.0), "at or past the end of the dense network's 3 epochs"),
        (Plan(method="lth", keep=("early:9",), max_epochs=3.0), "--rewind early:9 lies at or past the end"),
        (Plan(method="lth", rewind="early:3", max_epochs=9.0, level_epochs=2.0), "none would be left to train"),
        (Plan(method="dense", levels=2), "'dense' has no pruning levels"),
    ],
)
def test_what_cannot_work_together_is_refused(plan, sentence):
    with pytest.raises(InputError) as error:
        resolve(plan)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(method="lth", amount="0.2", levels=11, sparsity=0.9),
        Plan(method="lth", amount="to 0.9 in 10", levels=10, sparsity=0.9),
        Plan(method="sap", sparsity=0.9, levels=3, amount="pq:1,2"),
        Plan(method="lth", selection="2:4", sparsity=0.5, amount="0.5", levels=1),
        Plan(method="lth", rewind="early:2", max_epochs=3.0, level_epochs=2.5),
        Plan(method="dense"),
    ],
)
def test_what_can_work_is_let_pass(plan):
    assert resolve(plan).plan.method == (plan.method or "incop")


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (
            Plan(limit=100, probe_size=91),
            "--probe-size 91 is larger than the training split of 90 images (--limit 100)",
        ),
        (
            Plan(limit=100, validation=1e-6),
            "--validation 1e-06 of 100 training images (--limit 100) leaves none to validate",
        ),
        (Plan(limit=100, validation=0.999999), "leaves none to train on"),
        (
            Plan(limit=100, method="lth", rewind="early:60steps", max_epochs=2.0, batch_size=10),
            "dense network's 18 steps",
        ),
    ],
)
def test_what_the_data_cannot_give_is_refused(plan, sentence):
    full = resolve(plan)
    with pytest.raises(InputError) as error:
        prepare(full)
    assert sentence in str(error.value)


def test_problems_with_the_data_are_told_together():
    data = datasets.load("digits", limit=100, validation=0.001)
    plan = Plan(limit=100, validation=0.001, probe_size=500, rewind="early:1000steps", batch_size=10)
    found = of_data(resolve(plan), data)
    assert len(found) == 3


def test_unknown_keys_and_wrong_types_come_with_ranges_and_words(tmp_path, capsys, monkeypatch):
    from incop.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.toml").write_text('level = 3\nseed = "x"\nlr = -1.0\nrule = "flow nigh"\nmodel = "lenet6"\n')
    assert main(["search", "p.toml", "--selection", "globl", "--out", "R"]) == 2
    error = capsys.readouterr().err
    for part in ("p.toml: ", "'levels'", "seed = 'x'", "--lr -1.0", "'flow nigh'", "'lenet-5'", "'global'"):
        assert part in error
    assert not (tmp_path / "R").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--selection", "2:4"], "--selection 2:4 leaves 2 of every 4 weights by one cut"),
        (["--selection", "1:4", "--sparsity", "0.75"], "--selection 1:4 leaves 1 of every 4 weights"),
        (["--method", "incop-magnitude", "--selection", "layer"], "--selection layer lets each layer give up"),
        (["--selection", "layer:0.5", "--levels", "3"], "--selection layer:0.5 lets each layer give up"),
    ],
)
def test_a_selection_that_takes_no_planned_cuts_is_told_in_words_that_were_said(
    words, sentence, tmp_path, capsys, monkeypatch
):
    from incop.cli import main

    monkeypatch.chdir(tmp_path)
    quick = ["--max-epochs", "1", "--limit", "50", "--progress", "off", "--out", "R"]
    assert main(["search", *words, *quick]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    method = "incop-magnitude" if "incop-magnitude" in words else "incop"
    assert f"the method '{method}' plans the amounts" in error
    assert "flow to" not in error  # an amount that nobody named
    assert not list(tmp_path.iterdir())
    remedy = re.search(r"choose (--method .*), or leave --selection out$", error.strip())
    assert main(["search", *remedy[1].split(), *quick]) == 0
    if ":4" in words[1]:
        assert len(RunDir.open("R").levels()) == 2  # the pattern is cut once, and there is no level after it


def test_a_comparison_with_such_a_selection_trains_nothing(tmp_path, capsys, monkeypatch):
    from incop.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--methods", "incop", "--selection", "2:4", "--seeds", "1", "--out", "C"]) == 2
    assert "the method 'incop' plans the amounts" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_planned_amount_that_was_said_is_named_and_its_remedies_pass():
    said = Plan(method="lth", amount="flow to 0.9 in 10", levels=10)
    with pytest.raises(
        InputError, match=r"--selection layer:0\.5 .* and --amount 'flow to 0\.9 in 10' plans the amounts"
    ):
        resolve(said)
    assert resolve(Plan(selection="global").over(said)).plan.selection == "global"
    assert resolve(Plan(amount="0.2").over(said)).plan.amount == "0.2"
    for whole_network in ("units", "units:layer", "global"):
        assert resolve(Plan(selection=whole_network)).plan.selection == whole_network


def test_numbers_that_stand_for_words_keep_their_digits():
    assert Plan.from_mapping({"amount": 0.123456789}).amount == "0.123456789"
    with pytest.raises(InputError, match=r"amount = 1000000000.* must be a text"):
        Plan.from_mapping({"amount": 10**30})
