"""CSR layers compute what dense ones do, and are chosen by measurement alone."""

import copy
import json
import subprocess
import sys
from functools import partial

import pytest
import torch
from networks import NAMES, SPARSITIES, network, pruned, subject
from safetensors.torch import load_file, save_file
from torch import nn

from incop import InputError, Masks, export
from incop.batches import first_samples
from incop.export import csr_choice, csr_form
from incop.export.csr_layers import CSRLinear, linear_layers, replaced
from incop.export.timing import Ratio


def relative(a, b):
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (7, 5), (2, 3, 5), (1, 1, 5), (0, 5), (3, 0, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_csr_layer_is_the_matrix_product(shape, bias, dtype):
    torch.manual_seed(0)
    weight = torch.randn(4, 5, dtype=dtype) * (torch.rand(4, 5) > 0.6)
    weight[2] = 0  # a unit without weights
    b = torch.randn(4, dtype=dtype) if bias else None
    x = torch.randn(*shape, dtype=dtype)
    y = CSRLinear.of(weight, b)(x)
    expected = torch.einsum("...i,oi->...o", x.double(), weight.double()) + (b.double() if bias else 0)
    assert y.shape == (*shape[:-1], 4)
    assert y.dtype == dtype
    assert y.is_contiguous()  # as nn.Linear's: whoever takes a view of it may go on
    assert y.numel() == 0 or relative(y, expected) < 1e-5


def test_inputs_may_lie_anyhow_in_memory_and_nothing_may_be_left():
    x = torch.randn(5, 7).T
    weight = torch.randn(4, 5)
    layer = CSRLinear.of(weight, None)
    assert relative(layer(x), x @ weight.T) < 1e-5
    assert relative(layer(x[::2]), x[::2] @ weight.T) < 1e-5
    empty = CSRLinear.of(torch.zeros(4, 5), torch.arange(4.0))
    assert torch.equal(empty(x), torch.arange(4.0).expand(7, 4))


def test_a_csr_layer_can_be_copied_and_moved_to_another_type():
    layer = CSRLinear.of(torch.eye(3), torch.ones(3)).eval()
    other = copy.deepcopy(nn.Sequential(layer))[0]
    other.bias.data.zero_()
    assert torch.equal(layer(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert not other.training
    assert layer.double()(torch.ones(3, dtype=torch.float64)).dtype == torch.float64


@pytest.fixture
def all_chosen(monkeypatch):
    """Choose every linear layer that is called as a module, whatever the clock says."""

    def choose(subject, *_):
        called = csr_choice._inputs(subject.model, linear_layers(subject.model), first_samples(subject.example, 2))
        return [export.Choice(name, 0.9, True, "chosen by the test") for name in called]

    monkeypatch.setattr(csr_form, "choose", choose)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("name", NAMES)
def test_the_csr_form_answers_as_the_masked_network(name, sparsity, all_chosen, tmp_path):
    one = subject(name, sparsity)
    written = export.write(one, "csr", tmp_path)
    assert written.difference <= 1e-5
    model = export.read_csr(written.files[0], network(name)[0])
    layers = [module for module in model.modules() if isinstance(module, CSRLinear)]
    assert len(layers) == {"lenet-300-100": 3, "lenet-5": 3, "resnet-20": 1, "transformer": 5}[name]
    state = load_file(written.files[0])
    left = sum(state[key].numel() for key in state if key.endswith(".weight.values"))
    assert left == sum(layer.weight.values().numel() for layer in layers)
    assert all((state[key] != 0).all() for key in state if key.endswith(".weight.values"))


def test_a_file_needs_no_more_than_torch_and_safetensors(all_chosen, tmp_path):
    """The reader runs where nothing of incop's own experiments can be imported; torch's word on beta is kept back, no other."""
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    one = export.Subject.of(net, pruned(net, 0.5), example=torch.ones(4, 8))
    file = export.write(one, "csr", tmp_path).files[0]
    code = (
        "import sys\n"
        "for name in ('rich', 'cyclopts', 'onnx', 'incop.experiments', 'incop.cli', 'incop.loop', 'incop.training'):\n"
        "    sys.modules[name] = None\n"
        "import torch, warnings\nfrom torch import nn\nfrom incop import export\nwarnings.simplefilter('error')\n"
        "net = export.read_csr(sys.argv[1], nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)))\n"
        "print(net(torch.ones(1, 8)).tolist())\n"
        "try: warnings.warn('mine')\n"
        "except UserWarning: pass\n"
        "else: raise SystemExit('a warning was hidden')"
    )
    told = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True).stdout
    expected = one.model(torch.ones(1, 8))
    assert relative(torch.tensor(json.loads(told)), expected.detach()) < 1e-5


def test_transformers_conv1d_is_turned():
    Conv1D = type("Conv1D", (nn.Module,), {"forward": lambda self, x: x @ self.weight + self.bias})
    Conv1D.__module__ = "transformers.pytorch_utils"
    layer = Conv1D()
    layer.nf, layer.weight, layer.bias = 4, nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))
    net = nn.Sequential(layer)
    x = torch.randn(3, 6)
    assert relative(replaced(net, ["0"])(x), net(x).detach()) < 1e-5


