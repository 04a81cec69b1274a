"""Models in the user's own code, weights from a file, arguments; a stranger's plan does not run code until someone says so."""

import json
import os
import sys
import tomllib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from incop import Masks, checkpoint_files
from incop.cli import main
from incop.errors import InputError
from incop.experiments import models, runs
from incop.experiments.comparison import pair
from incop.experiments.models.named import LIBRARIES, Named, parse
from incop.experiments.plan import Plan
from incop.experiments.preparation import prepare, resolve
from incop.experiments.run_levels import rebuild
from incop.rundir import RunDir

NET = """
import pathlib
from torch import nn
from beside import activation

pathlib.Path("ran").touch()

def make(classes, channels, size, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], width), activation(), nn.Linear(width, classes))

class Net(nn.Module):
    def __init__(self, num_classes, in_chans, img_size):
        super().__init__()
        self.body = make(num_classes, in_chans, img_size)

    def forward(self, x):
        return {"logits": self.body(x), "more": x}

def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(9), nn.ReLU(), nn.LazyLinear(classes))

def wrong(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes + 1))

def numpy_drawn(classes):
    import numpy as np, random, torch
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(np.random.rand(classes, 64) + random.random()))
    return model

def throws(classes):
    raise KeyError("no such thing")

def leaves(classes):
    raise SystemExit(3)

def frozen(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).requires_grad_(False)

NUMBER = 7
def number(classes): return 7
def needs(classes, depth): return make(classes, 1, (8, 8))
"""
BESIDE = "from torch import nn\n\ndef activation():\n    return nn.ReLU()\n"
QUICK = ("--method", "lth", "--max-epochs", "1", "--levels", "1", "--limit", "120")
SHAPE = {"channels": 1, "size": (8, 8), "classes": 10}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "beside.py").write_text(BESIDE)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("beside", "own_package", "own_package.nets") or name.startswith("incop_model_"):
            del sys.modules[name]


def incop(*words):
    return main([str(word) for word in words])


def built(name, **more):
    return models.build(name, **{**SHAPE, "seed": 0, "run_code": True, **more})


# --- names -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("lenet-5", None),
        ("torchvision:resnet18", Named("torchvision", "", "resnet18")),
        ("timm:hf_hub:x", Named("timm", "", "hf_hub:x")),
        ("hf:/a/b", Named("hf", "", "/a/b")),
        ("a/b.py:make", Named("file", "a/b.py", "make")),
        ("b.py:Net.small", Named("file", "b.py", "Net.small")),
        ("package.nets:make", Named("module", "package.nets", "make")),
    ],
)
def test_names_are_read_without_opening_anything(name, found):
    assert parse(name) == found
    assert (found is not None and found.is_code) == (models.code_of(name) is not None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("net.py", "is a file: name the function in it that makes the network, net.py:make"),
        ("torchvison:resnet18", "did you mean 'torchvision:resnet18'"),
        ("hf:", "names nothing of hf"),
        ("a b:c", "cannot be read"),
        ("net.py:", "cannot be read"),
        (":make", "cannot be read"),
        ("net.py:mke", "net.py has nothing called 'mke': did you mean 'make'"),
        ("nowhere.py:make", "the model's file 'nowhere.py' does not exist"),
        ("timmm", "did you mean 'timm:…'"),
        ("~nobody-at-all/net.py:make", "home of an unknown user"),
        ("a\0b.py:make", "does not exist"),
    ],
)
def test_a_name_that_is_none_is_told_in_one_sentence(name, sentence):
    with pytest.raises(InputError) as error:
        models.check_name(name)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_no_library_is_imported_for_another_name():
    before = set(sys.modules)
    for name in ("lenet-5", "net.py:make", "package.nets:make"):
        models.check_name(name)
    assert not {"torchvision", "timm", "transformers", "package"} & (set(sys.modules) - before)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_library_names_its_extra(library, monkeypatch):
    monkeypatch.setitem(sys.modules, {"hf": "transformers"}.get(library, library), None)
    with pytest.raises(ImportError, match=r"pip install 'incop\[(vision|transformers)\]'"):
        models.build(f"{library}:resnet18", **SHAPE)


