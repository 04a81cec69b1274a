from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from incop import Masks, pruning
from incop.errors import InputError, TrainingError
from incop.flow import Damage
from incop.pruning import (
    Competition,
    EvenDamage,
    Fraction,
    Global,
    GradientTimesWeight,
    Layerwise,
    Magnitude,
    NofM,
    PQIndex,
    Random,
    Target,
    prune,
)
from incop.pruning.cut import planned


def chain(sizes, seed=0, coarse=False):
    """Linear layers of the given sizes; coarse weights have many ties and zeros."""
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    with torch.no_grad():
        for layer in net:
            w = torch.randn(layer.weight.shape, generator=g)
            layer.weight.copy_((w * 2).round() / 2 if coarse else w)
    return net


def bits(model):
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def oracle(weights, masks, counts):
    """Cut the lowest magnitudes of each group, ties by position: a stable argsort over what is left, flat.

    `counts` is a list of (names, count).
    """
    new = {n: m.numpy().copy() for n, m in masks.items()}
    for names, count in counts:
        places = [(n, i) for n in names for i in range(new[n].size) if new[n].flat[i]]
        size = np.array([abs(float(weights[n].flatten()[i])) for n, i in places])
        for k in np.argsort(size, kind="stable")[:count]:
            n, i = places[k]
            new[n].flat[i] = False
    return {n: m.tolist() for n, m in new.items()}


sizes = st.lists(st.integers(1, 6), min_size=2, max_size=4)
fractions = st.floats(0, 1) | st.sampled_from([0.0, 0.2, 0.5, 1.0])


@given(sizes, st.integers(0, 1000), st.booleans(), fractions, fractions)
@settings(max_examples=150)
def test_global_cuts_are_those_of_a_stable_sort(layers, seed, coarse, first, second):
    net = chain(layers, seed, coarse)
    weights = {n: net.get_parameter(n).detach() for n in Masks.full(net)}
    masks = Masks.full(net)
    for fraction in (first, second):
        count = round(fraction * masks.remaining)
        new = prune(net, masks=masks, amount=fraction)
        assert {n: m.tolist() for n, m in new.items()} == oracle(weights, masks, [(list(masks), count)])
        assert new.remaining == masks.remaining - count
        assert new.within(masks)
        assert prune(net, masks=masks, amount=Fraction(fraction)) == new
        masks = new


@given(sizes, st.integers(0, 1000), st.booleans(), fractions, st.floats(0, 1))
@settings(max_examples=100)
def test_layerwise_cuts_are_those_of_a_stable_sort(layers, seed, coarse, fraction, output):
    net = chain(layers, seed, coarse)
    weights = {n: net.get_parameter(n).detach() for n in Masks.full(net)}
    masks = Masks.full(net)
    for _ in range(2):
        shares = dict.fromkeys(masks, 1.0)
        shares[list(masks)[-1]] = output
        counts = [([n], round(round(fraction * masks.remaining_in(n)) * shares[n])) for n in masks]
        new = prune(net, masks=masks, amount=fraction, selection=Layerwise(output=output))
        assert {n: m.tolist() for n, m in new.items()} == oracle(weights, masks, counts)
        masks = new


def test_the_output_layer_at_half_the_rate():
    net = chain([10, 10, 10, 10])
    masks = prune(net, amount=0.2, selection=Layerwise(output=0.5))
    assert [masks.remaining_in(n) for n in masks] == [80, 80, 90]
    rated = prune(net, amount=0.2, selection=Layerwise(rates={"0": 0.25, "1.weight": 0.0}))
    assert [rated.remaining_in(n) for n in rated] == [95, 100, 80]


def test_a_target_is_reached_exactly():
    net = chain([30, 20, 10])
    for selection in (Global(), Layerwise()):
        masks = Masks.full(net)
        for level in range(1, 8):
            masks = prune(net, masks=masks, amount=Target(0.97, 5), selection=selection, level=level)
        assert masks.remaining == 24
    assert prune(net, amount=Target(0.97, 5), level=5).remaining == 24