def test_a_layer_that_is_held_twice_is_replaced_twice():
    shared = nn.Linear(4, 4)
    net = replaced(nn.Sequential(shared, nn.ReLU(), shared), ["0"])
    assert isinstance(net[0], CSRLinear)
    assert net[0] is net[2]


def timed(layers, whole=2.0):
    """Stand in for the clock: each layer's CSR is so many times faster, by its outputs and the batch; and the whole network."""

    def in_turn(calls, **_):
        for call in calls.values():
            with torch.inference_mode():
                call()
        csr = calls["csr"]
        speed = layers[csr.func.out_features, len(csr.args[0])] if isinstance(csr, partial) else whole
        return {"dense": [1.0] * 9, "csr": [1 / speed] * 9}

    return in_turn


FAST = {(6, 1): 1.5, (6, 64): 3.0, (5, 1): 1.04, (5, 64): 3.0, (3, 1): 0.5, (3, 64): 0.9}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_a_layer_is_chosen_only_where_it_is_faster_at_every_batch_size(net, monkeypatch):
    monkeypatch.setattr(csr_choice, "in_turn", timed(FAST))
    masks, x = pruned(net, 0.6), torch.randn(16, 8)
    both = {one.layer: one.chosen for one in export.csr_choices(net, masks, x)}
    assert both == {"0": True, "2": False, "4": False}  # 1.04 is within the noise
    large = {one.layer: one.chosen for one in export.csr_choices(net, masks, x, batch_sizes=[64])}
    assert large == {"0": True, "2": True, "4": False}
    choice = export.csr_choices(net, masks, x)[1]
    assert (choice.ratios[1].median, choice.ratios[64].median) == pytest.approx((1.04, 3.0))
    assert "1.04 times as fast at batch 1" in choice.why
    made = export.with_csr(net, masks, x)
    assert [type(made[i]) for i in (0, 2, 4)] == [CSRLinear, nn.Linear, nn.Linear]
    assert not [m for m in net.modules() if isinstance(m, CSRLinear)]


def test_nothing_is_chosen_where_the_whole_network_is_slower(net, monkeypatch, tmp_path):
    monkeypatch.setattr(csr_choice, "in_turn", timed(FAST, whole=0.9))
    one = export.Subject.of(net, pruned(net, 0.6), example=torch.randn(16, 8))
    choices = csr_choice.choose(one, (1, 64), 9)
    assert not any(choice.chosen for choice in choices)
    assert "the whole network would be slower" in choices[0].why
    with pytest.raises(InputError, match="no linear layer is faster as CSR here"):
        export.write(one, "csr", tmp_path)
    assert not list(tmp_path.iterdir())


def test_dense_layers_are_not_even_measured(net, monkeypatch):
    monkeypatch.setattr(csr_choice, "in_turn", lambda *_, **__: pytest.fail("it was measured"))
    assert [one.why for one in export.csr_choices(net, example=torch.ones(2, 8))] == ["its sparsity is 0.00"] * 3


