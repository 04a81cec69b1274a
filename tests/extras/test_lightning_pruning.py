"""Lightning's own `ModelPruning` beside incop's callback and trainer: rewinding, and going on from a checkpoint.

What is shown of `ModelPruning` was looked at, not guessed. Where a newer Lightning mends it, these tests turn red, and the
page that tells of it has to be changed.
"""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelPruning
from lightning_modules import Module, loader, trainer, weights

import incop
from incop.integrations.lightning import InCoPCallback, LightningTrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*deprecated"),
]
LAYERS = (0, 3, 5)


def theirs(module, **arguments):
    pairs = [(module.net[number], "weight") for number in LAYERS]
    return ModelPruning("l1_unstructured", parameters_to_prune=pairs, **arguments)


class Seen(Callback):
    """Notes at every epoch's beginning what is left of each layer, and what its momentum is."""

    def __init__(self):
        self.epochs, self.momentum = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        found = {}
        for number in LAYERS:
            layer = pl_module.net[number]
            weight = getattr(layer, "weight_orig", layer.weight).detach().clone()
            mask = getattr(layer, "weight_mask", torch.ones_like(weight)).bool().clone()
            found[f"net.{number}.weight"] = weight, mask
        self.epochs.append(found)
        state = trainer.optimizers[0].state
        self.momentum.append(any(bool(v["exp_avg"].any()) for v in state.values()))


def back(found, initial):
    return all(torch.equal(weight[mask], initial[name][mask]) for name, (weight, mask) in found.items())


def test_model_pruning_rewinds_once_and_then_no_more():
    """It puts the saved tensor itself in the weight's place, and training then trains the saved tensor."""
    module, seen = Module(), Seen()
    initial = weights(module)
    trainer(max_epochs=3, callbacks=[seen, theirs(module, amount=0.3)]).fit(module, loader())
    assert [back(found, initial) for found in seen.epochs] == [True, True, False]
    assert seen.momentum == [False, True, True]  # momentum of weights that were there before the rewind goes on


def test_incop_rewinds_every_time_and_starts_the_optimizer_afresh():
    module, seen = Module(), Seen()
    initial = weights(module)
    adapter = LightningTrainer(
        loader(), loader(), max_epochs=1, accuracy="val_acc", accelerator="cpu", callbacks=[seen]
    )
    tickets = list(incop.search(module, adapter, levels=2, amount=0.3, rewind="init"))
    for found, ticket in zip(seen.epochs, tickets, strict=True):
        for name, (weight, _) in found.items():
            assert torch.equal(weight, torch.where(ticket.masks[name], initial[name], 0.0))
    assert seen.momentum == [False, False, False]


class SaveFirst(Callback):
    def __init__(self, file):
        self.file = file

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.file)


def pruned(module):
    return sum(int((module.get_parameter(f"net.{number}.weight") == 0).sum()) for number in LAYERS)


def test_after_going_on_from_a_checkpoint_model_pruning_has_lost_its_masks(tmp_path):
    file = tmp_path / "fit.ckpt"

    def fit(*callbacks, **arguments):
        module = Module()
        once = theirs(module, amount=lambda epoch: 0.0 if epoch else 0.5, use_lottery_ticket_hypothesis=False)
        trainer(max_epochs=3, callbacks=[once, *callbacks]).fit(module, loader(), **arguments)
        return pruned(module)

    half = sum(Module().get_parameter(f"net.{number}.weight").numel() for number in LAYERS) // 2
    assert fit(SaveFirst(file)) == half
    saved = torch.load(file, weights_only=True)
    assert sum(int((saved["state_dict"][f"net.{number}.weight"] == 0).sum()) for number in LAYERS) == half
    assert fit(ckpt_path=file) < half / 10  # they grow again, and nobody says so


def test_after_going_on_from_a_checkpoint_incop_holds_on(tmp_path):
    file = tmp_path / "fit.ckpt"
    module = Module()
    masks = incop.prune(module, masks=incop.Masks.full(module), amount=0.5)
    trainer(max_epochs=3, callbacks=[InCoPCallback(masks=masks), SaveFirst(file)]).fit(module, loader())
    again = Module()
    trainer(max_epochs=3, callbacks=[InCoPCallback()]).fit(again, loader(), ckpt_path=file)
    assert pruned(again) == pruned(module) == masks.total - masks.remaining
    assert all(torch.equal(a, b) for a, b in zip(weights(module).values(), weights(again).values(), strict=True))


def test_model_pruning_names_weights_otherwise_while_it_trains():
    names = []

    class Names(Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            names.append(set(pl_module.state_dict()))

    module = Module()
    own = set(module.state_dict())
    trainer(max_epochs=2, callbacks=[theirs(module, amount=0.3), Names()]).fit(module, loader())
    assert names[0] == own
    assert "net.0.weight_orig" in names[-1]
    names.clear()
    masks = incop.prune(module, masks=incop.Masks.full(module), amount=0.3)
    trainer(max_epochs=2, callbacks=[InCoPCallback(masks=masks), Names()]).fit(module, loader())
    assert all(found == own for found in names)
