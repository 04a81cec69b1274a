"""Statement 6 of docs/theory.md: when an early stop leaves the next mask as it would have been, and how errors add up."""

import copy

import numpy as np
import pytest
import theory_claims as claims
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from theory_networks import train
from torch import nn

import incop
from incop import pruning, stopping
from incop.records import Check, History

FINE = settings(max_examples=60, deadline=None, derandomize=True)


class Bare(nn.Module):
    """A network of one weight matrix, for masks."""

    def __init__(self, weights):
        super().__init__()
        self.layer = nn.Linear(len(weights), 1, bias=False).double()
        with torch.no_grad():
            self.layer.weight.copy_(torch.as_tensor(np.array(weights)))


def cut(weights, count, masks=None):
    """The product's cut of so many of the weights that are left, as a boolean array: True stays."""
    left = len(weights) if masks is None else masks.remaining
    new = incop.prune(Bare(weights), masks=masks, amount=pruning.Fraction(count / left))
    assert left - new.remaining == count
    return new


def sizes_of(model):
    return np.concatenate([w.detach().abs().numpy().ravel() for w in incop.Masks.full(model).weights(model).values()])


numbers = st.floats(-5, 5, allow_nan=False, width=32)


@FINE
@given(st.lists(numbers, min_size=4, max_size=20, unique_by=abs), st.data())
def test_less_than_half_the_margin_leaves_the_mask(weights, data):
    count = data.draw(st.integers(1, len(weights) - 1))
    gap = claims.margin(np.abs(weights), count)
    moves = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=len(weights), max_size=len(weights))))
    assert cut(np.array(weights) + moves * gap * 0.4999, count) == cut(weights, count)


@FINE
@given(st.lists(numbers, min_size=4, max_size=20, unique_by=abs), st.data())
def test_more_than_half_the_margin_may_not(weights, data):
    """Sharp: the two weights at the cut, moved towards each other by a little more than half the gap, change places."""
    count = data.draw(st.integers(1, len(weights) - 1))
    weights = np.array(weights)
    order = np.argsort(np.abs(weights))
    below, above = order[count - 1], order[count]
    gap = abs(weights[above]) - abs(weights[below])
    moved = weights.copy()
    moved[below] += np.copysign(0.501 * gap, weights[below])
    moved[above] -= np.copysign(0.501 * gap, weights[above])
    before, after = cut(weights, count)["layer.weight"][0], cut(moved, count)["layer.weight"][0]
    assert (bool(before[above]), bool(after[above])) == (True, False)
    assert int((before ^ after).sum()) == 2


@FINE
@given(st.lists(numbers, min_size=6, max_size=30, unique_by=abs), st.floats(0, 1), st.data())
def test_only_weights_near_the_cut_change_places(weights, moved, data):
    count = data.draw(st.integers(1, len(weights) - 1))
    moves = np.array(
        data.draw(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=len(weights), max_size=len(weights)))
    )
    before, after = cut(weights, count), cut(np.array(weights) + moves * moved, count)
    swaps = int((before["layer.weight"] ^ after["layer.weight"]).sum()) // 2
    assert swaps <= claims.most_swaps(np.abs(weights), count, moved + 1e-9)
    assert before.change(after) == pytest.approx(claims.change_of(swaps, before.remaining))


def test_the_number_that_may_change_places_is_reached():
    weights, count = np.array([1.0, 1.1, 1.2, 1.3, 1.45, 1.5, 1.6, 1.7]), 4
    most = claims.most_swaps(weights, count, 0.2)
    moved = np.where(np.arange(8) < 4, weights + 0.2, weights - 0.2)
    swaps = int((cut(weights, count)["layer.weight"] ^ cut(moved, count)["layer.weight"]).sum()) // 2
    assert most == swaps == 2


