"""Streaming, mergeable statistics of the layers' outputs: pure arithmetic on arrays, no model in sight.

Shapes: n samples, M units of a layer, K units of the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]  # the sum of everybody's tensor, where several processes see parts of one probe

# The output of a unit whose inputs are constant is not quite constant in float32: other batch sizes take other
# kernels, which add in another order. Its spread was seen up to 4 × 2⁻²³ of the size of the layer's outputs (and
# up to hundreds of times its own mean's rounding, where terms cancel). Twice that counts as not varying.
ROUNDING = 8 * 2.0**-23


def varies(mean: Tensor, std: Tensor) -> Tensor:
    """Say which units of a layer vary: True where the spread is more than rounding. Shapes (M,) → (M,).

    Rounding is measured by the unit's own mean or, where that is smaller, by the size of the layer's outputs: the
    median over its units that are not zero, which a few outliers do not move.
    """
    size = (mean.square() + std.square()).sqrt()
    layer = size[size > 0].median() if bool((size > 0).any()) else size.new_zeros(())
    return std > ROUNDING * torch.maximum(mean.abs(), layer)


@dataclass
class Rows:
    """The layers' outputs themselves, one row per sample: n × M numbers a layer, no matrix between layers.

    Serves the mean of a correlation matrix, which is the covariance of two numbers per sample:
    mean_ij ρ[i, j] = E[ mean_i z_i · mean_j z'_j ], with z the standardised outputs. The scale of z is known
    only when all samples were seen, so the rows wait; that is what one pass costs.
    """

    blocks: list[dict[str, Tensor]]
    pairs: list[tuple[str, str]]
    total: Total | None = None  # of statistics that are spread over processes
    spread: int | None = None  # samples that all of them saw

    @property
    def samples(self) -> int:
        """Number of samples seen."""
        if self.spread is not None:
            return self.spread
        return sum(next(iter(block.values())).shape[0] for block in self.blocks)

    def update(self, outputs: dict[str, Tensor]) -> None:
        """Add one batch: outputs by layer, each (n, M)."""
        self.blocks.append(outputs)

    def merge(self, other: Rows) -> Rows:
        """Return the statistics of both sets of samples together."""
        return Rows(self.blocks + other.blocks, self.pairs)

    def none(self) -> Rows:
        """Return the statistics of no samples, of layers as wide as these."""
        return Rows([{name: rows[:0] for name, rows in block.items()} for block in self.blocks], self.pairs)

    def across(self, total: Total) -> Rows:
        """Return the statistics of all processes. Rows stay where they are: sums go between them, 2 × M numbers a layer."""
        return Rows(self.blocks, self.pairs, total, int(total(torch.tensor([self.samples]))))

    def mean_correlations(self, *, alive_only: bool) -> list[float]:
        """Return mean_ij ρ[i, j] of every pair of layers.

        Args:
            alive_only: take the mean over the units that vary instead of over all.
        """
        names = dict.fromkeys(name for pair in self.pairs for name in pair)
        means = {name: self._mean_unit(name, alive_only=alive_only) for name in names}
        return [float(self._mean(means[a] * means[b])) for a, b in self.pairs]

    def _mean(self, rows: Tensor) -> Tensor:
        return rows.mean(0) if self.total is None else self.total(rows.sum(0)) / self.samples

    def _mean_unit(self, name: str, *, alive_only: bool) -> Tensor:
        rows_nM = torch.cat([block[name] for block in self.blocks]).double()
        mean_M = self._mean(rows_nM)
        centred_nM = rows_nM.sub_(mean_M)
        std_M = self._mean(centred_nM.square()).sqrt()
        alive_M = varies(mean_M, std_M)
        weight_M = torch.where(alive_M, 1.0 / std_M, 0.0)
        count = int(alive_M.sum()) if alive_only else weight_M.numel()
        return centred_nM @ weight_M / max(count, 1)


@dataclass
class CoMoments:
    """Means, sums of squares and cross products of neighbouring layers, in float64.

    Serves every function of the single correlations ρ[i, j]. Memory is M × K a pair, whatever the number of
    samples. Batches are joined by the update of Chan, Golub & LeVeque (1983), which does not cancel.
    """

    pairs: list[tuple[str, str]]
    samples: int = 0
    means: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)
    products: list[Tensor] = field(default_factory=list)

    def update(self, outputs: dict[str, Tensor]) -> None:
        """Add one batch: outputs by layer, each (n, M). One pair's matrix at a time is made besides those that are kept."""
        rows = {name: out.double() for name, out in outputs.items()}
        samples = next(iter(rows.values())).shape[0]
        means = {name: r.mean(0) for name, r in rows.items()}
        centred = {name: r - means[name] for name, r in rows.items()}
        squares = {name: c.square().sum(0) for name, c in centred.items()}
        if not self.samples:
            self.samples, self.means, self.squares = samples, means, squares
            self.products = [centred[a].T @ centred[b] for a, b in self.pairs]
            return
        n = self.samples + samples
        delta = {name: means[name] - mean for name, mean in self.means.items()}
        share = self.samples * samples / n
        for product, (a, b) in zip(self.products, self.pairs, strict=True):
            product.add_(centred[a].T @ centred[b]).add_(torch.outer(delta[a], delta[b]).mul_(share))
        self.samples = n
        self.means = {name: mean + delta[name] * (samples / n) for name, mean in self.means.items()}
        self.squares = {name: s + squares[name] + delta[name].square() * share for name, s in self.squares.items()}

    def merge(self, other: CoMoments) -> CoMoments:
        """Return the statistics of both sets of samples together."""
        if not (self.samples and other.samples):
            return self if self.samples else other
        n = self.samples + other.samples
        delta = {name: other.means[name] - mean for name, mean in self.means.items()}
        share = self.samples * other.samples / n
        return CoMoments(
            self.pairs,
            n,
            {name: mean + delta[name] * (other.samples / n) for name, mean in self.means.items()},
            {name: s + other.squares[name] + delta[name].square() * share for name, s in self.squares.items()},
            [
                p + q + torch.outer(delta[a], delta[b]) * share
                for p, q, (a, b) in zip(self.products, other.products, self.pairs, strict=True)
            ],
        )

    def none(self) -> CoMoments:
        """Return the statistics of no samples, of layers as wide as these."""
        means, squares = ({k: torch.zeros_like(t) for k, t in one.items()} for one in (self.means, self.squares))
        return CoMoments(self.pairs, 0, means, squares, [torch.zeros_like(product) for product in self.products])

    def across(self, total: Total) -> CoMoments:
        """Return the statistics of all processes together: the sums about everybody's mean, M × K numbers a pair."""
        n = int(total(torch.tensor([self.samples])))
        means = {name: total(mean * self.samples) / max(n, 1) for name, mean in self.means.items()}
        off = {name: mean - means[name] for name, mean in self.means.items()}
        return CoMoments(
            self.pairs,
            n,
            means,
            {name: total(s + off[name].square() * self.samples) for name, s in self.squares.items()},
            [
                total(p.addr(off[a], off[b], alpha=self.samples))
                for p, (a, b) in zip(self.products, self.pairs, strict=True)
            ],
        )

    def correlations(self, pair: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return ρ (M, K) of one pair of layers, and which units of each vary, (M,) and (K,)."""
        a, b = self.pairs[pair]
        scale, alive = {}, {}
        for name in (a, b):
            std = (self.squares[name] / self.samples).sqrt()
            alive[name] = varies(self.means[name], std)
            scale[name] = torch.where(alive[name], 1.0 / std, 0.0)
        rho_MK = self.products[pair] / self.samples * scale[a][:, None] * scale[b][None, :]
        return rho_MK, alive[a], alive[b]
