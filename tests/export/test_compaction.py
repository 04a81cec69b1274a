"""Units that nobody needs go, whatever the model, and its answers stay."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from strange_models import Left, strange
from torch import nn

from incop import InputError, Masks, export
from incop.batches import unpack
from incop.experiments.models.lenet import lenet_5, lenet_300_100
from incop.experiments.models.resnet import resnet
from incop.export.compaction import compact
from incop.export.compaction.analysis import analysed, regrouped
from incop.export.compaction.operators import rule_of
from incop.export.compaction.removal import removal, removed
from incop.export.compaction.tracing import traced

EXACT = 1e-12  # of the largest answer, in float64

# models of which only the proof knows that a removal would be wrong: numbers of the width stand in their code
FIXED = {"left", "fixed view", "fixed number", "batch of one otherwise"}
WHOLE = {
    "middle",
    "tied",
    "tied modules",
    "groups",
    "shuffled",
    "weight used",
    "picked",
    "gated",
    "in place",
    "over units",
}

LUCKY = {"called twice", "by sample", "scaled by position"}  # in which little can go, or nothing


def wounded(model, seed):
    """Make a model whose layers have dead rows, dead columns and holes; of normalization, means and scales of zero."""
    g = torch.Generator().manual_seed(seed)

    def some(count, share):
        return torch.rand(count, generator=g) < share

    masks = {}
    for name, weight in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        if weight.dim() > 1 and isinstance(owner, nn.Linear | nn.modules.conv._ConvNd):
            mask = ~some(weight.shape, 0.3)
            mask[some(weight.shape[0], 0.35)] = False
            mask[:, some(weight.shape[1], 0.2 if weight.shape[1] > 2 else 0.0)] = False
            masks[name] = mask
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_(generator=g)
                module.running_var.uniform_(0.5, 2, generator=g)
            if module.weight is not None:
                module.weight.data.normal_(generator=g).masked_fill_(some(len(module.weight), 0.2), 0)
                module.bias.data.normal_(generator=g)
        elif isinstance(getattr(module, "bias", None), nn.Parameter):
            module.bias.data.masked_fill_(some(module.bias.shape, 0.3), 0)
    return Masks(masks)


def made(name, seed):
    torch.manual_seed(seed)
    model, x = strange()[name]
    return export.Subject.of(model.double(), wounded(model, seed), example=x.double())


def answers(model, x):
    with torch.no_grad():
        found = model(x)
    return [found] if isinstance(found, torch.Tensor) else list(found)


def assert_alike(masked, small, shape, *, allowed=EXACT, dtype=torch.float64, sizes=(1, 2, 7)):
    for size in sizes:
        x = torch.randn(size, *shape, dtype=dtype) * 3
        assert export.writing.difference(answers(masked, x), answers(small, x)) <= allowed


@pytest.mark.parametrize("name", sorted(strange()))
def test_a_strange_model_answers_as_before(name):
    subject = made(name, 1)
    found = compact(subject)
    sizes = (1, 2, 7)
    assert_alike(subject.model, found.model, subject.example.args[0].shape[1:], sizes=sizes)
    assert list(found.model.state_dict()) == list(subject.model.state_dict())
    assert type(found.model) is type(subject.model)
    if name not in FIXED:  # then the analysis alone was right: the proof had nothing to hold back
        assert not found.held_back
    if name in WHOLE:
        assert found.units == 0
    elif name not in FIXED | LUCKY:
        assert found.units > 0
        assert found.parameters[1] < found.parameters[0]


@pytest.mark.parametrize("name", sorted(LUCKY | {"normalized", "mixed", "concatenated"}))
def test_the_analysis_alone_is_right_of_other_wounds(name):
    subject = made(name, 2)
    run = analysed(traced(subject.model, subject.example), rule_of)
    small = removed(subject.model, removal(run))
    assert_alike(subject.model, small, subject.example.args[0].shape[1:])


@pytest.mark.parametrize("name", ["fixed view", "fixed number", "batch of one otherwise"])
def test_what_the_proof_refuses_stays_and_is_told(name):
    subject = made(name, 3)
    found = compact(subject)
    assert found.held_back == ("a",)
    assert "a" not in [change.layer for change in found.layers]


def test_what_a_model_leaves_in_an_attribute_stays():
    subject = made("left", 3)
    small = compact(subject).model
    x = subject.example.args[0]
    subject.model(x)
    small(x)
    assert isinstance(small, Left)
    assert torch.equal(subject.model.seen, small.seen)


@pytest.mark.parametrize("where", ["1", "2"])
def test_what_a_hook_sees_stays(where):
    seen = []
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Identity(), nn.Linear(6, 2)).double()
    net[0].weight.data[:3] = 0
    plain = compact(export.Subject.of(net, example=torch.randn(8, 4).double()))
    assert plain.units == 3
    net.get_submodule(where).register_forward_hook(lambda m, a, out: seen.append(out.shape[-1]))
    found = compact(export.Subject.of(net, example=torch.randn(8, 4).double()))
    assert found.units == 0
    assert set(seen) == {6}


def test_a_cascade_goes_to_its_end():
    net = nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 2)
    )
    net = net.double()
    with torch.no_grad():
        net[6].weight[:, 2] = 0  # unit 2 of the third layer is not heard;
        net[4].weight[:, 3] = 0  # unit 3 of the second only by that one,
        net[4].weight[2, 3] = 1
        net[2].weight[:, 1] = 0  # and unit 1 of the first only by unit 3 of the second
        net[2].weight[3, 1] = 1
        net[0].weight[4] = 0  # and unit 4 of the first is a constant
    subject = export.Subject.of(net, example=torch.randn(8, 4).double())
    found = compact(subject)
    assert [(c.layer, c.units) for c in found.layers] == [("0", (5, 3)), ("2", (6, 5)), ("4", (7, 6)), ("6", (2, 2))]
    assert {n: [k.tolist() for k in a.values()] for n, a in found.removal.kept.items() if "bias" in n} == {
        "0.bias": [[0, 2, 3]],
        "2.bias": [[0, 1, 2, 4, 5]],
        "4.bias": [[0, 1, 3, 4, 5, 6]],
    }
    assert_alike(net, found.model, (4,))


@pytest.mark.parametrize(("padding", "bias", "goes"), [(1, 1.0, 0), (1, 0.0, 1), (1, -1.0, 1), (0, 1.0, 1)])
def test_a_constant_goes_only_where_no_border_shows_it(padding, bias, goes):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=padding)).double()
    net[0].weight.data[1] = 0
    net[0].bias.data[1] = bias
    subject = export.Subject.of(net, example=torch.randn(4, 1, 8, 8).double())
    what = removal(analysed(traced(subject.model, subject.example), rule_of))
    assert 3 - len(what.kept.get("0.bias", {}).get(0, range(3))) == goes
    assert_alike(net, removed(subject.model, what), (1, 8, 8))


def test_units_that_only_feed_each_other_go():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.a, self.b, self.leave = (nn.Linear(*io) for io in ((3, 6), (6, 5), (5, 6), (6, 2)))

        def forward(self, x):
            h = self.enter(x)
            h = h + self.b(torch.relu(self.a(h)))
            return self.leave(h + self.b.bias.sum() * 0 if False else h)

    net = Loop().double()
    with torch.no_grad():
        net.leave.weight[:, 4:] = 0
        net.a.weight[:3, 4:] = 0
        net.b.weight[:4, 3:] = 0
    found = compact(export.Subject.of(net, example=torch.randn(8, 3).double()))
    assert found.model.enter.out_features == 4
    assert found.model.a.out_features == 3
    assert_alike(net, found.model, (3,))


def test_a_layer_without_any_unit_keeps_one():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    net[2].weight.data.zero_()
    found = compact(export.Subject.of(net, example=torch.randn(8, 4).double()))
    assert (found.model[0].out_features, found.model[2].out_features) == (1, 1)
    assert_alike(net, found.model, (4,))


def test_no_key_is_added_for_a_constant():
    net = nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3, bias=False)).double()
    net[0].weight.data[2] = 0
    found = compact(export.Subject.of(net, example=torch.randn(8, 4).double()))
    assert found.units == 0  # sigmoid(b) is not 0, and there is no bias to take it up
    assert list(found.model.state_dict()) == ["0.weight", "0.bias", "2.weight"]


def test_an_axis_is_found_again_in_another_shape():
    for before, after, axis in [((2, 3, 4), (2, 12), 1), ((2, 3, 4), (6, 4), 2), ((2, 3, 4, 5), (2, 60), 2)]:
        new, times, each = regrouped(before, after, axis)
        numbers = torch.arange(before[axis]).view([-1 if a == axis else 1 for a in range(len(before))]).expand(before)
        expected = torch.arange(before[axis]).repeat_interleave(each).repeat(times)
        assert (numbers.reshape(after).movedim(new, -1) == expected).all()
    assert regrouped((2, 12), (2, 3, 4), 1) is None


# ---- networks that a generator makes up


class Grown(nn.Module):
    """A network of random steps: layers, activations, pools, additions to what was before, and concatenations."""

    def __init__(self, steps, channels):
        super().__init__()
        self.steps, width, self.layers = steps, 2, nn.ModuleList()
        for kind, wide, bias, pad in steps:
            if kind == "conv":
                self.layers.append(nn.Conv2d(width, wide, 3, padding=1 if pad else 0, bias=bias))
                width = wide
            elif kind == "each":
                self.layers.append(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=bias))
            elif kind == "norm":
                self.layers.append(nn.BatchNorm2d(width))
            elif kind == "add":
                self.layers.append(nn.Conv2d(width, width, 3, padding=1, bias=bias))
            elif kind == "cat":
                self.layers.append(nn.Conv2d(width, wide, 1, bias=bias))
                width += wide
            else:
                acts = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "gelu": nn.GELU(), "inplace": nn.ReLU(inplace=True)}
                self.layers.append(acts.get(kind) or (nn.AvgPool2d if kind == "avg" else nn.MaxPool2d)(3, 1, 1))
        self.flat = channels
        self.hidden = nn.LazyLinear(6) if channels else nn.Linear(width, 6)
        self.leave = nn.Linear(6, 3)

    def forward(self, x):
        for (kind, *_), layer in zip(self.steps, self.layers, strict=True):
            x = x + layer(x) if kind == "add" else torch.cat([layer(x), x], 1) if kind == "cat" else layer(x)
        x = torch.flatten(x, 1) if self.flat else x.mean((2, 3))
        return self.leave(torch.relu(self.hidden(x)))


KINDS = ["conv", "conv", "norm", "relu", "tanh", "gelu", "inplace", "each", "avg", "max", "add", "cat"]
STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(2, 5), st.booleans(), st.booleans()), min_size=2, max_size=7
)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(steps=STEPS, flat=st.booleans(), seed=st.integers(0, 10**6))
def test_a_network_that_was_made_up_answers_as_before(steps, flat, seed):
    steps = [("conv", 4, True, True), *steps]
    steps = steps[: 5 + next((i for i, s in enumerate(steps) if sum(k == "conv" for k, *_ in steps[: i + 1]) > 3), 99)]
    torch.manual_seed(seed)
    net = Grown(steps, flat)
    x = torch.randn(5, 2, 18, 18)
    net(x)
    subject = export.Subject.of(net.double(), wounded(net, seed), example=x.double())
    run = analysed(traced(subject.model, subject.example), rule_of)
    assert_alike(subject.model, removed(subject.model, removal(run)), (2, 18, 18), sizes=(1, 3))


# ---- the networks of the acceptance


def by_magnitude(model, sparsity):
    weights = {n: p.detach() for n, p in model.named_parameters() if p.dim() > 1 and "embed" not in n}
    every = torch.cat([w.abs().flatten() for w in weights.values()])
    least = every.kthvalue(int(sparsity * len(every))).values
    return Masks({n: w.abs() > least for n, w in weights.items()})


def whole_units(model, sparsity):
    g = torch.Generator().manual_seed(0)
    masks = {}
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "embed" not in name and "in_proj" not in name:
            rows = torch.rand(weight.shape[0], generator=g) > sparsity * 0.7
            masks[name] = rows.view(-1, *[1] * (weight.dim() - 1)).expand_as(weight).clone()
    return Masks(masks)


class Tokens(nn.Module):
    """A small transformer on rows of a picture."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(14, 16)
        self.position = nn.Parameter(torch.randn(1, 10, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.leave = nn.Linear(16, 10)

    def forward(self, x):
        return self.leave(self.encoder(self.enter(x) + self.position).mean(1))


NETWORKS = {
    "lenet-300-100": (lenet_300_100, (1, 28, 28)),
    "lenet-5": (lenet_5, (1, 28, 28)),
    "resnet-20": (lambda: resnet(20, size=(8, 8)), (3, 8, 8)),
    "transformer": (Tokens, (10, 14)),
}


@pytest.mark.parametrize(("sparsity", "masks"), [(0.9, by_magnitude), (0.98, by_magnitude), (0.9, whole_units)])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_answers_as_masked_on_256_inputs(name, sparsity, masks, monkeypatch):
    torch.manual_seed(0)
    network, shape = NETWORKS[name]
    model = network()
    for module in model.modules():
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    subject = export.Subject.of(model, masks(model, sparsity), example=torch.randn(256, *shape))
    found = compact(subject)
    assert (
        export.writing.difference(subject.outputs(subject.example), answers(found.model, subject.example.args[0]))
        <= 1e-5
    )
    assert not found.held_back
    if masks is whole_units:
        assert found.units > 0
        assert found.macs[1] < found.macs[0]


# ---- files


@pytest.fixture
def written(tmp_path):
    torch.manual_seed(0)
    net = lenet_5(size=(12, 12))
    subject = export.Subject.of(net, whole_units(net, 0.6), example=torch.randn(16, 1, 12, 12))
    return subject, export.write(subject, "compacted", tmp_path / "out")


def test_the_file_tells_shapes_and_what_was_kept(written):
    subject, done = written
    assert [file.name for file in done.files] == ["compacted.safetensors", "compacted.pt2"]
    assert done.difference <= 1e-5
    with safe_open(done.files[0], "pt") as opened:
        about = opened.metadata()
        shapes, kept = json.loads(about["shapes"]), json.loads(about["kept"])
        for name, (old, new) in shapes.items():
            assert list(subject.model.state_dict()[name].shape) == old
            assert list(opened.get_tensor(name).shape) == new
            for axis, indices in kept[name].items():
                assert len(indices) == new[int(axis)] < old[int(axis)]
        untouched = next(iter(kept["conv1.weight"].values()))
        assert torch.equal(opened.get_tensor("conv1.weight"), subject.model.conv1.weight[untouched])


LOAD = """
import importlib.util, sys, torch
class Blocked:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "incop": raise ImportError(name)
sys.meta_path.insert(0, Blocked())
spec = importlib.util.spec_from_file_location("resizing", sys.argv[1]); room = importlib.util.module_from_spec(spec)
spec.loader.exec_module(room)
from torch import nn
from collections import OrderedDict
def build():
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(1, 6, 5, padding=2), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2), conv2=nn.Conv2d(6, 16, 5, padding=2),
        relu2=nn.ReLU(), pool2=nn.MaxPool2d(2), flatten=nn.Flatten(), fc1=nn.Linear(144, 120), relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84), relu4=nn.ReLU(), fc3=nn.Linear(84, 10)))
x, folded, expected = torch.load(sys.argv[4])
with torch.no_grad():
    small = room.resized(build(), sys.argv[2]).eval()
    whole = build().eval()
    whole.load_state_dict(folded)
    program = torch.export.load(sys.argv[3]).module()
    for n in (1, 5, 16):
        for model in (small, whole, program):
            assert torch.allclose(model(x[:n]), expected[:n], rtol=1e-4, atol=1e-5), model
assert small.conv1.out_channels < 6 and "incop" not in sys.modules
try:
    room.resized(nn.Linear(3, 2), sys.argv[2])
except ValueError as error:
    assert "'bias'" in str(error)
else:
    raise AssertionError
"""


def test_torch_and_safetensors_alone_read_it(written, tmp_path):
    subject, done = written
    x = subject.example.args[0]
    kept = tmp_path / "expected.pt"
    torch.save((x, export.folded(subject.model, subject.masks), subject.outputs(subject.example)[0]), kept)
    code = Path(export.resizing.__file__)
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(code), *map(str, done.files), str(kept)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr


RECIPE = """
import sys, torch
from torch import nn

page, file, kept = sys.argv[1:]
x, net, expected = torch.load(kept, weights_only=False)
names = {}
exec(open(page).read().split("## Reading it without incop")[1].split("```python")[1].split("```")[0], names)
with torch.no_grad():
    found = names["resized"](net, file)(x)
assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
assert "incop" not in sys.modules and "numpy" not in names
"""


def test_the_pages_own_recipe_reads_it_with_torch_and_safetensors_alone(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    fresh = copy.deepcopy(net)
    with torch.no_grad():
        net[0].weight[::2] = 0
        net[1].bias[::2] = 0
    subject = export.Subject.of(net, example=torch.randn(16, 1, 8, 8))
    done = export.write(subject, "compacted", tmp_path)
    assert done.details["units"] > 0
    kept = tmp_path / "kept.pt"
    torch.save((subject.example.args[0], fresh, subject.outputs(subject.example)[0]), kept)
    page = Path(__file__).parents[2] / "docs" / "export_compacted.md"
    process = subprocess.run(
        [sys.executable, "-c", RECIPE, str(page), str(done.files[0]), str(kept)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr


def test_a_model_that_torch_cannot_export_is_written_without_a_program(written, tmp_path, monkeypatch):
    subject, _ = written

    def fails(*_):
        raise RuntimeError("no such operator\nmore")

    monkeypatch.setattr(sys.modules["incop.export.compacted"], "exported", fails)
    done = export.write(subject, "compacted", tmp_path / "other")
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["compacted.safetensors"]
    assert done.details["program_lacks"] == "no such operator"
    assert done.details["units"] > 0


class AsDataSay(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(x) if x.sum() > 0 else self.b(self.a(x))


def test_a_model_that_cannot_be_followed_is_told_with_its_line_and_nothing_else(capfd):
    with pytest.raises(InputError, match=r"x\.sum\(\) > 0") as told:
        export.compacted(AsDataSay(), None, torch.randn(8, 4))
    assert "looks at values to decide" in str(told.value)
    assert "\n" not in str(told.value)
    assert capfd.readouterr() == ("", "")


def test_without_an_example_it_is_told():
    with pytest.raises(InputError, match="example"):
        compact(export.Subject.of(nn.Linear(2, 2)))


def test_the_users_model_stays(tmp_path):
    net = lenet_5(size=(12, 12))
    net.conv1.weight.data[2] = 0
    before = copy.deepcopy(net.state_dict())
    export.compacted(net, None, unpack(torch.randn(4, 1, 12, 12)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training
