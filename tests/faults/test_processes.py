"""Several processes that train one network: their masks are one, or the search says that they are not."""

import os
import time

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional

import incop
from incop.experiments.engines.local import PROCESSES

PROCESSES.set_forkserver_preload(["incop.experiments.runs", "torch._dynamo", "torch.distributed"])


class Mine:
    """A loop whose second process changes its weights in level 1, where they are to go apart."""

    epochs = 1.0

    def __init__(self, rank, apart):
        self.rank, self.apart = rank, apart
        self.x, self.y = torch.randn(64, 6), torch.randint(3, (64,))

    def fit(self, model, masks, watch):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with incop.hold(masks, model, optimizer):
            for at in range(self.rank * 32, self.rank * 32 + 32, 8):  # each its own half
                optimizer.zero_grad()
                functional.cross_entropy(model(self.x[at : at + 8]), self.y[at : at + 8]).backward()
                optimizer.step()
                watch.stepped(8)
        if self.apart and self.rank == 1 and watch.level == 1:
            with torch.no_grad():
                model.module[0].weight.mul_(torch.rand(16, 6))
        watch.look(accuracy=self.evaluate(model))

    def evaluate(self, model):
        return 0.5


def searching(rank, apart, file, pipe):
    """Search as one of two that meet by a file, not as torchrun starts them; send what was found or refused."""
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)))
    said = []
    try:
        for ticket in incop.search(model, Mine(rank, apart), levels=3, amount=0.3, rewind="rate"):
            said.append(f"{ticket.level} {ticket.masks.digest().hex()}")
    except incop.TrainingError as error:
        said.append(str(error))
    pipe.send(said)
    distributed.barrier()  # who leaves first may break the other off
    time.sleep(0.5)
    os._exit(0)  # a thread of gloo that lets go of a tensor while the interpreter ends aborts the process


@pytest.fixture
def both(tmp_path):
    def run(*, apart):
        pipes = [PROCESSES.Pipe(duplex=False) for _ in range(2)]
        started = [
            PROCESSES.Process(target=searching, args=(rank, apart, str(tmp_path / "meet"), end))
            for rank, (_, end) in enumerate(pipes)
        ]
        for process in started:
            process.start()
        said = [ours.recv() if ours.poll(120) else ["it did not answer"] for ours, _ in pipes]
        for process in started:
            process.join(30)
        assert [process.exitcode for process in started] == [0, 0]
        return said

    return run


def test_processes_that_train_together_cut_the_same_weights(both):
    first, second = both(apart=False)
    assert first == second
    assert [line.split()[0] for line in first] == ["0", "1", "2", "3"]
    assert len({line.split()[1] for line in first}) == 4


def test_masks_that_disagree_are_refused_in_every_process(both):
    for said in both(apart=True):
        assert [line.split()[0] for line in said[:2]] == ["0", "1"]
        assert said[2].startswith("level 2 would cut other weights in process 1 than in process 0: their weights or")
        assert len(said) == 3
