"""Search a sparse LightningModule on the optical digits, then train its ticket on with the callback and Lightning's own Trainer."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import incop
from incop import flow, pruning, stopping
from incop.experiments import datasets
from incop.integrations.lightning import InCoPCallback, LightningTrainer


class Digits(lightning.LightningModule):
    """A LightningModule as one has it: nothing in it knows of pruning."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 4 * 4, 10),
        )

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_acc", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    data = datasets.load("digits", seed=0)

    def loader(split, shuffle=False):
        return DataLoader(TensorDataset(split.images / 255, split.labels), batch_size=64, shuffle=shuffle)

    train, validation = loader(data.train, shuffle=True), loader(data.validation)
    probe = data.train.images[:300] / 255
    meter = flow.InformationFlow("absolute", alive_only=True)

    # A search: prune, rewind, retrain until the flow has settled; a fresh lightning.Trainer for every level.
    module = Digits()
    trainer = LightningTrainer(train, validation, max_epochs=5, accuracy="val_acc", accelerator="cpu")
    for ticket in incop.search(
        module,
        trainer,
        levels=3,
        probe=probe,
        meter=meter,
        rule=stopping.FlowSettled() | stopping.AfterEpochs(3),
        amount=pruning.Target(0.8, levels=3),
        rewind="early:1",
    ):
        print(ticket)

    # One fit of your own, with your own Trainer: the callback holds the ticket's zeros and watches the flow.
    watched = InCoPCallback(ticket.masks, probe=probe, meter=meter, rule=stopping.AfterEpochs(2), check_every=0.5)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    lightning.Trainer(max_epochs=10, accelerator="cpu", callbacks=[watched], **quiet).fit(module, train, validation)
    print(f"trained on: {watched.verdict.reason}, {len(watched.checks)} checks")
    assert incop.Masks.of(module).within(ticket.masks)


if __name__ == "__main__":
    main()
