"""Whole units go, dead on both sides: held against a slow oracle, and against what the network then does."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from incop import Masks
from incop.batches import unpack
from incop.errors import InputError, TrainingError
from incop.flow import Damage
from incop.layers import removable
from incop.pruning import Competition, EvenDamage, Fraction, Magnitude, PQIndex, Random, Target, Units, prune
from incop.pruning.cut import planned, reach
from incop.pruning.selection import foremost


def perceptron(sizes, seed=0, coarse=False):
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential()
    for a, b in pairwise(sizes):
        net.append(nn.Linear(a, b)).append(nn.ReLU())
    with torch.no_grad():
        for layer in net[::2]:
            w = torch.randn(layer.weight.shape, generator=g)
            layer.weight.copy_((w * 2).round() / 2 if coarse else w)
    return net[:-1]


def oracle(scores, masks, chain, count, each_layer=False):
    """Take the lowest unit, again and again, until enough weights are gone.

    `chain` is a list of (name, next name, rows of a unit, columns of a unit): two functions from a unit's number to where
    its weights lie. The last name is the output layer's.
    """
    masks = {n: np.array(m) for n, m in masks.items()}
    left = sum(m.sum() for m in masks.values())
    line = []
    for place, (name, _, rows, _, units) in enumerate(chain):
        means = []
        for u in range(units):
            there = [np.array(scores[name])[i] for i in rows(u) if masks[name][i]]
            means.append(np.mean(there, dtype=np.float64) if there else -np.inf)
        ranked = sorted(range(units), key=lambda u: (means[u], u))
        line += [((k + 0.5) / units if each_layer else means[u], place, u) for k, u in enumerate(ranked[:-1])]
    for _, place, u in sorted(line):
        if left - sum(m.sum() for m in masks.values()) >= count:
            break
        name, after, rows, columns, _ = chain[place]
        for i in rows(u):
            masks[name][i] = False
        for i in columns(u):
            masks[after][i] = False
    return {n: m.tolist() for n, m in masks.items()}


def chain_of(sizes):
    def link(at):
        ins, units, outs = sizes[at : at + 3]
        return (
            f"{2 * at}.weight",
            f"{2 * at + 2}.weight",
            lambda u: [(u, i) for i in range(ins)],
            lambda u: [(o, u) for o in range(outs)],
            units,
        )

    return [link(at) for at in range(len(sizes) - 2)]


def lists(tensors):
    return {n: t.tolist() for n, t in tensors.items()}


sizes = st.lists(st.integers(1, 6), min_size=3, max_size=5)
fractions = st.floats(0, 1) | st.sampled_from([0.0, 0.2, 0.5, 1.0])


@given(sizes, st.integers(0, 1000), st.booleans(), fractions, fractions, st.floats(0.3, 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_cuts_are_those_of_the_slow_way(widths, seed, coarse, first, second, left, each_layer):
    net = perceptron(widths, seed, coarse)
    g = torch.Generator().manual_seed(seed)
    masks = Masks({n: torch.rand(m.shape, generator=g) < left for n, m in Masks.full(net).items()})
    scores = {n: net.get_parameter(n).detach().abs().double().tolist() for n in masks}
    how = Units(torch.randn(3, widths[0]), each_layer)
    for fraction in (first, second):
        count = round(fraction * masks.remaining)
        new = prune(net, masks=masks, amount=fraction, selection=how)
        assert lists(new) == oracle(scores, lists(masks), chain_of(widths), count, each_layer)
        assert new.within(masks)
        assert prune(net, masks=masks, amount=Fraction(fraction), selection=how) == new
        masks = new


@given(
    sizes, st.integers(0, 1000), st.sampled_from([(-3.0, 1.0), (0.0, 0.0), (float("inf"), 1.0), (-float("inf"), 2.0)])
)
@settings(max_examples=20, deadline=None)
def test_scores_of_any_kind(widths, seed, few):
    """Negative, equal and infinite ones; of equals the first layer's first units go."""
    net = perceptron(widths, seed)
    g = torch.Generator().manual_seed(seed)
    drawn = {n: torch.tensor(few)[torch.randint(2, m.shape, generator=g)] for n, m in Masks.full(net).items()}
    new = prune(net, amount=0.4, selection=Units(torch.ones(2, widths[0])), score=lambda model, weights: drawn)
    full = Masks.full(net)
    assert lists(new) == oracle(lists(drawn), lists(full), chain_of(widths), round(0.4 * full.total))