@given(sizes, st.integers(0, 1000), st.booleans(), fractions, st.floats(0, 1), st.booleans())
def test_a_cut_that_must_not_pass_a_sparsity(layers, seed, coarse, fraction, at_most, layerwise):
    net = chain(layers, seed, coarse)
    how = {"amount": fraction, "selection": Layerwise() if layerwise else Global()}
    before = prune(net, amount=0.3)
    free, capped = prune(net, masks=before, **how), prune(net, masks=before, **how, at_most=at_most)
    assert free.within(capped)
    assert capped.within(before)
    most = max(round(at_most * before.total), before.total - before.remaining)
    assert capped.total - capped.remaining == min(free.total - free.remaining, most)
    back = [abs(float(w)) for n in free for w in net.get_parameter(n).detach()[capped[n] & ~free[n]]]
    gone = [abs(float(w)) for n in free for w in net.get_parameter(n).detach()[before[n] & ~capped[n]]]
    assert not back or not gone or min(back) >= max(gone)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_a_sparsity_not_to_pass_is_a_fraction(bad):
    with pytest.raises(InputError, match=r"the sparsity not to pass is a fraction in \[0, 1\]"):
        prune(chain([4, 3]), at_most=bad)


@pytest.mark.parametrize(("p", "q"), [(1.0, 2.0), (0.5, 1.0)])
def test_the_pq_amount_of_what_is_left(p, q):
    net, amount = chain([30, 20, 10]), PQIndex(p, q)
    masks = Masks.full(net)
    for _ in range(3):
        left = torch.cat([net.get_parameter(n).detach()[m] for n, m in masks.items()])
        count = amount(pruning.Competition(left, masks.total))
        new = prune(net, masks=masks, amount=amount)
        assert masks.remaining - new.remaining == count > 0
        layers = prune(net, masks=masks, amount=amount, selection=Layerwise())
        for n, m in masks.items():
            alone = amount(pruning.Competition(net.get_parameter(n).detach()[m], m.numel()))
            assert masks.remaining_in(n) - layers.remaining_in(n) == alone
        masks = new


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_equal_weights_go_by_position(value):
    net = chain([4, 3, 2])
    with torch.no_grad():
        for layer in net:
            layer.weight.fill_(value)
    masks = prune(net, amount=0.5)
    assert masks["0.weight"].flatten().tolist() == [False] * 9 + [True] * 3
    assert bool(masks["1.weight"].all())
    assert prune(net, masks=masks, amount=4 / 9)["1.weight"].flatten().tolist() == [False] + [True] * 5


def test_pruned_weights_are_not_counted_again_though_they_are_zero():
    net = chain([10, 10])
    masks = Masks.full(net)
    for left in (80, 64, 51, 41):
        masks = prune(net, masks=masks, amount=0.2)
        masks.apply(net)
        assert masks.remaining == left


def test_weights_that_are_zero_but_left_go_first():
    net = chain([10, 10])
    with torch.no_grad():
        net[0].weight[3] = 0
    assert not prune(net, amount=0.1)["0.weight"][3].any()


def test_tiny_layers():
    net = chain([1, 1, 1])
    assert prune(net, amount=0.2).remaining == 2
    assert prune(net, amount=0.5).remaining == 1
    assert prune(net, amount=1.0).remaining == 0
    assert prune(net, masks=prune(net, amount=1.0), amount=0.5).remaining == 0
    assert prune(net, amount=PQIndex(beta=1.0), selection=Layerwise()).remaining == 2


@pytest.mark.parametrize("selection", [Global(), Layerwise(output=0.5), NofM(2, 4)])
@pytest.mark.parametrize("score", [Magnitude(), Random(3)])
def test_it_repeats_itself_and_leaves_the_model_alone(selection, score):
    net = chain([20, 12, 6], coarse=True)
    before, random = bits(net), torch.get_rng_state()
    masks = prune(net, amount=0.3, selection=selection, score=score)
    again = prune(net, amount=0.3, selection=selection, score=score)
    assert masks == again
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(m.dtype == torch.bool for m in masks.values())


def test_every_thread_count_gives_the_same():
    net = chain([300, 200, 10], coarse=True)
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 4):
            torch.set_num_threads(n)
            found.append(prune(net, amount=PQIndex()))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


