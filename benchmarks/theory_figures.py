"""Draw the figures of docs/theory.md and measure the numbers it gives, on networks trained on the digits.

    python benchmarks/theory_figures.py [--out benchmarks/results/DATE-theory]

Writes docs/figures/theory-*.svg and a page of numbers. The formulas are those of tests/theory/theory_claims.py, the networks those
of the tests. Half a minute.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import math
import platform
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch

import incop
from incop import pruning
from incop.experiments import datasets, models
from incop.flow import Damage, InformationFlow, sampling_error

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "theory"))
import theory_claims as claims  # noqa: E402
from theory_networks import Network, mlp, train  # noqa: E402
from theory_oracles import lives, outputs, r2, rho, standardised  # noqa: E402

FIGURES = ROOT / "docs" / "figures"
FORMS = {"mean": "mean", "absolute": "mean absolute", "square": "mean square"}
COLOURS = {
    "mean": "#1b6ca8",
    "absolute": "#c1552d",
    "square": "#5b8c3a",
    "flow": "#1b6ca8",
    "even": "#c1552d",
    "cubic": "#5b8c3a",
}
mpl.rcParams.update({"svg.hashsalt": "incop", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = datasets.load("digits")
    return (data.train.images.double().flatten(1) / 255 - 0.3) / 0.376, data.train.labels


def trained(x: torch.Tensor, y: torch.Tensor) -> Network:
    torch.manual_seed(0)
    model, names = mlp(64, 24, 16)
    return Network(train(model, x, y, epochs=25).eval(), x, y, names)


def save(figure: plt.Figure, name: str) -> None:
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"theory-{name}.svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    plt.close(figure)


def flow_value(a: np.ndarray, b: np.ndarray, form: str) -> float:
    found = rho(a, b)
    return float({"mean": found, "absolute": np.abs(found), "square": found**2}[form].mean())


def coverage(network: Network, repetitions: int = 1000) -> list[str]:
    """Draw how often the 95 % interval of each form holds the true value, by the probe's size."""
    out = outputs(network.model, network.x, network.names)
    a, b = (out[name] for name in network.names[:2])
    sizes = (32, 64, 128, 256, 512, 1024)
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {form: [] for form in FORMS}
    for n in sizes:
        hits = dict.fromkeys(FORMS, 0)
        for _ in range(repetitions):
            index = rng.integers(len(a), size=n)
            z = standardised(a[index]), standardised(b[index])
            for form in FORMS:
                error = claims.influence(*z, form).std() / math.sqrt(n)
                hits[form] += abs(flow_value(a[index], b[index], form) - flow_value(a, b, form)) <= 1.96 * error
        for form in FORMS:
            found[form].append(hits[form] / repetitions)
    figure, axes = plt.subplots(figsize=(5.2, 3))
    axes.axhline(0.95, color="0.6", linewidth=1, linestyle="--")
    for form, name in FORMS.items():
        axes.plot(sizes, found[form], marker="o", markersize=4, color=COLOURS[form], label=f"{name} correlation")
    axes.set(xscale="log", xlabel="samples in the probe", ylabel="intervals that hold the truth", ylim=(0.7, 1.0))
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right")
    save(figure, "coverage")
    lines = [
        "## Coverage of 95 % intervals (3.1)\n",
        f"First pair of layers, {repetitions} probes each, drawn with replacement.\n",
    ]
    lines += [f"| samples | {' | '.join(FORMS.values())} |", "|---|---|---|---|"]
    lines += [f"| {n} | {' | '.join(f'{found[form][k]:.3f}' for form in FORMS)} |" for k, n in enumerate(sizes)]
    return [*lines, ""]


def fresh_networks(x: torch.Tensor, draws: int = 400) -> list[str]:
    """The mean correlation of fresh LeNet-300-100s against 1.5."""
    seen, said = [], []
    for seed in range(draws):
        torch.manual_seed(seed)
        model = models.build("lenet-300-100", channels=1, size=(8, 8), classes=10).double()
        pictures = x.reshape(-1, 1, 8, 8)[:400]
        names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        out = outputs(model, pictures, names)
        seen.append(list(incop.measure(model, pictures, InformationFlow()).values.values()))
        said.append([claims.random_sign_square_next(rho(out[p], out[q]).mean(0)) for p, q in itertools.pairwise(names)])
    lines = ["## The mean correlation of fresh networks (1.5)\n", f"LeNet-300-100, {draws} draws, 400 digits.\n"]
    lines += ["| pair | mean over draws | root mean square | as 1.5 says |", "|---|---|---|---|"]
    for k, pair in enumerate(("300 → 100", "100 → 10")):
        column = np.array(seen)[:, k]
        lines.append(
            f"| {pair} | {column.mean():+.5f} | {np.sqrt((column**2).mean()):.5f} | {np.sqrt(np.mean(said, 0)[k]):.5f} |"
        )
    return [*lines, ""]