def test_the_most_that_can_go_leaves_one_unit_a_layer_and_the_output_layer_its_rows():
    net = perceptron([9, 7, 5, 4])
    masks = prune(net, amount=1.0, selection=Units(torch.ones(2, 9)))
    assert [int(m.any(1).sum()) for m in masks.values()] == [1, 1, 4]
    assert masks.remaining == 9 + 1 + 4
    assert reach(net, Masks.full(net), Units(torch.ones(2, 9))) == pytest.approx(1 - 14 / masks.total)
    assert prune(net, masks=masks, amount=1.0, selection=Units(torch.ones(2, 9))) == masks


def test_every_layer_gives_up_the_same_share_of_its_units():
    net, how, masks = perceptron([30, 100, 40, 20, 5]), Units(torch.ones(2, 30), each_layer=True), None
    for level in range(1, 5):
        masks = prune(net, masks=masks, amount=Target(0.9, 4), selection=how, level=level)
        shares = [int(m.any(1).sum()) / len(m) for m in list(masks.values())[:-1]]
        assert max(shares) - min(shares) <= 1 / 20
    assert 0.9 <= masks.sparsity < 0.92


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_a_cut_that_must_not_pass_a_sparsity_passes_it_by_less_than_a_unit(seed, fraction, at_most):
    net, how = perceptron([6, 7, 5, 3], seed), Units(torch.ones(2, 6))
    before = prune(net, amount=0.2, selection=how)
    free = prune(net, masks=before, amount=fraction, selection=how)
    capped = prune(net, masks=before, amount=fraction, selection=how, at_most=at_most)
    assert free.within(capped)
    assert capped.within(before)
    most = round(at_most * before.total) - (before.total - before.remaining)
    wanted = min(round(fraction * before.remaining), max(most, 0))
    assert capped == prune(net, masks=before, amount=lambda competition: wanted, selection=how)


# --- dead on both sides, whatever the network


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.one, self.norm, self.two = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        x = x + self.two(functional.silu(self.norm(self.one(x))))
        return self.head(x.mean((2, 3)))


class Inverted(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.expand = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 1)
        self.depth, self.norm, self.project = (
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 4, 1),
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.norm(self.depth(functional.relu6(self.expand(x)))).relu())
        return self.head(x.mean((2, 3)))


class Joined(nn.Module):
    """What is read by several, beside others, as in a DenseNet."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.norm, self.c, self.head = nn.BatchNorm2d(9), nn.Conv2d(9, 3, 1), nn.Linear(12, 3)

    def forward(self, x):
        a = self.a(x)
        both = torch.cat([a, self.b(a.relu())], 1)
        return self.head(torch.cat([both, self.c(self.norm(both).relu())], 1).amax((2, 3)))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.gate, self.up, self.down = (nn.Linear(*s) for s in ((36, 8), (8, 6), (8, 6), (6, 3)))

    def forward(self, x):
        x = self.first(x.flatten(1)).relu()
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.block(x[:, 0]).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(36, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x.flatten(1)).relu()).relu()).relu())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(36, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.a(x.flatten(1))
        for _ in range(2):
            x = self.b(x.relu())
        return self.head(x.relu())


class Grouped(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=groups), nn.Conv2d(4, 2, 1)
        self.both = groups == 4

    def forward(self, x):
        x = self.a(x)
        y = self.c(self.b(x.relu()))
        return (y, x) if self.both else y


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.rnn, self.b, self.head = (
            nn.Linear(6, 5),
            nn.GRU(5, 4, batch_first=True),
            nn.Linear(4, 7),
            nn.Linear(7, 3),
        )

    def forward(self, x):
        return self.head(self.b(self.rnn(self.a(x[:, 0]))[0][:, -1]).tanh())


NETWORKS = {
    "chain": (lambda: nn.Sequential(nn.Flatten(), *perceptron([36, 9, 7, 3])), ["1", "3"]),
    "convolutions": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2)),
            *(nn.Flatten(), nn.LeakyReLU(), nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)),
        ),
        ["0", "4", "7"],
    ),
    "transposed": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2), nn.Sigmoid(), nn.ChannelShuffle(2)),
            *(nn.Conv2d(6, 12, 3, groups=6), nn.InstanceNorm2d(12), nn.ConvTranspose2d(12, 24, 2, groups=12)),
            nn.Conv2d(24, 2, 3),
        ),
        ["0", "2"],
    ),
    "inverted": (Inverted, ["expand"]),
    "residual": (Residual, ["one"]),
    "joined": (Joined, ["a", "b", "c"]),
    "gated": (Gated, ["first"]),
    "transformer": (Encoder, ["block.linear1"]),
    "recurrent": (Recurrent, ["b"]),
}


def network(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = NETWORKS[name][0]()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training, some channels far from 0
                module.weight.data.uniform_(-2, 2)
                module.bias.data.uniform_(-2, 2)
                module.running_var.uniform_(0.1, 3)
    return net, torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(2))


def gone_units(net, masks, layer):
    """The numbers of a layer's units that have no weight left, by what its output still depends on."""
    module = copy.deepcopy(net.get_submodule(layer))
    with torch.no_grad():
        module.weight.copy_(masks[f"{layer}.weight"].double())
        shape = (1, module.in_channels, 9, 9) if hasattr(module, "in_channels") else (1, module.in_features)
        if module.bias is not None:
            module.bias.zero_()
        out = module(torch.ones(shape[: 2 + (module.weight.dim() - 2)]))
    units = out.reshape(out.shape[1], -1) if out.dim() > 2 else out.reshape(-1, 1)
    return [u for u, values in enumerate(units) if not values.any()]