@given(st.integers(0, 1000), st.sampled_from([(2, 4), (1, 2)]), st.floats(0, 1))
def test_n_of_m_shrinks_to_the_pattern(seed, nm, left):
    net = chain([10, 6, 7], seed)
    g = torch.Generator().manual_seed(seed)
    masks = Masks({n: torch.rand(m.shape, generator=g) < left for n, m in Masks.full(net).items()})
    new = prune(net, masks=masks, selection=NofM(*nm))
    assert new.within(masks)
    n, m = nm
    for name, mask in new.items():
        whole = mask.shape[1] // m * m
        groups = mask[:, :whole].reshape(mask.shape[0], -1, m).sum(-1)
        before = masks[name][:, :whole].reshape(mask.shape[0], -1, m).sum(-1)
        assert torch.equal(groups, before.clamp(max=n))
        assert torch.equal(mask[:, whole:], masks[name][:, whole:])


def test_a_convolution_of_two_in_four():
    net = nn.Conv2d(3, 4, 3)
    masks = prune(net, selection=NofM(2, 4))
    assert masks["weight"].shape == (4, 3, 3, 3)
    assert masks.remaining == 4 * (12 + 3)  # 27 weights a row: six groups of four and a tail of three


# --- an amount that asks what a trial would do


@dataclass(frozen=True)
class Largest:
    """The largest count whose damage stays within a tolerance, by bisection."""

    tolerance: float

    def __call__(self, competition):
        low, high = 0, competition.weights.numel()
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if competition.damage(middle) <= self.tolerance else (low, middle - 1)
        return low


def lost(net):
    """The sum of the squares that masks cut away."""

    def damage(masks):
        return sum(float(net.get_parameter(n).detach()[~m].double().square().sum()) for n, m in masks.items())

    return damage


def test_an_amount_that_bisects_on_the_damage():
    net = chain([20, 10, 5])
    damage = lost(net)
    masks = prune(net, amount=Largest(3.0), damage=damage)
    squares = torch.cat([net.get_parameter(n).detach().flatten() for n in masks]).double().square().sort().values
    assert masks.total - masks.remaining == int((squares.cumsum(0) <= 3.0).sum())
    assert damage(masks) <= 3.0 < damage(prune(net, masks=masks, amount=1 / masks.remaining))
    assert masks == prune(net, amount=(masks.total - masks.remaining) / masks.total)


def test_layer_by_layer_a_trial_holds_the_layers_cut_before():
    net = chain([20, 10, 5])
    damage = lost(net)
    masks = prune(net, amount=Largest(3.0), damage=damage, selection=Layerwise())
    alone = prune(net, amount=Largest(3.0), damage=damage, skip=["0"])
    assert damage(masks) <= 3.0
    assert masks.remaining_in("1.weight") > alone.remaining_in("1.weight")  # the first layer has used most of it up
    first = prune(net, amount=Largest(3.0), damage=damage, skip=["1"])
    assert torch.equal(masks["0.weight"], first["0.weight"])


def test_a_trial_is_what_the_answer_would_leave():
    """Also where a layer gives up a share of the amount only, and after levels before."""
    net = chain([20, 10, 5])
    start = prune(net, amount=0.3)
    seen = {}

    @dataclass(frozen=True)
    class Asks:
        def __call__(self, competition):
            for count in (0, 4, 10):
                competition.damage(count)
            return 10

    def damage(masks):
        seen.setdefault(masks.remaining, masks)
        return 0.0

    masks = prune(net, masks=start, amount=Asks(), damage=damage, selection=Layerwise(output=0.5))
    steps = [start.remaining - cut for cut in (0, 4, 10, 12, 15)]
    assert list(seen) == steps
    assert seen[steps[-1]] == masks
    assert all(trial.within(start) and list(trial) == list(start) for trial in seen.values())


def test_the_amount_comes_second_and_the_masks_third():
    net = chain([8, 6, 4])
    masks = prune(net, 0.5)
    assert masks == prune(net, amount=0.5)
    assert masks.remaining == masks.total // 2
    assert prune(net, 0.5, masks) == prune(net, Fraction(0.5), masks=masks)
    with pytest.raises(InputError, match=r"the amount is a Masks: .*third.* masks=masks"):
        prune(net, masks)


@pytest.mark.parametrize("amount", ["0.5", None, [0.5]])
def test_what_is_no_amount_is_refused(amount):
    with pytest.raises(InputError, match=r"the amount is a .*: give a fraction"):
        prune(chain([4, 3]), amount)