def probe_sizes(network: Network, sparse: Network) -> list[str]:
    """What `sampling_error` says of 256 samples, and what the concentration bound says."""
    probe = network.x[:256]
    lines = ["## Sampling error of a probe of 256 samples (3.2, 3.4, 3.7)\n"]
    lines += [
        "| form | flow | error, dense | of the difference to the sparse network | samples for 0.01 | bias |",
        "|---|---|---|---|---|---|",
    ]
    for form, name in FORMS.items():
        meter = InformationFlow(form)
        own = sampling_error(network.model, probe, meter)
        both = sampling_error(sparse.model, probe, meter, reference=network.model)
        norm = incop.measure(network.model, probe, meter).norm()
        bias = math.hypot(*own.bias.values())
        lines.append(
            f"| {name} | {norm:.3f} | {own.total:.4f} | {both.total:.4f} | {own.samples_for(0.01)} | {bias:.4f} |"
        )
    out = outputs(network.model, network.x, network.names)
    a, b = (standardised(out[name]) for name in network.names[:2])
    bound = max(np.abs(a).max(), np.abs(b).max())
    n = claims.concentration_samples(0.01, bound, a.shape[1] + b.shape[1], 0.05)
    error = claims.influence(a, b).std()
    lines += [
        "",
        "For an error of at most 0.01 of the first pair's mean correlation in 95 % of probes: "
        f"{math.ceil((1.96 * error / 0.01) ** 2)} samples by the standard error, {n:,} by the concentration bound "
        f"(largest |z|: {bound:.1f}).\n",
    ]
    return lines


def read_outs(network: Network) -> list[str]:
    """The bounds of 4.2 and 4.3 by sparsity, on cuts of the trained network without training."""
    lines = ["## Bounds on what a read-out explains, by sparsity (4.2, 4.3)\n"]
    lines += [
        "First pair of layers, cut without training; units that live in both; R² is the mean over the next layer's units.\n"
    ]
    lines += [
        "| sparsity | living of 24 units | least eigenvalue, before | after | change of R² | 4.2 | 4.3 | 4.3, ridge 0.1 |"
    ]
    lines += ["|---" * 8 + "|"]
    p, q = outputs(network.model, network.x, network.names[:2]).values()
    for sparsity in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
        model = network.copy()
        incop.prune(model, amount=sparsity).apply(model)
        u, v = outputs(model, network.x, network.names[:2]).values()
        keep, after = lives(u), lives(v)
        c, c_now = rho(p[:, keep], p[:, keep]), rho(u[:, keep], u[:, keep])
        r, r_now = rho(p[:, keep], q[:, after]), rho(u[:, keep], v[:, after])
        low, low_now = np.linalg.eigvalsh(c)[0], np.linalg.eigvalsh(c_now)[0]
        distance, within = np.sqrt(np.square(r_now - r).mean()), np.linalg.norm(c_now - c, 2)
        change = np.abs(r2(u[:, keep], v[:, after]) - r2(p[:, keep], q[:, after])).mean()
        own = plain = math.inf
        if min(low, low_now) > 1e-9:
            w, w_now = np.linalg.solve(c, r), np.linalg.solve(c_now, r_now)
            units = range(r.shape[1])
            own = np.mean([claims.read_out_bound_own(w[:, j], w_now[:, j], (r_now - r)[:, j], within) for j in units])
            plain = claims.read_out_bound(low, low_now, distance, len(c), within)
        ridged = claims.read_out_bound(max(low, 0) + 0.1, max(low_now, 0) + 0.1, distance, len(c), within)
        numbers = f"{low:.4f} | {max(low_now, 0):.4f} | {change:.4f} | {own:.2f} | {plain:.0f} | {ridged:.1f}"
        lines.append(f"| {sparsity} | {int(keep.sum())} | {numbers} |")
    return [*lines, ""]


def margins(network: Network) -> list[str]:
    """How far weights move in the last epochs against the margin of the next cut."""
    lines = [
        "## Margins of the next cut (6.1, 6.2)\n",
        "A network of 64-24-16-10 on the digits; training goes on with a tenth of the rate.\n",
    ]
    lines += [
        "| more epochs | largest movement | margin at 20 % | places that may change | that did | of weights kept |",
        "|---|---|---|---|---|---|",
    ]
    early = network.copy()
    masks = incop.prune(early, amount=0.2)
    sizes = np.concatenate([w.detach().abs().numpy().ravel() for w in masks.weights(early).values()])
    count = len(sizes) - masks.remaining
    for epochs in (1, 2, 5):
        late = train(network.copy(), network.x, network.y, epochs=epochs, lr=3e-4)
        pairs = zip(masks.weights(early).values(), masks.weights(late).values(), strict=True)
        moved = max(float((a - b).detach().abs().max()) for a, b in pairs)
        swaps = masks.remaining - masks.intersect(incop.prune(late, amount=0.2)).remaining
        may = claims.most_swaps(sizes, count, moved)
        lines.append(
            f"| {epochs} | {moved:.4f} | {claims.margin(sizes, count):.2g} | {may} | {swaps} | {masks.remaining} |"
        )
    return [*lines, ""]


