"""Models of torchvision, timm and transformers by their names: tiny, random, offline; and what cannot be had is told."""

import json
import os
import subprocess
import sys
import tomllib

import pytest
import torch
from safetensors.torch import save_file

from incop import Masks
from incop.cli import main
from incop.errors import InputError
from incop.experiments import models, runs
from incop.experiments.plan import Plan
from incop.experiments.preparation import resolve
from incop.experiments.run_levels import rebuild
from incop.rundir import RunDir

pytestmark = pytest.mark.filterwarnings("ignore")  # what libraries' own imports and builders warn of is not ours
GREY = {"channels": 1, "size": (8, 8), "classes": 10}
COLOUR = {"channels": 3, "size": (32, 32), "classes": 7}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 4}
TIMM_VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def incop(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize(
    ("name", "shape", "arguments"),
    [
        ("torchvision:resnet18", COLOUR, {}),
        ("torchvision:squeezenet1_1", COLOUR, {}),
        ("timm:resnet10t", GREY | {"size": (32, 32)}, {}),
        ("timm:vit_tiny_patch16_224", GREY, TIMM_VIT),
        ("timm:vit_tiny_patch16_224.augreg_in21k", GREY, TIMM_VIT),
        ("hf:vit", GREY, VIT),
        (
            "hf:resnet",
            GREY | {"size": (32, 32)},
            {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "embedding_size": 8},
        ),
    ],
)
def test_built_for_the_data_at_hand_by_the_seed(name, shape, arguments):
    before = torch.get_rng_state()
    one, same, other = (models.build(name, **shape, arguments=arguments, seed=seed) for seed in (0, 0, 1))
    output = one.eval()(torch.zeros(2, shape["channels"], *shape["size"]))
    assert getattr(output, "logits", output).shape == (2, shape["classes"])
    pairs = list(zip(one.state_dict().values(), same.state_dict().values(), other.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "shape", "more", "sentence"),
    [
        ("torchvision:resnet81", COLOUR, {}, "unknown torchvision model 'resnet81': did you mean 'resnet1"),
        ("torchvision:fasterrcnn_resnet50_fpn", COLOUR, {}, "unknown torchvision model"),
        ("timm:vit_tiny_patch16_225", GREY, {}, "unknown timm model .*did you mean 'vit_tiny_patch16_224'"),
        ("timm:hf-hub:a/b", GREY, {}, "unknown timm model"),
        ("timm:resnet18.nonsense", GREY, {}, "unknown timm model 'resnet18.nonsense'.*resnet18.a1_in1k"),
        ("hf:vitt", GREY, {}, "unknown transformers model type 'vitt': did you mean 'vit'"),
        ("hf:./nowhere", GREY, {}, "folder './nowhere' does not exist"),
        ("hf:nobody/nothing", GREY, {}, "configuration of hf:nobody/nothing cannot be had .*give a local folder"),
        ("hf:bert", GREY, {"arguments": TEXT}, "hf:bert cannot be built .ValueError"),
        ("torchvision:resnet18", GREY, {}, "takes colour images of 3 channels.*take the model of timm"),
        ("torchvision:resnet18", COLOUR, {"arguments": {"widht": 3}}, "cannot be built .TypeError.*widht"),
        ("torchvision:resnet18", COLOUR, {"arguments": {"num_classes": 5}}, r"an output of shape \(2, 5\)"),
        ("timm:vit_tiny_patch16_224", GREY, {}, "cannot take 1×8×8|cannot be built"),
        ("torchvision:resnet18", COLOUR, {"task": "text"}, "classifies images"),
        ("hf:vit", GREY, {"arguments": {"hidden_size": 7}}, "cannot be built|hidden"),
        (
            "timm:vit_giant_patch14_224",
            GREY,
            {"arguments": {"embed_dim": 16384, "patch_size": 4}},
            "parameters, more than",
        ),
    ],
)
def test_what_cannot_be_built_is_told_in_one_sentence(name, shape, more, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        models.build(name, **{**shape, **more}, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("torchvision:resnet18", {"weights": "DEFAULT"}),
        ("torchvision:resnet18", {"weights_backbone": "DEFAULT"}),
        ("timm:resnet18", {"checkpoint_path": "/tmp/x.pth"}),
        ("timm:resnet18", {"pretrained": True}),
        ("timm:resnet18", {"pretrained_cfg": {"file": "/tmp/x.bin"}}),
        ("timm:resnet18", {"pretrained_cfg_overlay": {"url": "x"}}),
        ("hf:vit", {"trust_remote_code": True}),
        ("hf:vit", {"attn_implementation": "somebody/kernels"}),
        ("hf:vit", {"_attn_implementation": "somebody/kernels"}),
        ("hf:vit", {"auto_map": {"AutoModelForImageClassification": "evil--m.Net"}}),
        ("hf:vit", {"quantization_config": {}}),
    ],
)
def test_arguments_that_name_weights_or_code_are_refused(name, argument):
    shape = COLOUR if "torchvision" in name else GREY
    with pytest.raises(InputError, match=r"cannot be given .* by model_args: weights are named by --weights"):
        models.build(name, **shape, arguments=argument, seed=0)


def folder_of(tmp_path, **changes):
    from transformers import AutoConfig, AutoModelForImageClassification

    config = AutoConfig.for_model("vit", **VIT, image_size=8, num_channels=1, num_labels=10)
    torch.manual_seed(3)
    model = AutoModelForImageClassification.from_config(config)
    model.save_pretrained(tmp_path / "vit")
    file = tmp_path / "vit" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return model


def test_a_local_folder_with_and_without_its_weights(tmp_path):
    source = folder_of(tmp_path).state_dict()
    drawn = models.build(f"hf:{tmp_path / 'vit'}", **GREY, seed=0)
    assert not torch.equal(drawn.state_dict()["classifier.weight"], source["classifier.weight"])
    made = models.make(f"hf:{tmp_path / 'vit'}", **GREY, seed=0, weights="pretrained")
    assert all(torch.equal(made.model.state_dict()[name], tensor) for name, tensor in source.items())
    assert any("pretrained weights" in notice for notice in made.notices)
    fewer = models.build(f"hf:{tmp_path / 'vit'}", **{**GREY, "classes": 3}, seed=0, weights="pretrained").state_dict()
    assert fewer["classifier.weight"].shape == (3, 16)
    assert torch.equal(fewer["vit.layernorm.weight"], source["vit.layernorm.weight"])
    with pytest.raises(InputError, match=r"read by hf:FOLDER --weights pretrained"):
        models.build("hf:./vit", **GREY, seed=0, weights="vit/model.safetensors")
    save_file(source, tmp_path / "w.safetensors")
    again = models.build("hf:./vit", **GREY, seed=0, weights="w.safetensors")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in source.items())
    with pytest.raises(InputError, match=r"unknown argument of hf:.*'hiden_size': did you mean 'hidden_size'"):
        models.build(f"hf:{tmp_path / 'vit'}", **GREY, arguments={"hiden_size": 3})