def test_an_amount_is_told_how_many_levels_there_are():
    net = chain([20, 10, 5])
    damage = lost(net)
    masks = prune(net, EvenDamage(0.9, 4), level=2, damage=damage)
    assert masks == prune(net, EvenDamage(0.9), level=2, levels=4, damage=damage)


def test_no_damage_no_function():
    seen = []

    def amount(competition):
        seen.append(competition)
        return 1

    net = chain([4, 3])
    prune(net, amount=amount, level=7)
    (one,) = seen
    assert one.damage is None
    assert (one.level, one.total, one.weights.tolist()) == (7, 12, net[0].weight.flatten().tolist())


def test_damage_may_take_gradients():
    net = chain([4, 3])

    def damage(masks):
        value = (net[0].weight * masks["0.weight"]).square().sum()
        return float(torch.autograd.grad(value, net[0].weight)[0].norm())

    prune(net, amount=Largest(1.0), damage=damage)


# --- a path planned by trial cuts


@given(sizes, st.integers(0, 1000), st.booleans(), st.floats(0.1, 0.95), st.floats(0, 0.5), st.integers(1, 9))
@settings(max_examples=60)
def test_trial_cuts_of_a_plan_are_those_that_prune_would_make(layers, seed, coarse, sparsity, before, levels):
    net = chain(layers, seed, coarse)
    masks = prune(net, amount=before)
    kept, tried = bits(net), []

    def damage(trial):
        tried.append(trial)
        return lost(net)(trial)

    path = planned(net, masks, EvenDamage(sparsity, levels, trials=5), damage=damage)
    for trial in tried:
        count = masks.remaining - trial.remaining
        assert trial == prune(net, masks=masks, amount=lambda competition, count=count: count)
    by_count = {masks.remaining - trial.remaining: lost(net)(trial) for trial in tried}
    flat = torch.ones(masks.remaining)
    assert path == EvenDamage(sparsity, levels, 5).plan(Competition(flat, masks.total, damage=by_count.__getitem__))
    for level in range(1, levels + 1):
        masks = prune(net, masks=masks, amount=path, level=level)
    keep = round((1 - sparsity) * masks.total)
    assert masks.remaining == (min(keep, len(flat)) if keep else 0)
    assert all(torch.equal(t, kept[n]) for n, t in net.state_dict().items())


def test_a_plan_heeds_the_score():
    net = chain([6, 5, 4])
    tried = []
    planned(net, Masks.full(net), EvenDamage(0.9, 3, 2), score=Random(3), damage=lambda m: tried.append(m) or 1.0)
    assert [m.remaining for m in tried] == [16, 5]
    assert tried[0] == prune(net, amount=34 / 50, score=Random(3))


@pytest.mark.parametrize("selection", [Layerwise(), Layerwise(output=0.5), NofM(2, 4)])
def test_a_plan_for_layers_on_their_own_is_refused(selection):
    net = chain([6, 5, 4])
    for masks in (Masks.full(net), Masks.full(net, skip=["1"])):
        one = len(masks) == 1 and selection == Layerwise()  # one layer by itself competes with all there is
        if one:
            assert planned(net, masks, EvenDamage(0.9, 1), selection=selection, damage=lost(net)).sparsities == (0.9,)
            continue
        with pytest.raises(
            InputError, match=r"'flow to 0\.9 in 3' plans one path for all weights: .* selection global$"
        ):
            planned(net, masks, EvenDamage(0.9, 3), selection=selection, damage=lost(net))


def test_a_plan_for_weights_that_are_not_finite():
    net = chain([4, 3])
    with torch.no_grad():
        net[0].weight[1, 1] = float("nan")
    with pytest.raises(TrainingError, match=r"weights of '0.weight' or their scores are not finite"):
        planned(net, Masks.full(net), EvenDamage(0.9, 3), damage=lost(net))


@pytest.mark.parametrize("selection", [Global(), Layerwise()])
def test_even_damage_cuts_by_itself_too(selection):
    net = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))
    damage, masks = Damage(net, torch.randn(40, 8)), None
    for level in range(1, 6):
        smaller = prune(net, masks=masks, amount=EvenDamage(0.9, 5), selection=selection, level=level, damage=damage)
        assert masks is None or smaller.within(masks)
        masks = smaller
    assert masks.remaining == round(0.1 * masks.total)
    with pytest.raises(InputError, match=r"prune with damage=flow\.Damage\(model, probe\)"):
        prune(net, amount=EvenDamage(0.9, 5), selection=selection)