def damages(network: Network, sparsity: float = 0.95, cuts: int = 10) -> list[str]:
    """Draw each cut's damage by three paths to one sparsity, and what they leave by how repair depends on damage."""
    model, whole = network.model, incop.Masks.full(network.model)
    measure = Damage(model, network.x[:128])

    def damage_at(count: int) -> float:
        return measure(incop.prune(model, masks=whole, amount=pruning.Fraction(count / whole.total)))

    weights = torch.cat([w.detach().flatten() for w in whole.weights(model).values()])
    paths = {
        "flow": pruning.EvenDamage(sparsity, cuts)
        .plan(pruning.Competition(weights, whole.total, damage=damage_at))
        .sparsities
    }
    paths |= {
        "even": tuple(1 - (1 - sparsity) ** (k / cuts) for k in range(1, cuts + 1)),
        "cubic": tuple(sparsity * (1 - (1 - k / cuts) ** 3) for k in range(1, cuts + 1)),
    }
    found = {
        name: np.maximum(np.diff([0.0, *(damage_at(round(s * whole.total)) for s in path)]), 0)
        for name, path in paths.items()
    }
    names = {"flow": "equal damage (planned)", "even": "even in ln density", "cubic": "cubic"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3))
    for name, label in names.items():
        left.plot(range(1, cuts + 1), found[name], marker="o", markersize=4, color=COLOURS[name], label=label)
    left.set(xlabel="cut", ylabel="damage of the cut", ylim=(0, 0.19))
    left.legend(frameon=False)
    powers = np.linspace(0.25, 2, 71)
    right.axvline(1, color="0.6", linewidth=1, linestyle="--")
    table = {}
    for name in ("even", "cubic"):
        ratio = [
            claims.left_over(found[name], 0.1, p).sum() / claims.left_over(found["flow"], 0.1, p).sum() for p in powers
        ]
        table[name] = {p: ratio[int(np.abs(powers - p).argmin())] for p in (0.3, 0.5, 0.7, 1.0, 1.5, 2.0)}
        right.plot(powers, ratio, color=COLOURS[name], label=names[name])
    right.axhline(1, color=COLOURS["flow"])
    right.set(
        xlabel="power of the speed of repair, v(d) = d^power", ylabel="left over, per equal damage's", ylim=(0.9, 2)
    )
    right.legend(frameon=False)
    figure.tight_layout()
    save(figure, "damage")
    lines = [
        "## Damage of each cut by three paths (7.3)\n",
        f"The same network to sparsity {sparsity} in {cuts} cuts.\n",
    ]
    lines += [f"| path | {' | '.join(str(k) for k in range(1, cuts + 1))} | sum |", "|---" * (cuts + 2) + "|"]
    lines += [f"| {names[n]} | {' | '.join(f'{d:.3f}' for d in found[n])} | {found[n].sum():.3f} |" for n in names]
    lines += ["", "Left over in the model after stretches of 0.1, per equal damage's:\n"]
    lines += [f"| power | {' | '.join(str(p) for p in table['even'])} |", "|---" * (len(table["even"]) + 1) + "|"]
    lines += [f"| {names[n]} | {' | '.join(f'{v:.2f}' for v in table[n].values())} |" for n in table]
    return [*lines, ""]


def additivity(network: Network) -> list[str]:
    """Damage of two cuts one after the other against both at once, without training between."""
    lines = ["## Do damages add up? (7.1)\n", "Two cuts of the same share, no training between.\n"]
    lines += ["| share | first | second | both at once | 1 − (1 − d)(1 − d′) | sum |", "|---|---|---|---|---|---|"]
    for amount in (0.1, 0.3, 0.5, 0.7):
        once = incop.prune(network.model, amount=amount)
        after = network.copy()
        once.apply(after)
        twice = incop.prune(after, masks=once, amount=amount)
        probe = network.x[:256]
        whole = Damage(network.model, probe)
        d, then, both = whole(once), Damage(after, probe)(twice), whole(twice)
        lines.append(
            f"| {amount} | {d:.4f} | {then:.4f} | {both:.4f} | {1 - (1 - d) * (1 - then):.4f} | {d + then:.4f} |"
        )
    return [*lines, ""]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / f"{datetime.date.today()}-theory"
    )
    told = options.parse_args()
    x, y = digits()
    network = trained(x, y)
    model, masks = network.copy(), None
    for keep in (0.3, 1 / 3):
        masks = incop.prune(model, masks=masks, amount=1 - keep)
        train(model, x, y, epochs=12, masks=masks)
    sparse = Network(model.eval(), x, y, network.names)
    lines = [
        f"# Numbers of the theory page, {datetime.date.today()}\n",
        "`python benchmarks/theory_figures.py` · networks of 64-24-16-10 on the digits (the sparse one: a tenth of its weights), "
        f"float64, one seed · {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}\n",
        *fresh_networks(x),
        *coverage(network),
        *probe_sizes(network, sparse),
        *read_outs(network),
        *margins(network),
        *additivity(network),
        *damages(network),
    ]
    told.out.with_suffix(".md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