@pytest.mark.parametrize("each_layer", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_unit_that_went_is_heard_by_nobody(name, each_layer):
    """What its bias says reaches no output: the network without it is the same network. Of one that stays it does."""
    net, x = network(name)
    how = Units(x, each_layer)
    assert list(how.removable(net).layers) == NETWORKS[name][1]
    masks = prune(net, amount=0.4, selection=how)
    masks.apply(net)
    net.eval()
    before = net(x)
    gone = {layer: gone_units(net, masks, layer) for layer in NETWORKS[name][1]}
    assert any(gone.values())
    for layer, units in gone.items():
        bias = net.get_submodule(layer).bias
        bias[units] += 1e3
        assert torch.equal(net(x), before)
        stays = sorted(set(range(len(bias))) - set(units))
        bias[stays] += torch.randn(len(stays), generator=torch.Generator().manual_seed(0)) * 30
        assert not torch.equal(net(x), before)
        before = net(x)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_weights_of_a_unit_go_together(name):
    net, x = network(name)
    how = Units(x)
    found = how.removable(net)
    one = {
        weight: set(line[line >= 0].tolist()) for weight, line in how.line(net, scores_of(net), Masks.full(net)).items()
    }
    masks = prune(net, amount=0.4, selection=how)
    line = how.line(net, scores_of(net), Masks.full(net))
    gone = {place for weight, places in line.items() for place in places[~masks[weight]].tolist()}
    for weight, places in line.items():
        assert not {p for p in one[weight] if p in gone} & set(places[masks[weight]].tolist())
        assert -1 not in places[~masks[weight]].tolist()
    assert gone == set(range(len(gone)))  # the foremost went
    assert set(found.layers) == set(NETWORKS[name][1])


def scores_of(net):
    return Magnitude()(net, {n: net.get_parameter(n).detach() for n in Masks.full(net)})


@pytest.mark.parametrize(
    ("net", "layer", "why"),
    [
        (Tied(), "b", "it shares its weight with another module"),
        (Twice(), "b", "it runs more than once"),
        (Grouped(2), "b", "it is a convolution in groups of several channels"),
        (Grouped(4), "b", "it reads 'a' by channel, and the network returns it"),
    ],
)
def test_layers_whose_units_are_not_their_own_keep_them_and_those_they_read(net, layer, why):
    found = Units(torch.randn(3, 1, 6, 6)).removable(net)
    assert found.whole[layer] == why
    assert "a" in found.whole
    assert not found.layers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    net = perceptron([6, 8, 5, 3])
    wanted = prune(net.to(dtype).float(), amount=0.4, selection=Units(torch.ones(2, 6)))
    assert prune(net.to(dtype), amount=0.4, selection=Units(torch.ones(2, 6, dtype=dtype))) == wanted


# --- it goes with every amount and leaves no trace


@pytest.mark.parametrize("amount", [0.3, PQIndex(), Target(0.8, 4)])
@pytest.mark.parametrize("score", [Magnitude(), Random(3)])
def test_it_repeats_itself_and_leaves_the_model_alone(amount, score):
    net, x = network("convolutions")
    net.train()
    before, random = {n: t.clone() for n, t in net.state_dict().items()}, torch.get_rng_state()
    how = Units(x)
    masks = prune(net, amount=amount, selection=how, score=score)
    assert masks == prune(net, amount=amount, selection=Units(x[:1] * 3), score=score)  # the values do not matter
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in net.modules())


def test_what_a_depthwise_convolution_reads_stays_when_its_filters_do():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4))
    found = Units(torch.randn(8, 1, 6, 6)).removable(net)
    assert found.whole == {"0": "'2' reads it by channel, and the network returns it", "2": "the network returns it"}


