"""The right-hand sides of docs/theory.md, as formulas in NumPy: what the tests hold the code and the world against.

Each is named by its number on the page. Nothing here imports incop.
"""

import math

import numpy as np

# ------------------------------------------------------------------ 1 · the mean of the correlations


def mean_bound(within, within_next):
    """1.2: |Δ| is at most the geometric mean of the two layers' own mean correlations."""
    return math.sqrt(max(within, 0.0) * max(within_next, 0.0))


def random_sign_square(mean_square, units, next_units):
    """1.4: mean of Δ² over all signs of the units of both layers."""
    return mean_square / (units * next_units)


def random_sign_square_next(column_means):
    """1.5: mean of Δ² over all signs of the units of the next layer alone."""
    return float(np.square(column_means).sum()) / len(column_means) ** 2


# ------------------------------------------------------------------ 2 · symmetries


def rescaled_gradients(own, following, factor):
    """2.3: gradient norms of a layer scaled by `factor` and of the next layer, which undoes it."""
    return own / factor, following * factor


# ------------------------------------------------------------------ 3 · sampling


def influence(z_nM, z_nK, reduction="mean"):
    """3.1: influence of each sample on the flow; z are standardised outputs. Its mean is 0."""
    n = len(z_nM)
    rho = z_nM.T @ z_nK / n
    weight = {"mean": np.ones_like(rho), "absolute": np.sign(rho), "square": 2 * rho}[reduction] / rho.size
    cross = np.einsum("ni,ij,nj->n", z_nM, weight, z_nK)
    own, following = (weight * rho).sum(1), (weight * rho).sum(0)
    return cross - 0.5 * (z_nM**2 @ own + z_nK**2 @ following)


def mean_influence_linear(z_nM, z_nK):
    """3.1 for the mean, without a matrix between the layers: linear in the widths."""
    u, v = z_nM.mean(1), z_nK.mean(1)
    own, following = z_nM.T @ v / len(v), z_nK.T @ u / len(u)
    return u * v - 0.5 * ((z_nM**2 @ own) / z_nM.shape[1] + (z_nK**2 @ following) / z_nK.shape[1])


def chance_square(samples):
    """3.3: mean squared correlation of two independent units on n samples, exactly."""
    return 1.0 / (samples - 1)


def concentration(samples, bound, units, failure, pairs=1):
    """3.4: with probability 1 − failure, |Δ̂ − Δ| is at most this; |z| ≤ bound, `units` in both layers together.

    With `pairs` = M K it holds for every single correlation at once, hence for the mean absolute one, and twice it for the
    mean square.
    """
    level = math.log((4 * units + 2 * pairs) / failure)
    return bound**2 * (3 / math.sqrt(2) * math.sqrt(level / samples) + 4 * level / samples)


def concentration_samples(resolution, bound, units, failure):
    """3.4 solved for n: so many samples are enough for this resolution."""
    level = math.log((4 * units + 2) / failure)
    root = (3 / math.sqrt(2) + math.sqrt(4.5 + 16 * resolution / bound**2)) / (2 * resolution / bound**2)
    return math.ceil(level * root**2)


def gradient_square(gradient, gradient_of_samples, samples):
    """3.5: mean of ‖ĝ‖² over probes of n samples."""
    spread = ((gradient_of_samples - gradient) ** 2).sum(-1).mean()
    return float((gradient**2).sum() + spread / samples)


def gradient_deviation(largest, samples, failure):
    """3.5: with probability 1 − failure, ‖ĝ − g‖ is at most this, where no sample's gradient is larger."""
    return largest / math.sqrt(samples) * (1 + math.sqrt(2 * math.log(1 / failure)))


def chebyshev(times):
    """3.6: how often a flow that is back is seen at least so many times the sampling error away."""
    return 1.0 / times**2


# ------------------------------------------------------------------ 4 · flow and the best linear read-out


def read_out_change(w, w_now, d_rho, d_c):
    """4.1: the change of R² of one unit, exactly, by the two read-outs and the changes of the correlations."""
    return float((w + w_now) @ d_rho - w @ d_c @ w_now)


