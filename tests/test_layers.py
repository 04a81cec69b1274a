"""Layers: their order is read off the forward pass, shortcuts are left out, and what can be pruned is named."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from incop.batches import unpack
from incop.errors import InputError
from incop.experiments import models
from incop.flow import InformationFlow, measure
from incop.layers import CallNames, Hooks, calls, chain, left_out, module_of, prunable


def conv(a, b, size=3, **more):
    return nn.Conv2d(a, b, size, padding=size // 2, **more)


IMAGE = unpack(torch.randn(2, 3, 8, 8))
ROW = unpack(torch.randn(2, 6))


def steps(model, batch=IMAGE, **more):
    return list(chain(model.eval(), batch, **more))


def test_hooks_are_gone_when_the_model_throws_or_one_cannot_be_put_on():
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(3, 2))

    def throws():
        with Hooks() as hooks:
            hooks.before(net[0], lambda module, args: None)
            hooks.after(net[1], lambda module, args, kwargs, output: None, with_kwargs=True)
            net(ROW.args[0])

    def puts_on_nothing():
        with Hooks() as hooks:
            hooks.after(net[0], lambda module, args, output: None)
            hooks.after(None, lambda module, args, output: None)

    with pytest.raises(RuntimeError):
        throws()
    with pytest.raises(AttributeError):
        puts_on_nothing()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_name_of_a_call_leads_back_to_its_module():
    names = CallNames()
    found = [names.of(module) for module in ("fc", "0.fc", "fc", "", "fc", "")]
    assert found == ["fc", "0.fc", "fc#2", "", "fc#3", "#2"]
    assert [module_of(name) for name in found] == ["fc", "0.fc", "fc", "", "fc", ""]


# ---- the order


class Upside(nn.Module):
    """Declared in another order than they run in, and one not at all."""

    def __init__(self):
        super().__init__()
        self.last, self.unused, self.first = nn.Linear(4, 2), nn.Linear(9, 9), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.first(x))


def test_order_is_that_of_the_forward_pass():
    assert steps(Upside(), ROW) == ["first", "last"]


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 4), nn.Linear(4, 1)

    def forward(self, a, b):
        return self.head((self.body(a) - self.body(b)).abs())


def test_a_layer_that_runs_twice_is_two_steps():
    two = unpack(((torch.randn(2, 6), torch.randn(2, 6)), torch.zeros(2)))
    assert steps(Siamese(), two) == ["body", "body#2", "head"]
    assert [module_of(c) for c in ("body#2", "head")] == ["body", "head"]


def test_a_module_under_two_names_has_its_first():
    shared = nn.Linear(6, 6)
    assert steps(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(6, 2)), ROW) == ["0", "0#2", "3"]


@dataclass
class Answer:
    logits: torch.Tensor


@pytest.mark.parametrize("form", [lambda t: (t, 1), lambda t: {"logits": t}, lambda t: [t], Answer])
def test_outputs_of_any_form(form):
    class Model(Upside):
        def forward(self, x):
            return form(super().forward(x))

    assert steps(Model(), ROW) == ["first", "last"]


def test_a_layer_may_return_a_tuple():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), None

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.side, self.pair, self.after = nn.Linear(6, 6), Pair(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.side(x) + self.after(self.pair(x)[0])

    assert steps(Model(), ROW) == ["pair", "after"]


def test_inputs_by_name():
    class Model(Siamese):
        def forward(self, *, left, right):
            return super().forward(left, right)

    assert steps(Model(), unpack({"left": ROW.args[0], "right": ROW.args[0]})) == ["body", "body#2", "head"]


def test_other_dimensions_and_transposed():
    one = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.ConvTranspose1d(4, 3, 3))
    three = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ConvTranspose3d(2, 1, 1), nn.ConvTranspose3d(1, 1, 1))
    assert steps(one, unpack(torch.randn(2, 3, 9))) == ["0", "2"]
    assert steps(three, unpack(torch.randn(2, 1, 2, 2, 2))) == ["0", "1", "2"]
    assert steps(nn.Sequential(nn.ConvTranspose2d(3, 4, 2), conv(4, 2))) == ["0", "1"]


def test_recurrent_layers_between():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.inside = nn.Embedding(9, 6), nn.Linear(6, 5)
            self.lstm, self.head = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, ids):
            return self.head(self.lstm(self.inside(self.words(ids)))[0][:, -1])

    ids = unpack(torch.randint(9, (2, 7)))
    assert steps(Model(), ids) == ["inside", "lstm", "head"]
    assert {c.name: c.sources for c in calls(Model(), ids)} == {
        "inside": {"<words>"},
        "lstm": {"inside"},
        "head": {"lstm"},
        "": {"head"},
    }


def test_transformer_encoder():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), 2, enable_nested_tensor=False
    )
    tokens = torch.randn(8, 5, 6)
    expected = [f"layers.{i}.{name}" for i in (0, 1) for name in ("self_attn", "linear1", "linear2")]
    assert steps(encoder, unpack(tokens)) == expected
    assert list(measure(encoder, tokens, InformationFlow()).values) == [f"{a}->{b}" for a, b in pairwise(expected)]


# ---- shortcuts


class Block(nn.Module):
    """A residual block of chosen parts; the shortcut is a projection when the widths differ."""

    def __init__(self, a, b, *, pre=False, bottleneck=False, squeeze=False, shortcut_first=False, inplace=True):
        super().__init__()
        self.pre, self.first = pre, shortcut_first
        self.norm = nn.BatchNorm2d(a)
        self.relu = nn.ReLU(inplace=inplace)
        self.one = conv(a, b, 1 if bottleneck else 3)
        self.two = conv(b, b)
        self.three = conv(b, b, 1) if bottleneck else nn.Identity()
        self.down = conv(a, b, 1) if a != b else nn.Identity()
        self.squeeze = nn.Sequential(nn.Linear(b, 2), nn.ReLU(), nn.Linear(2, b), nn.Sigmoid()) if squeeze else None

    def forward(self, x):
        x = self.relu(self.norm(x)) if self.pre else x
        side = self.down(x) if self.first else None
        out = self.three(self.relu(self.two(self.relu(self.one(x)))))
        if self.squeeze is not None:
            out = out * self.squeeze(out.mean((2, 3)))[:, :, None, None]
        out += self.down(x) if side is None else side
        return out if self.pre else self.relu(out)


def residual(**options):
    return nn.Sequential(
        conv(3, 4), Block(4, 4, **options), Block(4, 6, **options), Block(6, 6, **options), Block(6, 8, **options)
    )


@pytest.mark.parametrize("options", [{}, {"pre": True}, {"bottleneck": True}, {"squeeze": True}, {"inplace": False}])
@pytest.mark.parametrize("first", [False, True])
def test_projections_of_residual_blocks_are_left_out(options, first):
    inner = ["one", "two", *(["three"] if options.get("bottleneck") else [])]
    inner += ["squeeze.0", "squeeze.2"] if options.get("squeeze") else []
    assert steps(residual(**options, shortcut_first=first)) == [
        "0",
        *(f"{block}.{name}" for block in range(1, 5) for name in inner),
    ]


@pytest.mark.parametrize(("name", "left"), [("resnet-20", 20), ("resnet-18", 18)])
def test_networks_of_the_literature(name, left):
    net = models.build(name, channels=3, size=(32, 32), classes=10)
    found = chain(net.eval(), unpack(torch.randn(2, 3, 32, 32)))
    layers = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(found) == left
    projections = [n for n in layers if n not in found]
    assert all(net.get_submodule(n).kernel_size == (1, 1) for n in projections)
    assert list(found) == [n for n in layers if n not in projections]  # they are declared in the order they run


def test_two_projections_of_one_place_are_both_left_out_of_the_last_block():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.down = nn.Sequential(conv(3, 4), conv(4, 4)), conv(3, 4, 1)

        def forward(self, x):
            return {"features": self.main(x) + self.down(x)}  # the addition is the output itself

    assert steps(Model()) == ["main.0", "main.1"]


class Of(nn.Module):
    """A model of a function of (layers, x)."""

    def __init__(self, layers, run):
        super().__init__()
        self.l, self.run = nn.ModuleDict(layers), run

    def forward(self, *x):
        return self.run(self.l, *x)


def names(found):
    return [name.removeprefix("l.") for name in found]


def test_no_branch_of_equal_length_is_a_shortcut():
    attention = Of(
        {n: nn.Linear(6, 6) for n in ("q", "k", "v", "out")},
        lambda m, x: m.out(m.q(x) + m.k(x) + m.v(x)),
    )
    assert names(steps(attention, ROW)) == ["q", "k", "v", "out"]


def test_concatenation_leaves_nothing_out():
    dense = Of(
        {"a": conv(3, 4), "b": conv(7, 4), "c": conv(11, 4)},
        lambda m, x: m.c(torch.cat([x, (a := m.a(x)), m.b(torch.cat([x, a], 1))], 1)),
    )
    inception = Of(
        {"a": conv(3, 2, 1), "b1": conv(3, 2, 1), "b2": conv(2, 2), "c": conv(3, 2), "out": conv(6, 3)},
        lambda m, x: m.out(torch.cat([m.a(x), m.b2(m.b1(x)), m.c(x)], 1)),
    )
    assert names(steps(dense)) == ["a", "b", "c"]
    assert names(steps(inception)) == ["a", "b1", "b2", "c", "out"]


def test_unet_keeps_its_layers():
    def run(m, x, join):
        high = torch.relu(m.enter(x))
        low = torch.relu(m.bottom(F.max_pool2d(high, 2)))
        return m.leave(join(high, m.up(low)))

    def net(width):
        return {
            "enter": conv(3, 4),
            "bottom": conv(4, 8),
            "up": nn.ConvTranspose2d(8, 4, 2, 2),
            "leave": conv(width, 2),
        }

    for width, join in ((8, lambda a, b: torch.cat([a, b], 1)), (4, torch.add)):
        model = Of(net(width), lambda m, x, join=join: run(m, x, join))
        assert names(steps(model)) == ["enter", "bottom", "up", "leave"]


def test_towers_of_different_inputs_are_no_shortcuts():
    model = Of(
        {"image": nn.Linear(6, 4), "time1": nn.Linear(6, 5), "time2": nn.Linear(5, 4), "out": nn.Linear(4, 2)},
        lambda m, x, t: m.out(m.image(x) + m.time2(torch.relu(m.time1(t)))),
    )
    two = unpack(((torch.randn(2, 6), torch.randn(2, 6)), torch.zeros(2)))
    assert names(steps(model, two)) == ["image", "time1", "time2", "out"]


def test_towers_of_constants_and_words_are_no_shortcuts():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.place = nn.Embedding(9, 6), nn.Embedding(9, 6)
            self.a, self.b1, self.b2, self.c = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, ids):
            where = self.place(torch.arange(ids.shape[1]))
            return self.c(self.a(self.words(ids)) + self.b2(self.b1(where)))

    assert steps(Model(), unpack(torch.randint(9, (2, 4)))) == ["a", "b1", "b2", "c"]


def test_parts_without_gradients_are_read_too():
    class Frozen(nn.Module):
        def __init__(self, switch):
            super().__init__()
            self.body, self.head, self.switch = residual(), conv(8, 2), switch

        def forward(self, x):
            with self.switch:
                x = self.body(x)
            return self.head(x)

    expected = [f"body.{name}" for name in steps(residual())] + ["head"]
    for switch in (torch.no_grad(), torch.enable_grad(), torch.set_grad_enabled(False)):
        torch.set_grad_enabled(True)
        assert steps(Frozen(switch)) == expected
    with torch.no_grad():
        assert steps(Frozen(torch.enable_grad())) == expected


def test_detached_parts_keep_their_place():
    model = Of(
        {"a": nn.Linear(6, 6), "b": nn.Linear(6, 6), "c": nn.Linear(6, 6)},
        lambda m, x: m.c(m.a(x) + m.b(m.a(x).detach())),
    )
    assert names(steps(model, ROW)) == ["a", "a#2", "b", "c"]
    towers = Of(  # neither tower is known to begin where the other does
        {n: nn.Linear(6, 6) for n in "abcd"},
        lambda m, x: m.d(m.a(x.detach()) + m.c(m.b(torch.ones_like(x)))),
    )
    assert names(steps(towers, ROW)) == ["a", "b", "c", "d"]


def test_gradient_checkpointing():
    class Model(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.enter, self.block, self.reentrant = conv(3, 4), Block(4, 6), reentrant

        def forward(self, x):
            return checkpoint(self.block, self.enter(x), use_reentrant=self.reentrant)

    assert steps(Model(reentrant=False)) == ["enter", "block.one", "block.two"]
    with pytest.raises(InputError, match="use_reentrant=True, which hides its layers"):
        steps(Model(reentrant=True))


def test_thousands_of_identity_blocks_are_walked_without_recursion():
    layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def run(m, x):
        x = m.a(x)
        for _ in range(3000):
            x = x + 1.0
        return m.b(x)

    assert names(steps(Of({"a": layers[0], "b": layers[1]}, run), ROW)) == ["a", "b"]


def test_the_look_leaves_no_hooks():
    model = residual().eval()
    steps(model)
    with pytest.raises(RuntimeError):
        chain(model, unpack(torch.randn(2, 5, 8, 8)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_forward_pass_is_the_usual_one():
    model = residual().eval()
    seen = []
    chain(model, IMAGE, forward=lambda batch: seen.append(model(*batch.args)) or seen[-1])
    with torch.no_grad():
        assert torch.equal(seen[0], model(*IMAGE.args))


# ---- the chain by hand, and what is refused


def test_chain_by_hand():
    assert steps(residual(), given=["1.relu", "0", "4.down"]) == ["1.relu", "0", "4.down"]
    assert steps(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), ROW, given=("1", "0")) == ["1", "0"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["0", "1.two", "1.thre"], "unknown layer in the chain '1.thre': did you mean '1.three'"),
        (["0"], "at least two different layers"),
        ([], "at least two different layers"),
        (["0", "0"], "at least two different layers"),
    ],
)
def test_chain_by_hand_is_checked(given, said):
    with pytest.raises(InputError, match=said):
        steps(residual(), given=given)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Linear(6, 2)), r"Sequential runs 1 \(0\): name the modules"),
        (nn.ReLU(), "ReLU runs 0: name the modules"),
        (nn.Linear(6, 2), "Linear runs 0: name the modules"),
    ],
)
def test_fewer_than_two_layers_are_refused(model, said):
    with pytest.raises(InputError, match=said):
        steps(model, ROW)


def test_rows_that_are_no_samples_are_refused_when_asked():
    folded = Of({"a": nn.Linear(6, 6), "b": nn.Linear(3, 2)}, lambda m, x: m.b(m.a(x).reshape(-1, 3)))
    assert len(steps(folded, ROW)) == 2
    with pytest.raises(InputError, match=r"layer 'l.b' returned 4 rows for 2 samples"):
        steps(folded, ROW, each_sample=True)


# ---- what can be pruned


def test_prunable_weights_in_declared_order():
    net = nn.Sequential(
        nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1), nn.ConvTranspose2d(1, 1, 1), nn.Embedding(3, 3), nn.LayerNorm(3),
        nn.Linear(3, 3), nn.LSTM(3, 3), nn.PReLU(),
    )  # fmt: skip
    found = prunable(net)
    lstm = ["6.weight_ih_l0", "6.weight_hh_l0"]
    assert list(found) == ["0.weight", "2.weight", "5.weight", *lstm]
    assert found["5.weight"] is net[5].weight
    assert list(prunable(nn.Linear(2, 2))) == ["weight"]


def test_tied_weights_once_and_embeddings_never():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    net[1].weight, net[3].weight = net[0].weight, net[2].weight
    assert list(prunable(net)) == ["0.weight"]
    bag = nn.ModuleDict({"out": nn.Linear(4, 9), "bag": nn.EmbeddingBag(9, 4), "fc": nn.Linear(4, 4)})
    bag["out"].weight = bag["bag"].weight
    assert list(prunable(bag)) == ["fc.weight"]


def test_frozen_weights_are_left_out():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].weight.requires_grad_(False)
    assert list(prunable(net)) == ["1.weight"]
    with pytest.raises(InputError, match="Sequential has no prunable weights"):
        prunable(net.requires_grad_(False))


def tree():
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 1, 4)),
            "conv1": conv(3, 3),
            "conv2": conv(3, 3),
            "conv": conv(3, 3),
        }
    )


INSIDE = ["encoder.1.self_attn", "encoder.1.self_attn.out_proj", "encoder.1.linear1", "encoder.1.linear2"]


@pytest.mark.parametrize(
    ("skip", "gone"),
    [
        (["conv1"], ["conv1"]),
        ("conv", ["conv"]),
        (["conv?"], ["conv1", "conv2"]),
        (["encoder"], ["encoder.0", *INSIDE]),
        (["encoder.1"], INSIDE),
        (["encoder.*.linear*"], INSIDE[2:]),
        ([nn.Conv2d], ["conv1", "conv2", "conv"]),
        (nn.Conv2d, ["conv1", "conv2", "conv"]),
        (["Conv2d", "encoder.0"], ["encoder.0", "conv1", "conv2", "conv"]),
        ([nn.TransformerEncoderLayer], INSIDE),
        (["MultiheadAttention"], INSIDE[:2]),
        ((n for n in ("conv", "conv2")), ["conv2", "conv"]),
        ((), []),
    ],
)
def test_skip(skip, gone):
    everything = prunable(tree())
    skip = tuple(skip) if not isinstance(skip, str | type) else skip
    assert left_out(tree(), skip) == set(gone)
    weights = [f"{n}.in_proj_weight" if n.endswith("self_attn") else f"{n}.weight" for n in gone]
    assert [n for n in everything if n not in prunable(tree(), skip=skip)] == weights


@pytest.mark.parametrize(
    ("skip", "said"),
    [
        (["conv3"], "unknown layer to skip 'conv3': did you mean 'conv'"),
        ([nn.Conv3d], "unknown layer to skip 'Conv3d'"),
        ([3], "skip holds 3: give names"),
        (["*"], r"no prunable weights.*, and skip=\['\*'\] leaves none"),
        ("*", r"no prunable weights.*, and skip=\['\*'\] leaves none"),
    ],
)
def test_skip_is_checked(skip, said):
    with pytest.raises(InputError, match=said):
        prunable(tree(), skip=skip)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def parametrized(layer):
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda layer: nn.LazyLinear(4), "layer '0' is lazy and has no weight yet: run one batch"),
        (parametrizations.weight_norm, "no plain weight .*remove_parametrizations"),
        (parametrizations.spectral_norm, "no plain weight"),
        (parametrized, "no plain weight"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "torch.nn.utils.prune.remove"),
    ],
)
def test_weights_that_are_not_plain_are_refused(change, said):
    net = nn.Sequential(change(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.raises(InputError, match=said):
        prunable(net)
    assert list(prunable(net, skip=["0"])) == ["1.weight"]


def test_recurrent_and_attention_weights_are_pruned():
    names = {
        nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2): ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"],
        nn.GRU(3, 4): ["weight_ih_l0", "weight_hh_l0"],
        nn.RNN(3, 4, bias=False): ["weight_ih_l0", "weight_hh_l0"],
        nn.LSTMCell(3, 4): ["weight_ih", "weight_hh"],
        nn.MultiheadAttention(4, 2): ["in_proj_weight", "out_proj.weight"],
        nn.MultiheadAttention(4, 2, kdim=3): ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        nn.Bilinear(3, 4, 2): ["weight"],
    }
    for module, expected in names.items():
        found = prunable(module)
        assert list(found)[: len(expected)] == expected
        assert all(module.get_parameter(name) is weight for name, weight in found.items())
    assert len(prunable(next(iter(names)))) == 3 * 4  # two layers, two directions


def test_recurrent_weights_that_are_not_plain_are_refused():
    lstm = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    with pytest.raises(InputError, match=r"layer '0' has no plain weight_hh_l0 .*remove_parametrizations"):
        prunable(nn.Sequential(lstm))


def test_a_model_of_mostly_bare_parameters_is_refused():
    class Held(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.head, self.up = nn.Linear(4, 4), nn.Parameter(torch.ones(2, 4, size))

    assert list(prunable(Held(2))) == ["head.weight"]  # 16 numbers beside 16
    with pytest.raises(
        InputError, match=r"most weights of Held are bare .* such as 'up' of shape \(2, 4, 3\).*skip=\['up'\]"
    ):
        prunable(Held(3))
    assert list(prunable(Held(3), skip=["up"])) == ["head.weight"]
    net = nn.Sequential(Held(9))
    with pytest.raises(InputError, match=r"skip=\['0'\]"):
        prunable(net)
    with pytest.raises(InputError, match=r"no prunable weights: .*and skip"):
        prunable(net, skip=["0"])
    frozen = Held(9)
    frozen.up.requires_grad_(False)
    assert list(prunable(frozen)) == ["head.weight"]


# ---- neighbours


def pairs(model, batch=ROW, **more):
    return [f"{a}->{b}".replace("l.", "") for a, b in chain(model.eval(), batch, **more).pairs]


def test_in_a_row_each_layer_is_a_neighbour_of_the_next():
    for name, shape in (
        ("lenet-5", (1, 28, 28)),
        ("vgg-16", (3, 32, 32)),
        ("resnet-20", (3, 32, 32)),
        ("resnet-18", (3, 32, 32)),
    ):
        net = models.build(name, channels=shape[0], size=shape[1:], classes=10)
        found = chain(net.eval(), unpack(torch.randn(2, *shape)))
        assert found.pairs == tuple(pairwise(found))
    for options in ({}, {"pre": True}, {"bottleneck": True}, {"squeeze": True}):
        found = chain(residual(**options).eval(), IMAGE)
        assert found.pairs == tuple(pairwise(found))


def test_query_key_and_value_are_no_neighbours_of_each_other():
    model = Of(
        {n: nn.Linear(6, 6) for n in ("a", "q", "k", "v", "out")},
        lambda m, x: m.out(torch.softmax(m.q(h := m.a(x)) * m.k(h), -1) * m.v(h)),
    )
    assert pairs(model) == ["a->q", "a->k", "a->v", "q->out", "k->out", "v->out"]


def test_branches_are_paired_with_what_they_feed():
    siamese = unpack(((torch.randn(2, 6), torch.randn(2, 6)), torch.zeros(2)))
    assert pairs(Siamese(), siamese) == ["body->head", "body#2->head"]
    inception = Of(
        {"stem": conv(3, 3), "a": conv(3, 2, 1), "b1": conv(3, 2, 1), "b2": conv(2, 2), "out": conv(4, 3)},
        lambda m, x: m.out(torch.cat([m.a(s := m.stem(x)), m.b2(m.b1(s))], 1)),
    )
    assert pairs(inception, IMAGE) == ["stem->a", "stem->b1", "b1->b2", "a->out", "b2->out"]
    heads = Of({"body": nn.Linear(6, 4), "one": nn.Linear(4, 1), "two": nn.Linear(4, 2)},
               lambda m, x: {"one": m.one(h := m.body(x)), "two": m.two(h)})  # fmt: skip
    assert pairs(heads) == ["body->one", "body->two"]


def test_a_layer_whose_input_is_detached_follows_the_one_before():
    model = Of({n: nn.Linear(6, 6) for n in "abc"}, lambda m, x: m.c(m.b(m.a(x).detach())))
    assert pairs(model) == ["a->b", "b->c"]


def test_places_by_hand_may_be_shared():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    assert pairs(net, given=["0", ("1", "2"), "3"]) == ["0->1", "0->2", "1->3", "2->3"]
    assert pairs(net, given=["3", "0"]) == ["3->0"]


# ---- outputs that are cut into parts


CUTS = {
    "chunk": lambda y: y.chunk(3, -1),
    "split": lambda y: y.split(6, dim=2),
    "split in sizes": lambda y: y.split([10, 4, 4], dim=-1),
    "unbind": lambda y: y.reshape(*y.shape[:2], 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0),
    "index": lambda y: (z := y.unflatten(-1, (3, 6)).transpose(0, 2).contiguous(), z[0], z[1], z[2])[1:],
    "slices": lambda y: (y[..., :6], y[..., 6:12], y[..., 12:]),
    "head by head": lambda y: y.view(*y.shape[:2], 2, 9).chunk(3, -1),
    "inside heads": lambda y: (z := y.view(*y.shape[:2], 2, 3, 3), z[..., 0, :], z[..., 1, :], z[..., 2, :])[1:],
}
INTERLEAVED = [[*range(3 * i, 3 * i + 3), *range(3 * i + 9, 3 * i + 12)] for i in range(3)]
UNITS = {
    "split in sizes": [range(10), range(10, 14), range(14, 18)],
    "head by head": INTERLEAVED,
    "inside heads": INTERLEAVED,
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_fused_query_key_and_value_are_three_steps(cut):
    def run(m, x):
        q, k, v = (part.flatten(1).sum(1) for part in CUTS[cut](m.attention(x)))
        return m.out((q * k + v)[:, None])

    model = Of({"attention": nn.Linear(6, 18), "out": nn.Linear(1, 2)}, run)
    found = chain(model.eval(), unpack(torch.randn(2, 5, 6)))
    assert list(found) == ["l.attention[q]", "l.attention[k]", "l.attention[v]", "l.out"]
    assert pairs(model, unpack(torch.randn(2, 5, 6))) == [f"attention[{part}]->out" for part in "qkv"]
    expected = UNITS.get(cut, [range(6 * i, 6 * i + 6) for i in range(3)])
    assert [found.units[name].nonzero().flatten().tolist() for name in list(found)[:3]] == [list(e) for e in expected]


@pytest.mark.parametrize(
    "use",
    [
        lambda y: y.chunk(3, 0)[0] + y[:1],  # samples, not units
        lambda y: y[:, :2].sum() + y[:, 2:].sum(),  # tokens
        lambda y: y[..., :6].sum() + y[..., 3:].sum(),  # a unit twice
        lambda y: y[..., :6].sum() + y[..., 7:].sum(),  # one not at all
        lambda y: y[..., :6].sum() + y[..., 6:].sum() + y.sum(),  # and the whole besides
        lambda y: sum(part.sum() for part in torch.relu(y).chunk(3, -1)),  # of something else
    ],
)
def test_what_is_not_cut_into_whole_units_stays_one_step(use):
    model = Of(
        {"fused": nn.Linear(6, 18), "out": nn.Linear(1, 2)}, lambda m, x: m.out(use(m.fused(x)).sum().reshape(1, 1))
    )
    assert names(steps(model, unpack(torch.randn(3, 5, 6)))) == ["fused", "out"]


def test_gates_are_parts_by_number():
    model = Of(
        {"up": nn.Conv1d(3, 8, 1), "down": nn.Conv1d(4, 3, 1)},
        lambda m, x: m.down((both := m.up(x).chunk(2, 1))[0].sigmoid() * both[1]),
    )
    assert pairs(model, unpack(torch.randn(2, 3, 5))) == ["up[0]->down", "up[1]->down"]
    assert pairs(model, unpack(torch.randn(2, 3, 5)), given=["l.down", "l.up[1]"]) == ["down->up[1]"]
    with pytest.raises(InputError, match=r"unknown part of a layer in the chain 'l.up\[2\]': did you mean 'l.up\[1\]'"):
        steps(model, unpack(torch.randn(2, 3, 5)), given=["l.down", "l.up[2]"])


def test_a_conv1d_of_transformers_is_known_by_its_looks():
    class Conv1D(nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.nf, self.nx = nf, nx
            self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

        def forward(self, x):
            return torch.addmm(self.bias, x.view(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)

    net = nn.Sequential(Conv1D(5, 6), nn.Linear(5, 2))
    assert list(prunable(net, skip=["0"])) == ["1.weight"]
    with pytest.raises(InputError, match=r"most weights of Sequential are bare .*'0.weight'"):
        prunable(net)
    Conv1D.__module__ = "transformers.pytorch_utils"
    assert list(prunable(net)) == ["0.weight", "1.weight"]
    assert steps(net, unpack(torch.randn(2, 4, 6))) == ["0", "1"]
