"""A search through a loop with Accelerate, in two processes that torchrun starts."""

import json
import subprocess
import sys

SCRIPT = """
import json, os, sys
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
import incop
from incop import flow, distributed, stopping

torch.manual_seed(0)
X = torch.randn(64, 12)
Y = X[:, :3].argmax(1)
accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)


class Mine:
    epochs = 3

    def fit(self, model, masks, watch):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
        optimizer, loader = accelerator.prepare(optimizer, loader)
        with incop.hold(masks, model, optimizer):
            for epoch in range(1, self.epochs + 1):
                for inputs, labels in loader:
                    with accelerator.accumulate(model):
                        accelerator.backward(functional.cross_entropy(model(inputs), labels))
                        if accelerator.sync_gradients:
                            accelerator.clip_grad_norm_(model.parameters(), 1.0)
                        optimizer.step()
                        optimizer.zero_grad()
                    if accelerator.sync_gradients:
                        watch.stepped(32)
                if watch.look(accuracy=self.evaluate(model), epoch=epoch).stop:
                    return

    @torch.no_grad()
    def evaluate(self, model):
        inner = accelerator.unwrap_model(model)
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        return float((inner(X[mine]).argmax(1) == Y[mine]).float().mean())


model = accelerator.prepare(nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3)))
tickets = list(
    incop.search(model, Mine(), probe=[X[:32]], meter=flow.InformationFlow("absolute"), levels=2, rewind="early:1",
                 rule=stopping.FlowSettled() | stopping.AfterEpochs(2))
)
told = {
    "processes": distributed.of(model).size,
    "masks": [ticket.masks.digest().hex() for ticket in tickets],
    "notices": [list(ticket.record.notices) for ticket in tickets],
    "epochs": [ticket.record.epochs for ticket in tickets],
    "flow": [dict(ticket.record.flow.values) for ticket in tickets],
    "accuracy": [ticket.record.val_accuracy for ticket in tickets],
    "zeros": incop.Masks.of(model).remaining == tickets[-1].masks.remaining,
    "weights": sum(float(weight.double().abs().sum()) for weight in tickets[-1].weights.values()),
    "whole": float((accelerator.unwrap_model(model)(X).argmax(1) == Y).float().mean()),
}
with open(f"{sys.argv[1]}/told-{accelerator.process_index}.json", "w") as stream:
    json.dump(told, stream)
accelerator.wait_for_everyone()
accelerator.end_training()
os._exit(0)  # a thread of gloo that lets go of a tensor while the interpreter ends aborts the process
"""


def test_a_search_through_accelerate_is_one_in_all_processes(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    assert told[0]["processes"] == 2
    assert told[0]["zeros"]
    assert abs(told[0]["accuracy"][-1] - told[0]["whole"]) < 1e-6  # each measured on half of the samples
    for masks, notices in list(zip(told[0]["masks"], told[0]["notices"], strict=True))[1:]:
        assert f"2 processes hold the same masks ({masks[:16]}) and weights" in notices