def test_a_folder_that_brings_code_is_refused(tmp_path):
    folder_of(
        tmp_path,
        model_type="evil",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Net"},
    )
    (tmp_path / "vit" / "evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    with pytest.raises(InputError, match=r"cannot be had"):
        models.build(f"hf:{tmp_path / 'vit'}", **GREY)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "changes", [{"attn_implementation": "somebody/kernels"}, {"quantization_config": {"quant_method": "x"}}]
)
def test_a_folder_that_asks_for_kernels_of_a_hub_or_quantised_weights(tmp_path, changes):
    folder_of(tmp_path, **changes)
    with pytest.raises(InputError, match=r"attention kernels of its own or for quantised weights"):
        models.build(f"hf:{tmp_path / 'vit'}", **GREY)


def test_a_folder_whose_weights_are_a_pickle_is_not_opened(tmp_path):
    model = folder_of(tmp_path)
    (tmp_path / "vit" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "vit" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pretrained weights of hf:.* cannot be had"):
        models.build(f"hf:{tmp_path / 'vit'}", **GREY, weights="pretrained")


def test_texts_are_classified_and_continued():
    tokens = torch.randint(50, (2, 5))
    model = models.build("hf:bert", classes=3, task="text", arguments=TEXT, seed=0)
    assert model(tokens).logits.shape == (2, 3)
    model = models.build(
        "hf:gpt2", classes=0, task="language", arguments={"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 50}
    )
    assert model(tokens).logits.shape == (2, 5, 50)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_pretrained_weights_that_cannot_be_fetched_are_told(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(InputError, match=rf"pretrained weights of {name} cannot be had .*connect to the network once"):
        models.build(name, **COLOUR, weights="pretrained")


def refuse(*args, **kwargs):
    raise OSError("no network here")


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18", "hf:vit"])
def test_a_torchvision_for_another_torch_is_told(name, tmp_path):
    """In a process without the shim; where both belong together there is nothing to tell."""
    code = (
        "import sys\nsys.path = [p for p in sys.path if 'shim' not in p]\n"
        "from incop.experiments import models\n"
        f"models.build({name!r}, channels=3, size=(32, 32), classes=7, arguments={VIT if name == 'hf:vit' else {}!r})\n"
    )
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if "shim" not in entry]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
    )
    if run.returncode == 0:
        pytest.skip("torchvision's compiled part loads beside this torch")
    assert "InputError: torchvision does not match this torch (operator torchvision::nms" in run.stderr.splitlines()[-1]


def test_torchvisions_own_weights_with_other_classes(tmp_path, monkeypatch):
    """Its cache is filled by hand: what is fetched is the library's affair, what becomes of it is ours."""
    import torchvision

    torch.manual_seed(1)
    source = torchvision.models.resnet18().state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(source, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    made = models.make("torchvision:resnet18", **COLOUR, seed=0, weights="pretrained")
    own = made.model.state_dict()
    assert torch.equal(own["layer1.0.conv1.weight"], source["layer1.0.conv1.weight"])
    assert own["fc.weight"].shape == (7, 512)
    assert any("fc.bias and fc.weight has another shape" in notice for notice in made.notices)


def test_a_search_its_folder_and_its_ticket(tmp_path, capsys):
    words = (
        "--model",
        "timm:vit_tiny_patch16_224",
        "--model-args",
        json.dumps(TIMM_VIT),
        "--max-epochs",
        "2",
        "--levels",
        "2",
    )
    assert incop("search", *words, "--limit", "150", "--method", "incop-if", "--out", "R") == 0, capsys.readouterr().err
    run = RunDir.open("R")
    plan = tomllib.loads((tmp_path / "R" / "plan.toml").read_text())
    assert plan["model"] == "timm:vit_tiny_patch16_224"
    assert json.loads(plan["model_args"]) == TIMM_VIT
    assert run.read_summary().environment["model_library"].startswith("timm ")
    for more in (["measure", "R"], ["show", "R"], ["report", "R"], ["replay", "R", "--rule", "flow within 0.1"]):
        assert incop(*more) == 0, capsys.readouterr().err
    parts, masks = rebuild(run, 2)
    assert Masks.of(parts.model).within(masks)
    assert incop("search", "R/plan.toml", "--out", "again") == 0
    level = "level_02/weights.safetensors"
    assert (tmp_path / "again" / level).read_bytes() == (tmp_path / "R" / level).read_bytes()


def test_resumed_to_the_bit(tmp_path):
    folder_of(tmp_path)
    plan = resolve(
        Plan(
            model="hf:vit",
            model_args=json.dumps(VIT),
            method="lth",
            max_epochs=1.0,
            levels=2,
            limit=120,
            checkpoint_every="1steps",
        )
    )
    runs.execute(plan, "whole")

    def stop(level, epoch, step):
        if level == 1 and step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.execute(plan, "cut", runs.Progress(on_step=stop))
    runs.resume("cut")
    level = "level_02/weights.safetensors"
    assert (tmp_path / "cut" / level).read_bytes() == (tmp_path / "whole" / level).read_bytes()


def test_weights_of_a_file_for_a_librarys_model(tmp_path):
    source = models.build("timm:resnet10t", **COLOUR, seed=4)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    again = models.build("timm:resnet10t", **COLOUR, seed=0, weights="w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), source.parameters(), strict=True))


def test_all_problems_of_a_plan_at_once(capsys):
    assert incop("search", "--model", "torchvision:resnet81", "--lr", "-1", "--model-args", "7", "--out", "R") == 2
    error = capsys.readouterr().err
    assert "unknown torchvision model" in error
    assert "--lr" in error
    assert "--model-args" in error