def test_a_library_for_another_torch_is_told(monkeypatch, folder):
    (folder / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(InputError, match=r"torchvision does not match this torch .operator torchvision::nms"):
        models.build("torchvision:resnet18", **SHAPE)


def test_pairs_of_a_comparison_may_name_them():
    assert pair("mnist/timm:vit_tiny") == ("mnist", "timm:vit_tiny")
    assert pair("/data/mine/hf:/models/vit") == ("/data/mine", "hf:/models/vit")
    assert pair("digits/net.py:make") == ("digits", "net.py:make")


# --- building ----------------------------------------------------------------------------------------------------------------


def test_a_factory_is_given_what_it_takes_by_its_own_names():
    model = built("net.py:make", arguments={"width": 5})
    assert [tuple(p.shape) for p in model.parameters()] == [(5, 64), (5,), (10, 5), (10,)]
    assert built("net.py:Net")(torch.zeros(2, 1, 8, 8))["logits"].shape == (2, 10)
    assert model.training


@pytest.mark.parametrize("factory", ["make", "lazy", "numpy_drawn"])
def test_weights_are_drawn_by_the_seed_and_random_states_stay(factory):
    before = torch.get_rng_state()

    def weights(seed):
        return torch.cat([p.detach().flatten() for p in built(f"net.py:{factory}", seed=seed).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("net.py:make", {"widht": 3}, "takes no 'widht': did you mean 'width'"),
        ("net.py:needs", {}, "cannot be called with classes: missing a required argument: 'depth'"),
        ("net.py:wrong", {}, r"gives an output of shape \(2, 11\) for two samples of 10 classes"),
        ("net.py:throws", {}, "failed with KeyError: 'no such thing' .*net.py, line"),
        ("net.py:leaves", {}, "failed with SystemExit: 3"),
        ("net.py:number", {}, "made a int, not a torch.nn.Module"),
        ("net.py:NUMBER", {}, "is a int: name a function or class"),
        ("net.py:frozen", {}, "has no weight that could be trained"),
        ("net.py:make", {"size": (28, 28)}, "cannot take 1×8×8 images of 10 classes .RuntimeError"),
        ("nowhere.nets:make", {}, "there is no module 'nowhere'"),
        ("json:nothing", {}, "json has nothing called 'nothing'"),
        ("json:loads", {}, "cannot be called|takes no"),
    ],
)
def test_code_that_makes_no_network_is_told_in_one_sentence(name, arguments, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        built(name, arguments=arguments)
    assert "\n" not in str(error.value)


def test_code_that_cannot_be_read_or_needs_what_is_not_there(folder):
    (folder / "torn.py").write_text("def make(:\n")
    with pytest.raises(InputError, match="cannot be read as Python"):
        built("torn.py:make")
    (folder / "poor.py").write_text("import not_there_at_all\ndef make(classes): ...\n")
    with pytest.raises(InputError, match="needs the module 'not_there_at_all'"):
        built("poor.py:make")


def test_a_file_that_was_changed_within_a_second_is_read_anew(folder, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    one = "from torch import nn\ndef make(classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes), nn.ReLU())\n"
    two = one.replace("ReLU", "Tanh")
    kinds = []
    for text in (one, two):
        (folder / "same.py").write_text(text)
        os.utime(folder / "same.py", (1_700_000_000, 1_700_000_000))
        kinds.append(type(built("same.py:make")[2]))
    assert kinds == [nn.ReLU, nn.Tanh]
    assert not (folder / "__pycache__").exists() or not list((folder / "__pycache__").glob("same*"))


def test_a_module_is_found_from_its_folder(folder):
    (folder / "own_package").mkdir()
    (folder / "own_package" / "__init__.py").touch()
    (folder / "own_package" / "nets.py").write_text(NET)
    assert built("own_package.nets:make")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert str(folder) not in sys.path


@pytest.mark.parametrize("text", ["[1]", "{", "7", '{"a b": 1}', '"x"', "{1: 2}"])
def test_arguments_that_are_no_object(text, capsys):
    assert incop("search", "--model", "net.py:make", "--model-args", text, "--out", "R") == 2
    assert "--model-args" in capsys.readouterr().err


def test_networks_of_the_table_take_no_arguments():
    with pytest.raises(InputError, match="lenet-5 takes no model_args: 'width'"):
        built("lenet-5", arguments={"width": 3})


# --- weights -----------------------------------------------------------------------------------------------------------------


def test_weights_from_a_file_and_another_number_of_classes(folder):
    source = built("net.py:make", seed=5)
    save_file(source.state_dict(), folder / "w.safetensors")
    same = built("net.py:make", weights="w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), source.parameters(), strict=True))
    made = models.make("net.py:make", **{**SHAPE, "classes": 3}, seed=0, run_code=True, weights="w.safetensors")
    assert torch.equal(made.model[1].weight, source[1].weight)
    assert any("3.bias and 3.weight has another shape" in notice for notice in made.notices)
    assert torch.equal(made.model[3].weight, built("net.py:make", classes=3)[3].weight)  # drawn, as without a file
    with pytest.raises(InputError, match=r"do not fit this network: it lacks 'conv1.bias'"):
        built("lenet-5", weights="w.safetensors")
    with pytest.raises(InputError, match="tensors have other shapes"):
        built("net.py:make", arguments={"width": 4}, weights="w.safetensors")


def test_tied_weights_need_not_be_stored_twice(folder):
    (folder / "tied.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, classes)\n"
        "        self.b.weight = self.a.weight\n"
        "    def forward(self, x): return self.c(self.b(self.a(x.flatten(1)).relu()).relu())\n"
    )
    source = built("tied.py:Net", seed=5)
    save_file({k: v.clone() for k, v in source.state_dict().items() if k != "b.weight"}, folder / "w.safetensors")
    again = built("tied.py:Net", weights="w.safetensors")
    assert torch.equal(again.b.weight, source.a.weight)
    assert again.b.weight is again.a.weight


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "pytorch_model.bin", "w.ckpt"])
def test_a_pickle_of_weights_is_refused_with_what_to_do(name, folder):
    (folder / name).write_bytes(b"\x80\x02cos\nsystem\nq\x00.")
    with pytest.raises(InputError, match=r"is a pickle, which may run code .* weights_only=True"):
        built("lenet-5", weights=name)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("nowhere.safetensors", "there is no file"),
        ("pretraind", "did you mean 'pretrained'"),
        ("pretrained", "code of your own, which has no pretrained weights"),
    ],
)
def test_weights_that_are_not_there(weights, sentence):
    with pytest.raises(InputError, match=sentence):
        built("net.py:make", weights=weights)