# --- what is refused


@pytest.mark.parametrize("count", [-1, 13, 2.5, float("nan"), float("inf")])
def test_an_amount_that_cannot_be_cut(count):
    with pytest.raises(InputError, match=r"the amount .* asks to cut .* of 12 weights that are left"):
        prune(chain([4, 3]), amount=lambda competition: count)


def test_a_share_that_cannot_be_cut():
    with pytest.raises(InputError, match=r"the amount 0.5 asks to cut 6 of 12 .*of which this layer gives up 3"):
        prune(chain([4, 3]), amount=0.5, selection=Layerwise(output=3.0))


def test_a_count_may_be_of_any_whole_kind():
    for count in (np.int64(2), 2.0, torch.tensor(2)):
        assert prune(chain([4, 3]), amount=lambda competition, count=count: count).remaining == 10


@pytest.mark.parametrize("bad", [1.2, -0.1, True, float("nan")])
def test_fractions_out_of_range(bad):
    with pytest.raises(InputError, match="the fraction to prune"):
        prune(chain([4, 3]), amount=bad)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("score", [Magnitude(), Random()])
@pytest.mark.parametrize("selection", [Global(), NofM()])
def test_weights_that_are_not_finite(value, score, selection):
    net = chain([4, 3])
    with torch.no_grad():
        net[0].weight[1, 1] = value
    with pytest.raises(TrainingError, match=r"weights of '0.weight' or their scores are not finite"):
        prune(net, score=score, selection=selection, amount=PQIndex())


def test_no_masks_and_masks_of_another_model():
    with pytest.raises(InputError, match="there are no masks to prune in"):
        prune(chain([4, 3]), masks=Masks({}))
    with pytest.raises(InputError, match="these masks belong to another model"):
        prune(chain([4, 3]), masks=Masks.full(chain([5, 3])))
    with pytest.raises(InputError, match="no prunable weights"):
        prune(nn.ReLU())


def test_layers_left_out():
    net = chain([4, 3, 2])
    assert list(prune(net, skip=["1"])) == ["0.weight"]
    assert list(prune(net, masks=prune(net, skip=["0"]))) == ["1.weight"]


# --- half precision, and the other scores


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    net = chain([20, 10, 5]).to(dtype)
    weights = {n: net.get_parameter(n).detach() for n in Masks.full(net)}
    for amount in (0.3, PQIndex()):
        masks = prune(net, amount=amount)
        count = masks.total - masks.remaining
        assert {n: m.tolist() for n, m in masks.items()} == oracle(weights, Masks.full(net), [(list(masks), count)])


def test_precisions_side_by_side():
    net = chain([20, 10, 5])
    net[1].double()
    assert prune(net, amount=0.3).remaining == 175


def test_gradient_times_weight_decides():
    net = chain([4, 1])
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    x = torch.tensor([[4.0, 0.0, 1.0, 1.0]])  # the second input is silent, so its weight goes first
    score = GradientTimesWeight(lambda output, target: output.mean(), [(x, torch.zeros(1))])
    assert prune(net, amount=0.25, score=score)["0.weight"].tolist() == [[True, False, True, True]]
    assert prune(net, amount=0.5, score=score)["0.weight"].tolist() == [[True, False, False, True]]


def test_a_path_is_planned_as_from_the_first_level():
    class Seen:
        def plan(self, competition):
            self.level = competition.level
            return pruning.SparsityPath((0.5,))

    net, amount = nn.Linear(4, 4), Seen()
    planned(net, Masks.full(net), amount, damage=lambda masks: 0.0)
    assert amount.level == 1


def test_weights_of_double_precision_are_ranked_in_it():
    net = nn.Linear(8, 1).double()
    with torch.no_grad():
        net.weight.copy_(1.0 - 1e-12 * torch.arange(8, dtype=torch.float64))  # all the same in single precision
    assert pruning.prune(net, amount=0.5)["weight"].tolist() == [[True] * 4 + [False] * 4]
