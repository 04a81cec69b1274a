"""Damage: how much of what its layers say a cut takes from a network; no labels and no training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from incop import inspection
from incop.batches import real_tokens
from incop.errors import InputError, TrainingError
from incop.flow import meter as meter_room
from incop.flow.moments import varies
from incop.flow.taps import Taps
from incop.wrappers import unwrapped


class Damage:
    """What trial cuts would take from a network: the share of what its units say that would be lost, mean over the layers.

    With f_l,i the output of unit i of layer l (before its activation, averaged over space or tokens) and f'_l,i the same after
    the cut, r_l = mean_i corr(f_l,i, f'_l,i) over the probe and the units that vary before it; a unit that no longer varies
    counts 0. The damage is mean_l (1 − max(r_l, 0)): 0 when nothing changed, 1 when nothing is left of any layer. Small damages of
    successive cuts add up, because correlations of independent losses multiply.

    Args:
        model: the network as it is before the cut; it is left as it was found.
        probe: batches of the training split; some 128 samples are enough to rank cuts of one network.
        chain: names of the layers that are watched; by default found from a forward pass.

    Raises:
        InputError: the probe has fewer than two samples, or the model cannot be run on it.
        TrainingError: an output is not finite.

    Example:
        >>> import torch
        >>> from incop import pruning
        >>> from incop.flow import Damage
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> damage = Damage(net, torch.randn(64, 8))
        >>> little, much = pruning.prune(net, amount=0.2), pruning.prune(net, amount=0.8)
        >>> 0 < damage(little) < damage(much)
        True
    """

    def __init__(self, model: nn.Module, probe: Any, *, chain: Sequence[str | Sequence[str]] | None = None) -> None:
        self.model = model = unwrapped(model)
        self.samples = 0
        self.seconds = 0.0
        with torch.inference_mode(False), inspection.undisturbed(model), meter_room.plain_attention(model):
            self._batches = list(meter_room.placed_batches(model, probe))
            if sum(batch.samples for batch in self._batches) < 2:
                raise InputError("damage needs a probe of at least 2 samples; some 128 rank cuts well")
            places = meter_room.by_hand(chain)  # one layer will do: each is held against itself
            self._chain = meter_room.trace(model, self._batches[0], places, each_sample=True, least=1)
        self._whole = {name: _standardised(rows) for name, rows in self._outputs({}).items()}

    @property
    def blind(self) -> bool:
        """Whether no unit of any layer varies over the probe, so that no cut does damage that could be seen."""
        return not any(bool(varied_M.any()) for _, varied_M in self._whole.values())

    def __call__(self, masks: Mapping[str, Tensor]) -> float:
        """Return the damage of leaving only these weights, in [0, 1]."""
        weights = dict(self.model.named_parameters())
        trial = {name: _wide(weights[name]) * mask.to(weights[name].device) for name, mask in masks.items()}
        kept = [self._kept(name, rows) for name, rows in self._outputs(trial).items()]
        return fmean(1.0 - min(max(share, 0.0), 1.0) for share in kept)

    def kept(self) -> dict[str, float]:
        """Return r_l of every watched layer for the network as it is now; the last is the output."""
        return {name: self._kept(name, rows) for name, rows in self._outputs({}).items()}

    def _kept(self, name: str, rows_nM: Tensor) -> float:
        """Return r_l, the mean correlation of a layer's units with themselves before the cut."""
        before_nM, varied_M = self._whole[name]
        after_nM, _ = _standardised(rows_nM)
        if not bool(varied_M.any()):
            return 1.0
        return float((before_nM * after_nM).mean(0)[varied_M].mean())

    def _outputs(self, trial: dict[str, Tensor]) -> dict[str, Tensor]:
        started = time.perf_counter()
        blocks: list[dict[str, Tensor]] = []
        model = self.model
        with (
            torch.inference_mode(False),
            inspection.undisturbed(model),
            meter_room.plain_attention(model),
            torch.no_grad(),
            Taps(model, self._chain) as taps,
        ):
            for batch in self._batches:
                taps.expect(batch.samples, real_tokens(model, batch))
                meter_room.forward(model, batch, trial)
                blocks.append(taps.read(samples=batch.samples))
        self.samples += sum(batch.samples for batch in self._batches)
        self.seconds += time.perf_counter() - started
        outputs = {name: torch.cat([block[name] for block in blocks]) for name in self._chain}
        for name, rows in outputs.items():
            if not bool(rows.isfinite().all()):
                raise TrainingError(
                    f"the outputs of layer {name!r} are not finite on the probe: the training diverged or the probe holds NaN "
                    "or infinite values; lower the learning rate, or check the data"
                )
        return outputs


def _wide(weight: Tensor) -> Tensor:
    return weight.detach().float() if weight.dtype.itemsize < 4 else weight.detach()


def _standardised(rows_nM: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows with mean 0 and variance 1 a unit, 0 where a unit does not vary, and which units vary."""
    rows_nM = rows_nM.double()
    mean_M = rows_nM.mean(0)
    centred_nM = rows_nM - mean_M
    std_M = centred_nM.square().mean(0).sqrt()
    varies_M = varies(mean_M, std_M)
    return centred_nM * torch.where(varies_M, 1.0 / std_M, 0.0), varies_M