@pytest.fixture(scope="module")
def stopped(digits):
    """A network stopped early, and where its full training ends, from one start."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
    early = train(start, *digits, epochs=6, lr=3e-3)
    late = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
    late.load_state_dict(early.state_dict())
    return early, train(late, *digits, epochs=2, lr=2e-4)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_an_early_stop_of_real_training(stopped, fraction):
    early, late = stopped
    moved = max(
        float((a - b).detach().abs().max())
        for a, b in zip(*(incop.Masks.full(m).weights(m).values() for m in stopped), strict=True)
    )
    sizes, count = sizes_of(early), round(fraction * len(sizes_of(early)))
    before, after = (incop.prune(m, amount=fraction) for m in (early, late))
    swaps = before.remaining - before.intersect(after).remaining
    assert 0 < swaps <= claims.most_swaps(sizes, count, moved)
    assert claims.most_swaps(sizes, count, moved) < before.remaining  # it says something
    assert claims.margin(sizes, count) < 2 * moved  # and the margin alone says nothing: of 1,184 weights gaps are tiny


def test_layer_by_layer_each_layer_has_its_own_margin(stopped):
    early, _ = stopped
    selection = pruning.Layerwise()
    before = incop.prune(early, amount=0.5, selection=selection)
    least = min(claims.margin(w.detach().abs().numpy().ravel(), w.numel() // 2) for w in before.weights(early).values())
    moved = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
    moved.load_state_dict(early.state_dict())
    with torch.no_grad():
        for w in before.weights(moved).values():
            w += torch.empty_like(w).uniform_(-0.499, 0.499, generator=torch.Generator().manual_seed(0)) * least
    assert incop.prune(moved, amount=0.5, selection=selection) == before


def settled(masks, less_than, checks):
    """What `MaskSettled` says of masks that were looked at in turn, and of which look."""
    looks = []
    for number, mask in enumerate(masks):
        changes = tuple(mask.change(older) for older in reversed(masks[max(0, number - 10) : number]))
        looks.append(Check(1, number, float(number), mask_changes=changes))
        if number and stopping.MaskSettled(less_than, checks)(History(tuple(looks))).stop:
            return number
    return None


def test_settled_follows_from_little_movement(stopped):
    """Weights that moved by so little since each of the last looks that few can have changed places: the rule stops."""
    _, late = stopped
    sizes, count = sizes_of(late), round(0.5 * len(sizes_of(late)))
    kept = len(sizes) - count
    less_than = 0.1
    moved = next(
        m for m in np.linspace(0.01, 0, 1000) if claims.change_of(claims.most_swaps(sizes, count, m), kept) < less_than
    )
    assert moved > 0
    rng, masks = torch.Generator().manual_seed(0), []
    for _ in range(3):  # the looks before: all within `moved` of where the weights are now
        model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
        model.load_state_dict(late.state_dict())
        with torch.no_grad():
            for w in incop.Masks.full(model).weights(model).values():
                w += torch.empty_like(w).uniform_(-1, 1, generator=rng) * moved
        masks.append(incop.prune(model, amount=0.5))
    assert settled([*masks, incop.prune(late, amount=0.5)], less_than, 3) == 3


def test_false_that_a_settled_mask_is_the_last_one():
    """Weights that drift slowly, the same way: no six looks in a row differ by a tenth, and nothing of the mask is left at last."""
    places = np.arange(200) / 200
    masks = [cut(2 + np.cos(2 * np.pi * (places - t) - 0.001), 100) for t in np.linspace(0, 0.5, 101)]
    assert all(settled(masks[k : k + 6], 0.1, 5) == 5 for k in range(95))
    assert masks[5].change(masks[-1]) > 0.9
    assert masks[0].change(masks[-1]) == 1.0


@FINE
@given(st.floats(0.1, 0.9), st.integers(0, 2**20))
def test_movement_that_shrinks_bounds_what_is_still_to_come(ratio, seed):
    """Each look's movement at most `ratio` times the last's: then the mask now is near the last one, by 6.2."""
    rng = np.random.default_rng(seed)
    weights, count = rng.standard_normal(60), 30
    path, moved = [weights], 0.05
    for _ in range(40):
        path.append(path[-1] + moved * rng.uniform(-1, 1, 60))
        moved *= ratio
    for look in (1, 3, 6):
        last = 0.05 * ratio ** (look - 1)  # the bound on the movement before this look
        left = claims.still_to_move(last, ratio)
        assert np.abs(path[-1] - path[look]).max() <= left + 1e-12
        swaps = int((cut(path[look], count)["layer.weight"] ^ cut(path[-1], count)["layer.weight"]).sum()) // 2
        assert swaps <= claims.most_swaps(np.abs(path[look]), count, left + 1e-12)


@FINE
@given(st.integers(0, 2**20), st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_with_scores_that_stay_errors_add_and_do_not_grow(seed, swaps):
    """Levels cut by one ranking; at each, the other path also swaps a few places. In the end they differ by no more than all."""
    rng = np.random.default_rng(seed)
    weights = rng.permutation(np.arange(1.0, 61.0))
    full, early = incop.Masks.full(Bare(weights)), incop.Masks.full(Bare(weights))
    for level, some in enumerate(swaps):
        full, early = (cut(weights, 12, masks) for masks in (full, early))
        mask = early["layer.weight"].clone()
        gone, stay = (np.flatnonzero(side) for side in (~mask[0].numpy(), mask[0].numpy()))
        mask[0, rng.choice(gone, some, replace=False)] = True
        mask[0, rng.choice(stay, some, replace=False)] = False
        early = incop.Masks({"layer.weight": mask})
        apart = int((full["layer.weight"] ^ early["layer.weight"]).sum())
        assert apart <= claims.added_swaps(swaps[: level + 1], [1.0] * (level + 1))


def test_one_swap_may_stay_one_swap():
    """6.5 is reached: a swap at the first level among weights that no later level touches is still there at the end."""
    weights = np.arange(1.0, 21.0)
    full = cut(weights, 5)
    mask = full["layer.weight"].clone()
    mask[0, 0], mask[0, 19] = True, False
    early = incop.Masks({"layer.weight": mask})
    for _ in range(2):
        full, early = cut(weights, 3, full), cut(weights, 3, early)
    assert int((full["layer.weight"] ^ early["layer.weight"]).sum()) == 2 == claims.added_swaps([1, 0, 0], [1, 1, 1])


def test_false_with_training_in_between_that_errors_only_add():
    """Two masks that differ in one swap, training that moves scores by which weights are left: then all differ."""
    weights = np.arange(1.0, 21.0)
    one = cut(weights, 2)
    mask = one["layer.weight"].clone()
    mask[0, 1], mask[0, 2] = True, False
    other = incop.Masks({"layer.weight": mask})

    def trained(masks):  # what training may do: it depends on the mask, and on nothing that 6.5 could bound
        return weights[::-1].copy() if bool(masks["layer.weight"][0, 1]) else weights

    after = [cut(trained(masks), 9, masks) for masks in (one, other)]
    apart = int((after[0]["layer.weight"] ^ after[1]["layer.weight"]).sum())
    assert apart > claims.added_swaps([1, 0], [1, 1]) * 4


def tickets(rewind, epochs, net, data):
    trainer = incop.Trainer(data, data, epochs=6, batch_size=20, lr=0.001)
    return list(
        incop.search(
            copy.deepcopy(net),
            trainer,
            probe=data[0],
            amount=pruning.Fraction(0.25),
            levels=2,
            rule=stopping.AfterEpochs(epochs),
            rewind=rewind,
        )
    )


@pytest.mark.parametrize(("rewind", "same"), [("init", True), ("rate", False)])
def test_with_rewinding_to_a_fixed_point_an_unchanged_mask_ends_all_difference(rewind, same):
    """Level 1 stopped at half its training: where the next mask is the same, level 2 is the same to the last bit, if it begins
    from the rewind point; where weights are kept it begins elsewhere."""
    torch.manual_seed(1)
    x = torch.randn(80, 3)
    data = x, (x[:, 0] > 0).long()
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    sizes = 0.2 + 0.1 * torch.randperm(20)  # the gaps are wider than 24 steps of Adam at 0.001 can close
    with torch.no_grad():
        for layer, part in ((net[0], sizes[:12].reshape(4, 3)), (net[2], sizes[12:].reshape(2, 4))):
            layer.weight.copy_(part * layer.weight.sign())
    half, full = (tickets(rewind, epochs, net, data) for epochs in (3, 6))
    assert [t.record.epochs for t in half] == [6, 3, 6]
    assert all(a.masks == b.masks for a, b in zip(half, full, strict=True))
    assert any(not torch.equal(half[1].weights[name], full[1].weights[name]) for name in half[1].weights)
    assert all(torch.equal(half[2].weights[name], full[2].weights[name]) for name in half[2].weights) == same