def read_out_bound_own(w, w_now, d_rho, d_c_norm):
    """4.2: the same, bounded for one unit by the sizes of the changes and of the read-outs themselves."""
    size, size_now = np.linalg.norm(w), np.linalg.norm(w_now)
    return float((size + size_now) * np.linalg.norm(d_rho) + size * size_now * d_c_norm)


def read_out_bound(least, least_now, root_mean_square, units, d_c_norm):
    """4.3: the mean of |change of R²| over the next layer's units is at most this."""
    first = (least**-0.5 + least_now**-0.5) * math.sqrt(units) * root_mean_square
    return first + d_c_norm / math.sqrt(least * least_now)


def lipschitz_gap(lipschitz, units, mean_r2):
    """4.4: how much a Lipschitz loss changes when the next layer is replaced by its best linear read-out."""
    return lipschitz * math.sqrt(units * max(1.0 - mean_r2, 0.0))


# ------------------------------------------------------------------ 5 · gradient flow and the loss


def first_order(norms, moves, smoothness):
    """5.1: |L(w + d) − L(w)| is at most this."""
    return sum(g * d for g, d in zip(norms, moves, strict=True)) + smoothness / 2 * sum(d**2 for d in moves)


def polyak_gap(norms, mu):
    """5.3: L − L⋆ is at most this under the Polyak–Łojasiewicz condition."""
    return sum(g**2 for g in norms) / (2 * mu)


# ------------------------------------------------------------------ 6 · margins of the mask


def margin(sizes, cut):
    """6.1: the gap between the largest weight that goes and the smallest that stays."""
    order = np.sort(sizes)
    return float(order[cut] - order[cut - 1])


def most_swaps(sizes, cut, moved):
    """6.2: as many weights at most change places when none moves by more than `moved`: r of them need the r-th above the
    cut to lie within twice that of the r-th below it."""
    order = np.sort(sizes)
    above, below = order[cut:], order[:cut][::-1]
    r = min(len(above), len(below))
    return int((above[:r] - below[:r] <= 2 * moved).sum())


def change_of(swaps, kept):
    """6.3: the mask's change, as `Masks.change` counts it, when so many weights changed places."""
    return 2 * swaps / (kept + swaps)


def still_to_move(last, ratio):
    """6.4: what is still to come, when each check's movement is `ratio` times the last's."""
    return last * ratio / (1 - ratio)


def added_swaps(swaps, stretch):
    """6.5: the difference of two masks after all levels; each level stretches what came before by `stretch`."""
    total = 0.0
    for one, by in zip(swaps, stretch, strict=True):
        total = total * by + 2 * one
    return total


# ------------------------------------------------------------------ 7 · spending unevenly


def triple_error(r, s):
    """7.1: how far a correlation over two cuts may be from the product of the two."""
    return math.sqrt((1 - r**2) * (1 - s**2))


def left_over(damage, stretch, power, speed=1.0):
    """7.2: what a stretch leaves of a damage that is repaired at the speed v(d) = speed · d^power."""
    damage = np.asarray(damage, dtype=float)
    if power == 1.0:
        return damage * math.exp(-speed * stretch)
    p = 1.0 - power
    if power < 1.0:
        return np.maximum(damage**p - p * speed * stretch, 0.0) ** (1 / p)
    with np.errstate(divide="ignore"):
        return np.where(damage > 0, (damage**p - p * speed * stretch) ** (1 / p), 0.0)


def best_total(total, cuts, stretch, power):
    """7.3: the least sum of what is left, for 0 ≤ power ≤ 1: that of equal damages."""
    return float(cuts * left_over(total / cuts, stretch, power))


def best_stretches(damages, total):
    """7.5: how long each of given damages is repaired, for v(d) = d, so that all end at one height (or were below it)."""
    damages = np.asarray(damages, dtype=float)
    order = np.sort(damages)[::-1]
    for k in range(len(order), 0, -1):
        height = math.exp((np.log(order[:k]).sum() - total) / k)
        if height <= order[k - 1]:
            break
    return np.maximum(np.log(damages / height), 0.0)
