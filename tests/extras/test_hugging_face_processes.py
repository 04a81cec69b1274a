"""InCoPCallback in two processes of DistributedDataParallel, started by torchrun."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, sys
import torch
from test_hugging_face import PROBE, bert, halved, trainer_of
from transformers import TrainerCallback
import incop
from incop import flow, stopping
from incop.integrations.hugging_face import InCoPCallback

rank, folder = int(os.environ["RANK"]), sys.argv[1]


class Uneven(stopping.Rule):
    def judge(self, history):  # as when a last bit differs
        return history.now.step >= 2 + rank, "uneven"

    def __str__(self):
        return "uneven"


class Gradients(TrainerCallback):
    pruned = 0.0

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for name, weight in masks.weights(model).items():
            self.pruned += float(weight.grad[~masks[name]].abs().sum())


model, gradients = bert(), Gradients()
masks = halved(model)
callback = InCoPCallback(masks, probe=PROBE, meter=flow.InformationFlow(), rule=Uneven(), check_every="1steps")
trainer = trainer_of(model, folder, callback, gradients, save_strategy="steps", save_steps=1, ddp_backend="gloo")
trainer.train()
told = {
    "step": trainer.state.global_step,
    "kind": type(trainer.model_wrapped).__name__,
    "held": incop.Masks.of(model).remaining == masks.remaining,
    "gradients": gradients.pruned,
    "samples": [check.spent.samples for check in callback.checks],
    "sum": sum(float(weight.detach().double().abs().sum()) for weight in model.parameters()),
}
with open(f"{folder}/told-{rank}.json", "w") as stream:
    json.dump(told, stream)
trainer.accelerator.wait_for_everyone()
os._exit(0)  # a thread of gloo that lets go of a tensor while the interpreter ends aborts the process
"""


def test_processes_hold_the_same_weights_and_stop_together(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{SCRIPT}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    assert told[0]["kind"] == "DistributedDataParallel"
    assert told[0]["held"]
    assert told[0]["gradients"] == 0.0  # so that the norm which is clipped is that of what is left
    assert told[0]["step"] == 2
    assert told[0]["samples"] == [32, 64]
    assert (tmp_path / "checkpoint-2" / "incop" / "masks.safetensors").is_file()