def test_networks_of_the_table_have_no_pretrained_weights():
    with pytest.raises(InputError, match="lenet-5 has no pretrained weights"):
        built("lenet-5", weights="pretrained")


# --- consent -----------------------------------------------------------------------------------------------------------------


def test_a_model_named_on_the_command_line_is_run_and_told(folder, capsys):
    assert incop("search", "--model", "net.py:make", "--model-args", '{"width": 6}', *QUICK, "--out", "R") == 0
    captured = capsys.readouterr()
    assert captured.err.strip() == f"incop: the model is code, which is run: {folder / 'net.py'}"
    assert (folder / "ran").exists()
    run = RunDir.open(folder / "R")
    assert any("the model is code that was run" in notice for notice in run.levels()[0].notices)
    plan = tomllib.loads((folder / "R" / "plan.toml").read_text())
    assert plan["model"] == f"{folder / 'net.py'}:make"
    assert json.loads(plan["model_args"]) == {"width": 6}
    assert "run_code" not in plan
    assert "sha256" in run.read_summary().environment["model_code"]


@pytest.fixture
def finished(folder, capsys):
    """Return a run of code that has ended; from here on nobody has run anything."""
    assert incop("search", "--model", "net.py:make", *QUICK, "--out", "R") == 0
    (folder / "ran").unlink()
    for name in [name for name in sys.modules if name.startswith("incop_model_")]:
        del sys.modules[name]
    capsys.readouterr()
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["search", "R/plan.toml", "--out", "R2"],
        ["search", "R", "--out", "R2", "--lr", "0.1"],
        ["measure", "R"],
        ["resume", "broken"],
        ["compare", "comparison.toml", "--out", "C"],
        ["compare", "comparison.toml", "--out", "C", "--dry-run"],
    ],
)
def test_a_strangers_plan_runs_no_code_until_it_is_said(words, finished, capsys):
    plan = tomllib.loads((finished / "R" / "plan.toml").read_text())
    (finished / "broken").mkdir()
    (finished / "broken" / "plan.toml").write_bytes((finished / "R" / "plan.toml").read_bytes())
    (finished / "comparison.toml").write_text(
        'methods = ["lth"]\nseeds = 1\nsparsities = [0.3]\npairs = ["digits/net.py:make"]\ncontrols = false\n'
        "[plan]\nmax_epochs = 1\nlimit = 120\n"
    )
    assert incop(*words) == 2
    error = capsys.readouterr().err
    assert "is code" in error
    assert "--run-code" in error
    assert len(error.strip().splitlines()) == 1
    assert not (finished / "ran").exists()
    assert not (finished / "R2").exists()
    assert plan["model"].endswith("net.py:make")
    assert incop(*words, "--run-code") == 0, capsys.readouterr().err
    assert (finished / "ran").exists() or words[0] == "compare"  # whose runs are other processes, in other folders


def test_what_only_reads_a_run_needs_no_word(finished, capsys):
    for words in (
        ["show", "R"],
        ["report", "R"],
        ["replay", "R", "--rule", "after 1 epochs"],
        ["report", "R", "--format", "json"],
    ):
        assert incop(*words) == 0, capsys.readouterr().err
    assert not (finished / "ran").exists()


