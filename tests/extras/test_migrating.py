"""What the page on migrating says of Lightning's ModelPruning, held against Lightning itself."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import incop

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text()


def masks_of(model):
    """The function of the page."""
    (source,) = re.findall(r"^def masks_of.*?(?=^torch\.manual_seed)", PAGE, re.MULTILINE | re.DOTALL)
    from torch.nn.utils import prune

    names = {"incop": incop, "prune": prune}
    exec(source, names)
    return names["masks_of"](model)


def fitted(folder, *, permanent):
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelPruning

    class Small(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))

        def training_step(self, batch):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(60, 20), torch.randint(3, (60,))), batch_size=30)
    model = Small()
    pruning = ModelPruning(
        "l1_unstructured",
        parameters_to_prune=[(model.net[0], "weight"), (model.net[2], "weight")],
        amount=0.5,
        make_pruning_permanent=permanent,
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(max_epochs=2, callbacks=[pruning], default_root_dir=folder, accelerator="cpu", **quiet).fit(model, data)
    return model.net


def test_it_cuts_every_epoch_and_leaves_zeros_that_masks_of_reads(tmp_path):
    net = fitted(tmp_path, permanent=True)
    masks = incop.Masks.of(net)
    assert masks.sparsity == pytest.approx(0.75, abs=0.01)  # a half, and a half again
    assert set(net.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_the_pages_function_reads_a_model_whose_pruning_is_not_permanent(tmp_path):
    net = fitted(tmp_path, permanent=False)
    with pytest.raises(incop.InputError, match=r"torch\.nn\.utils\.prune"):
        incop.prune(net)
    masks = masks_of(net)
    assert masks.sparsity == pytest.approx(0.75, abs=0.01)
    assert masks == incop.Masks.of(net)