class ReadsWeight(nn.Module):
    """Calls one layer as a module, reads the weight of the other."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return nn.functional.linear(self.a(x), self.b.weight) + self.a.weight.t()[0].square()


def test_a_network_that_looks_at_a_weight_itself_keeps_it_dense(monkeypatch):
    monkeypatch.setattr(csr_choice, "in_turn", timed({(6, 1): 9.0, (6, 64): 9.0}))
    net = ReadsWeight()
    choices = export.csr_choices(net, pruned(net, 0.7), torch.randn(4, 6))
    assert [one.chosen for one in choices] == [False, False]
    assert "does not run" in choices[0].why
    assert "reads its weight" in choices[1].why


def test_real_measurements_choose_a_wide_sparse_layer_or_say_why_not():
    """No speed is asserted: what was decided must follow from what was measured."""
    net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    for choice in export.csr_choices(net, pruned(net, 0.95), torch.randn(8, 256), batch_sizes=[1, 8], rounds=7):
        assert set(choice.ratios) == {1, 8}
        faster = all(ratio.faster for ratio in choice.ratios.values())
        assert choice.chosen == faster or "whole" in choice.why


@pytest.mark.parametrize(
    "damage",
    ["column out of range", "rows not growing", "another shape", "no such layer", "part absent", "no metadata", "cut"],
)
def test_a_damaged_file_is_told(damage, tmp_path, all_chosen):
    net = nn.Sequential(nn.Linear(6, 4))
    one = export.Subject.of(net, pruned(net, 0.5), example=torch.ones(2, 6))
    file = export.write(one, "csr", tmp_path).files[0]
    state, shapes = load_file(file), {"0.weight": [4, 6]}
    if damage == "column out of range":
        state["0.weight.col_indices"][-1] = 6_000_000
    elif damage == "rows not growing":
        state["0.weight.crow_indices"][1] = 2_000_000
    elif damage == "another shape":
        shapes["0.weight"] = [4, 2**40]
    elif damage == "no such layer":
        shapes = {"7.weight": [4, 6]}
        state = {key.replace("0.weight", "7.weight"): value for key, value in state.items()}
    elif damage == "part absent":
        del state["0.weight.values"]
    save_file(state, file, metadata={"format": "pt"} if damage == "no metadata" else {"csr": json.dumps(shapes)})
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(InputError) as caught:
        export.read_csr(file, net)
    assert "\n" not in str(caught.value)


def test_a_file_of_strange_metadata_or_an_endless_header_is_refused(tmp_path):
    file, net = tmp_path / "strange.safetensors", nn.Linear(2, 2)
    save_file({"weight": torch.ones(2)}, file, metadata={"csr": "[1]"})
    with pytest.raises(InputError, match="its shapes are damaged"):
        export.read_csr(file, net)
    save_file({"weight": torch.ones(2)}, file, metadata={"other": "1"})
    with pytest.raises(InputError, match="does not say which of its tensors"):
        export.read_csr(file, net)
    file.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="its header announces"):
        export.read_csr(file, net)


def test_a_csr_layer_stores_only_what_is_left():
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    masks = pruned(net, 0.5)
    masks.apply(net)
    assert replaced(net, ["0"])[0].weight.values().numel() == masks.remaining_in("0.weight")


def test_numbers_that_cannot_be_measured_are_refused(net):
    with pytest.raises(InputError, match="example"):
        export.csr_choices(net, pruned(net, 0.6))
    with pytest.raises(InputError, match="no batch size"):
        export.csr_choices(net, pruned(net, 0.6), torch.ones(2, 8), batch_sizes=[])
    with pytest.raises(InputError, match="at least 1"):
        export.csr_choices(net, pruned(net, 0.6), torch.ones(2, 8), batch_sizes=[0])
    with pytest.raises(InputError, match="no linear layer"):
        export.with_csr(net, Masks.full(net), choices=[export.Choice("1", 0.9, True, "")])
    with pytest.raises(InputError, match="no batch sizes"):
        export.form("csr@many")
    assert export.form("csr@1/64").name == "csr"


def test_a_ratio_is_faster_only_beyond_noise_and_in_most_rounds():
    assert Ratio.of([2.0] * 8, [1.0] * 8).faster
    assert not Ratio.of([1.04] * 8, [1.0] * 8).faster
    disturbed = Ratio.of([3.0] * 28 + [0.5] * 12, [1.0] * 40)
    assert disturbed.low > 2
    assert not disturbed.faster  # what disturbs a machine lasts for several rounds
    assert Ratio.of([1.0] * 8, [2.0] * 8).slower
