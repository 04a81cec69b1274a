"""Several processes that train one network: their masks are one, or the search says that they are not."""

import subprocess
import sys
import textwrap

SCRIPT = """
    import os
    import sys
    import time
    import torch
    from torch import distributed, nn
    from torch.nn import functional
    import incop

    rank, apart, file = int(sys.argv[1]), sys.argv[2] == "apart", sys.argv[3]
    distributed.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)))
    x, y = torch.randn(64, 6), torch.randint(3, (64,))


    class Mine:
        epochs = 1.0

        def fit(self, model, masks, watch):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with incop.hold(masks, model, optimizer):
                for at in range(rank * 32, rank * 32 + 32, 8):  # each its own half
                    optimizer.zero_grad()
                    functional.cross_entropy(model(x[at : at + 8]), y[at : at + 8]).backward()
                    optimizer.step()
                    watch.stepped(8)
            if apart and rank == 1 and watch.level == 1:
                with torch.no_grad():
                    model.module[0].weight.mul_(torch.rand(16, 6))
            watch.look(accuracy=self.evaluate(model))

        def evaluate(self, model):
            return 0.5


    try:
        for ticket in incop.search(model, Mine(), levels=3, amount=0.3, rewind="rate"):
            print(ticket.level, ticket.masks.digest().hex())
    except incop.TrainingError as error:
        print(error)
    distributed.barrier()  # who leaves first may break the other off
    sys.stdout.flush()
    time.sleep(0.5)
    os._exit(0)  # a thread of gloo that lets go of a tensor while the interpreter ends aborts the process
"""


def both(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    words = [sys.executable, "-W", "ignore", str(script)]
    started = [
        subprocess.Popen([*words, str(rank), how, str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return said


def test_processes_that_train_together_cut_the_same_weights(tmp_path):
    first, second = both(tmp_path, "together")
    assert first == second
    assert [line.split()[0] for line in first] == ["0", "1", "2", "3"]
    assert len({line.split()[1] for line in first}) == 4


def test_masks_that_disagree_are_refused_in_every_process(tmp_path):
    for said in both(tmp_path, "apart"):
        assert [line.split()[0] for line in said[:2]] == ["0", "1"]
        assert said[2].startswith("level 2 would cut other weights in process 1 than in process 0: their weights or")
        assert len(said) == 3
