"""Learning-rate schedules of a module, stepped to where a level begins."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from incop.errors import InputError


def begin_schedules(trainer: Any, module: Any, begin: float, whole: float) -> None:
    """Step the schedulers to where the level begins; at infinity, to their end, and hold them there."""
    configs = list(trainer.lr_scheduler_configs)
    if begin == 0 or not configs:
        return
    where = "stay at its end" if math.isinf(begin) else f"begin at epoch {begin:g}"
    if not module.automatic_optimization:
        raise InputError(
            f"this level's schedule should {where}, and {type(module).__name__} steps its schedulers by hand: rewind to 'init', "
            "'dense' or 'rate', or let Lightning optimize"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before")  # it is what is meant
        for config in configs:
            scheduler = config.scheduler
            if isinstance(scheduler, ReduceLROnPlateau) or config.reduce_on_plateau:
                _warn(
                    f"{type(scheduler).__name__} follows a metric and not the epochs: it cannot {where}, and starts afresh"
                )
                continue
            times = _times(trainer, config, whole if math.isinf(begin) else begin)
            times = min(times, getattr(scheduler, "total_steps", times + 1) - 1)  # OneCycleLR rises again after its end
            for _ in range(times):
                module.lr_scheduler_step(scheduler, None)
            if math.isinf(begin):
                trainer.lr_scheduler_configs.remove(config)  # nobody steps it any more
                if not any(group["lr"] for group in scheduler.optimizer.param_groups):
                    _warn(
                        f"{type(scheduler).__name__} ends at a learning rate of 0, where this level stays: it trains nothing"
                    )
            elif config.frequency > 1 and begin % (config.frequency if config.interval == "epoch" else 1):
                _warn(
                    f"{type(scheduler).__name__} has frequency={config.frequency}, counted anew in every "
                    f"level: one that begins at epoch {begin:g} steps it at other epochs than the dense level"
                )


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)


def _times(trainer: Any, config: Any, epochs: float) -> int:
    """Return how often Lightning steps a scheduler in so many epochs."""
    if config.interval == "epoch":
        return int((epochs + 1e-9) // config.frequency)
    several = int(trainer.accumulate_grad_batches)
    if math.isinf(trainer.num_training_batches):
        raise InputError(
            "a schedule by steps cannot begin within itself where the data loader does not know its length: step it by epochs, "
            "or rewind to 'init', 'dense' or 'rate'"
        )

    batches = int(trainer.num_training_batches)

    def stepped(most: int) -> int:
        stepping = (n for n in range(1, most + 1) if n % several == 0 or n == batches)
        return sum(n % config.frequency == 0 for n in stepping)

    full, rest = divmod(round(epochs * batches), batches)
    return full * stepped(batches) + stepped(rest)