def test_looking_for_units_puts_the_layers_own_forward_back():
    net, x = network("chain")
    own = net[1].forward
    net[3].forward = net[3].forward  # as accelerate's hooks do: one of the module's own
    removable(net.eval(), unpack(x))
    assert net[1].forward == own
    assert [name for name, m in net.named_modules() if "forward" in vars(m)] == ["3"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_the_flow_chooses_among_whole_units():
    net, x = (
        nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5)),
        torch.randn(40, 8),
    )
    damage, how = Damage(net, x), Units(x)
    tried = []
    path = planned(
        net, Masks.full(net), EvenDamage(0.8, 4), selection=how, damage=lambda m: tried.append(m) or damage(m)
    )
    for trial in tried:
        asked = trial.total - trial.remaining
        assert trial == prune(net, amount=lambda competition, asked=asked: asked, selection=how)
    masks = None
    for level in range(1, 5):
        masks = prune(net, masks=masks, amount=path, selection=how, level=level)
    assert masks.total - masks.remaining >= round(0.8 * masks.total)


def test_an_amount_is_told_of_all_weights_that_are_left():
    seen = []

    def amount(competition):
        seen.append(competition)
        return 1

    net = perceptron([4, 3, 2])
    masks = prune(net, amount=amount, selection=Units(torch.ones(2, 4)), level=3)
    assert isinstance(seen[0], Competition)
    assert (len(seen), seen[0].total, seen[0].weights.numel(), seen[0].level) == (1, 18, 18, 3)
    assert masks.remaining == 18 - 4 - 2  # one unit, since that is the least there is


def test_layers_left_out_keep_their_weights():
    net = perceptron([6, 8, 7, 3])
    masks = prune(net, amount=0.4, selection=Units(torch.ones(2, 6)), skip=["2"])
    assert list(masks) == ["0.weight", "4.weight"]
    assert 0 < int(masks["0.weight"].any(1).sum()) < 8
    assert bool(masks["4.weight"].all())  # its inputs are units of the layer that is left out


def test_wrapped_and_compiled_models_are_followed_within():
    net, x = network("convolutions")
    masks = prune(net, amount=0.4, selection=Units(x))
    assert prune(nn.DataParallel(net), amount=0.4, selection=Units(x)) == masks


# --- a line of one's own


class Pairs:
    """Weights go in pairs along a row, the pair with the lowest sum first."""

    by_amount = True

    def groups(self, names):
        return [([name], 1.0) for name in names]

    def line(self, model, scores, masks):
        places = {}
        for name, score in scores.items():
            sums = score.reshape(-1, 2).sum(1)
            places[name] = sums.argsort().argsort().repeat_interleave(2).reshape(score.shape)
        return places


def test_a_line_of_ones_own():
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    masks = prune(net, amount=0.3, selection=Pairs())
    for name, mask in masks.items():
        pairs = mask.reshape(-1, 2)
        assert torch.equal(pairs[:, 0], pairs[:, 1])
        gone = round(0.3 * mask.numel())
        assert int((~mask).sum()) == gone + gone % 2
        sums = net.get_parameter(name).detach().abs().reshape(-1, 2).sum(1)
        assert sums[~pairs[:, 0]].max() < sums[pairs[:, 0]].min()


@given(st.lists(st.integers(-1, 5), max_size=20), st.integers(-1, 25))
def test_foremost_is_the_slow_way(places, count):
    gone = [False] * len(places)
    for place in sorted({p for p in places if p >= 0}):
        if sum(gone) >= count:
            break
        gone = [was or p == place for was, p in zip(gone, places, strict=True)]
    assert foremost(torch.tensor(places, dtype=torch.int32), count).tolist() == gone


# --- what is refused


def test_what_cannot_be_followed():
    net = perceptron([4, 3, 2])
    with pytest.raises(
        InputError, match=r"Units follow the network with a batch of inputs: give one, Units\(example\)"
    ):
        prune(net, selection=Units(None))
    with pytest.raises(InputError, match=r"Sequential cannot be followed on the example of Units \(RuntimeError: mat1"):
        prune(net, selection=Units(torch.ones(2, 5)))
    with pytest.raises(
        InputError, match=r"no unit of Linear could go: no layer of a known kind runs within it; use a selection"
    ):
        prune(nn.Linear(4, 3), selection=Units(torch.ones(2, 4)))
    with pytest.raises(InputError, match=r"no unit of Sequential could go: "):
        prune(net, selection=Units(torch.ones(2, 4)), skip=["0"])


def test_weights_that_are_not_finite():
    net = perceptron([4, 3, 2])
    with torch.no_grad():
        net[0].weight[1, 1] = float("nan")
    with pytest.raises(TrainingError, match=r"weights of '0.weight' or their scores are not finite"):
        prune(net, selection=Units(torch.ones(2, 4)))


def test_in_words():
    assert (str(Units(None)), str(Units(None, each_layer=True))) == ("units", "units:layer")
    assert Units(torch.ones(1)) == Units(torch.zeros(2))
    net, x = network("residual")
    said = Units(x).about(net)
    assert said.startswith("the units of 1 layers compete: one. 3 keep all of theirs: stem ('head' reads it mixed")