def test_no_file_says_that_code_may_run(finished, capsys):
    plan = finished / "R" / "plan.toml"
    plan.write_text(plan.read_text() + "run_code = true\n")
    for words in (["search", "R/plan.toml", "--out", "R2"], ["measure", "R"]):
        assert incop(*words) == 2
        assert "run_code cannot stand in a file" in capsys.readouterr().err
    (finished / "c.toml").write_text('methods = ["lth"]\npairs = ["digits/net.py:make"]\n[plan]\nrun_code = true\n')
    assert incop("compare", "c.toml", "--out", "C") == 2
    assert "run_code cannot stand in a file" in capsys.readouterr().err
    assert not (finished / "ran").exists()


def test_the_library_runs_no_code_without_the_word_either(finished):
    with pytest.raises(InputError, match="--run-code"):
        models.build("net.py:make", **SHAPE)
    with pytest.raises(InputError, match="--run-code"):
        resolve(Plan(model="net.py:make"))
    (finished / "broken").mkdir()
    (finished / "broken" / "plan.toml").write_bytes((finished / "R" / "plan.toml").read_bytes())
    with pytest.raises(InputError, match="--run-code"):
        runs.resume(finished / "broken")
    with pytest.raises(InputError, match="--run-code"):
        rebuild(RunDir.open(finished / "R"), 1)
    assert not (finished / "ran").exists()
    parts, _ = rebuild(RunDir.open(finished / "R"), 1, Plan(run_code=True))
    stored = checkpoint_files.load_weights(finished / "R" / "level_01")
    assert all(torch.equal(parts.model.state_dict()[name], tensor) for name, tensor in stored.items())


def test_a_run_begun_from_weights_is_read_back_without_them(folder, capsys):
    save_file(built("net.py:make", seed=5).state_dict(), folder / "w.safetensors")
    words = ["--model", "net.py:make", "--weights", "w.safetensors", "--rewind", "init", *QUICK, "--out", "R"]
    assert incop("search", *words) == 0
    assert tomllib.loads((folder / "R" / "plan.toml").read_text())["weights"] == str(folder / "w.safetensors")
    assert any("began with the weights of" in notice for notice in RunDir.open("R").levels()[0].notices)
    (folder / "w.safetensors").unlink()
    assert incop("measure", "R", "--run-code") == 0, capsys.readouterr().err
    assert incop("search", "R/plan.toml", "--run-code", "--out", "R2") == 2
    assert "there is no file" in capsys.readouterr().err


# --- resume ------------------------------------------------------------------------------------------------------------------


def cut_off(plan, out):
    def stop(level, epoch, step):
        if level == 1 and step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.execute(plan, out, runs.Progress(on_step=stop))


def test_a_run_of_code_is_gone_on_with_to_the_bit_and_changed_code_is_told(folder):
    said = Plan(
        model="net.py:make",
        run_code=True,
        method="lth",
        max_epochs=2.0,
        levels=2,
        limit=150,
        checkpoint_every="1steps",
        model_args='{"width": 9}',
    )
    plan = resolve(said)
    runs.execute(plan, "whole")
    cut_off(plan, "cut")
    told = []
    runs.resume("cut", runs.Progress(on_notice=told.append), run_code=True)
    assert any(f"the model is code, which is run: {folder / 'net.py'}" in notice for notice in told)
    for level in ("level_01", "level_02"):
        assert (folder / "cut" / level / "weights.safetensors").read_bytes() == (
            folder / "whole" / level / "weights.safetensors"
        ).read_bytes()
    cut_off(plan, "changed")
    (folder / "net.py").write_text(NET.replace("activation(), nn.Linear", "nn.Tanh(), nn.Linear"))
    with pytest.raises(InputError, match=r"was begun with the model's code .*net.py sha256 \w+, now .*--inexact"):
        runs.resume("changed", run_code=True)
    told.clear()
    runs.resume("changed", runs.Progress(on_notice=told.append), run_code=True, inexact=True)
    assert any("model_code was" in notice for notice in told)


def test_the_zeros_of_a_factorys_network_are_those_of_its_ticket(folder):
    plan = resolve(Plan(model="net.py:Net", run_code=True, method="lth", max_epochs=1.0, levels=2, limit=120))
    runs.execute(plan, "R")
    parts, masks = rebuild(RunDir.open("R"), 2, Plan(run_code=True))
    assert Masks.of(parts.model).within(masks)
    assert prepare(plan).origin.startswith(str(folder / "net.py"))
