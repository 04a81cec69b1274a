"""A callback that holds masks, looks at the flow, and stops a `transformers.Trainer` by the rule."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor, nn
from transformers.trainer_callback import (  # type: ignore[import-not-found,unused-ignore]
    ExportableState,
    TrainerCallback,
)

from incop.checkpoint_files import load_masks, save_masks
from incop.errors import InputError
from incop.flat_state import restoring
from incop.flow import Meter
from incop.integrations.hugging_face.trainer_access import StepCounter, agreed, as_written, refuse_sharded
from incop.masks import Hold, Masks, hold
from incop.records import Check, Flow, Interval, Verdict
from incop.stopping import Rule
from incop.watch import Watch

FOLDER = "incop"  # within a checkpoint's folder


class InCoPCallback(TrainerCallback, ExportableState):  # type: ignore[misc,unused-ignore]
    """Hold masks, look at the flow, and stop a `transformers.Trainer` by the rule: `InCoPCallback(…).attach(trainer)`.

    Pruned weights are exactly zero from the training's beginning to its end, through weight decay, clipping, accumulation and
    mixed precision, and so in every checkpoint, whose keys stay the model's own. A verdict to stop ends the training at the
    very step of its check. Flow, distance, accuracy and sparsity are logged by the Trainer, to all of its `report_to`.

    What is needed to go on is in the Trainer's checkpoints: `trainer.train(resume_from_checkpoint=…)` ends with the weights,
    checks and verdict of a training that was not interrupted, as far as the Trainer itself resumes exactly (it does not where
    samples are drawn or changed at random while they are loaded). The masks are in `checkpoint-N/incop/`.

    Args:
        masks: the weights that are left; None holds nothing, or, on resuming, takes the checkpoint's masks.
        probe: batches of the training split for the meter.
        meter: `flow.InformationFlow()` or `flow.GradientFlow(loss)`; without one no flow is measured.
        rule: when to stop; without one the callback only holds and looks.
        reference: the dense network's flow, from the same meter and probe.
        reference_accuracy: the dense network's accuracy, in [0, 1].
        accuracy: name of the Trainer's metric that is the accuracy, such as "accuracy" of `compute_metrics`; with it the
            Trainer evaluates at every check. A rule of accuracy needs it.
        check_every: how often to look: epochs (1, 0.1) or steps ("50steps"). The training's end is looked at in any case.
        next_masks: gives the masks that would be cut now, for `MaskSettled`.
        level: number of the level, for the checks.

    Raises:
        InputError: an argument cannot be used, or the rule needs one that is not given; before the first step.

    Example:
        >>> from incop.integrations.hugging_face import InCoPCallback
        >>> from incop import stopping
        >>> callback = InCoPCallback(rule=stopping.AfterEpochs(2))
        >>> callback.verdict is None  # until the Trainer trains: callback.attach(trainer), trainer.train()
        True
    """

    def __init__(
        self,
        masks: Masks | None = None,
        *,
        probe: Any = None,
        meter: Meter | None = None,
        rule: Rule | None = None,
        reference: Flow | None = None,
        reference_accuracy: float | None = None,
        accuracy: str | None = None,
        check_every: float | str | Interval = 1.0,
        next_masks: Callable[[], Masks] | None = None,
        level: int = 1,
    ) -> None:
        if masks is not None and not isinstance(masks, Masks):
            raise InputError(
                f"masks is a {type(masks).__name__}: pass incop.Masks, such as incop.prune(model, …) returns"
            )
        if isinstance(rule, Rule) and "accuracy" in rule.wants and accuracy is None:
            raise InputError(
                f"the rule {str(rule)!r} needs the accuracy: pass accuracy=, the name of one of the Trainer's metrics, such as "
                "'accuracy'"
            )
        self.masks = masks
        self.watch: Watch | None = None
        self._given = {"probe": probe, "meter": meter, "rule": rule, "next_masks": next_masks, "level": level}
        self._reference, self._reference_accuracy = reference, reference_accuracy
        self._metric = accuracy
        self._every = Interval.parse(check_every)
        self._trainer: Any = None
        self._checkpoint: Path | None = None
        self._hold: Hold | None = None
        self._counted: StepCounter | None = None
        self._older: list[Masks] = []  # what a checkpoint needs besides, for `MaskSettled`
        self._waiting: float | None = None  # since when, for the evaluation of a check
        self._seen: set[str] = set()  # metrics that came while it waited
        self._evaluated = -1  # the step whose check was evaluated

    def attach(self, trainer: Any, *, checkpoint: str | Path | None = None) -> Self:
        """Take part in the trainings of a Trainer.

        Args:
            trainer: the `transformers.Trainer`; it takes the place of `callbacks=[…]`.
            checkpoint: the folder that `train(resume_from_checkpoint=…)` is given, where it does not lie in the Trainer's
                `output_dir`.

        Raises:
            InputError: it is no Trainer, or another InCoPCallback is attached to it.
        """
        if not callable(getattr(trainer, "add_callback", None)) or not hasattr(trainer, "callback_handler"):
            raise InputError(f"attach takes a transformers.Trainer, not a {type(trainer).__name__}")
        callbacks = trainer.callback_handler.callbacks
        if any(isinstance(one, InCoPCallback) and one is not self for one in callbacks):
            raise InputError(
                "the Trainer has another InCoPCallback, and each would take the other's state for its own: give it one"
            )
        if self not in callbacks:
            trainer.add_callback(self)
        self._trainer, self._checkpoint = trainer, None if checkpoint is None else Path(checkpoint)
        return self

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks of the training, oldest first; those before it was resumed, too."""
        return () if self.watch is None else self.watch.checks

    @property
    def verdict(self) -> Verdict | None:
        """The last verdict, None before the first check."""
        return None if self.watch is None else self.watch.verdict

    @property
    def flow(self) -> Flow | None:
        """The flow at the last check, None without a meter: that of a dense training is the reference of the sparse ones."""
        return self.checks[-1].flow if self.checks else None

    def release(self) -> None:
        """Stop holding and counting, as the training's end does; only needed after one that ended with an error."""
        for held in (self._hold, self._counted):
            if held is not None:
                held.release()
        self._hold = self._counted = None

    # --- events of the Trainer, in their order ---

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hold the masks and start the watch, or go on with the checkpoint's."""
        self.release()
        self._waiting, self._evaluated = None, -1
        if getattr(args, "restore_callback_states_from_checkpoint", False):
            raise InputError(
                "restore_callback_states_from_checkpoint=True makes the Trainer build its callbacks anew, without their probe and "
                f"rule: leave it False, {type(self).__name__} takes its state from the checkpoint by itself"
            )
        if self._trainer is None or self._trainer.state is not state:
            raise InputError(
                "InCoPCallback is not attached to the Trainer that trains: call InCoPCallback(…).attach(trainer) instead of "
                "Trainer(callbacks=[…])"
            )
        refuse_sharded(self._trainer)
        if self._metric is not None and self._trainer.eval_dataset is None:
            raise InputError(f"accuracy={self._metric!r} needs an evaluation: give the Trainer an eval_dataset")
        model, saved = kwargs["model"], None
        if state.global_step > 0:
            saved = self._saved_in(state)
            folder = self._checkpoint or Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._take(saved, folder / FOLDER)
        self.watch = Watch(
            model,
            masks=self.masks,
            reference=self._reference,
            reference_accuracy=self._reference_accuracy,
            every=self._every,
            **self._given,
        )
        if saved is not None:
            older = {f"older/{n}/{name}": mask for n, masks in enumerate(self._older) for name, mask in masks.items()}
            self.watch.restore({**saved["watch"], **older})
            self._refuse_finished(state)
        if self.masks is not None:
            self._hold = hold(self.masks, model, kwargs["optimizer"])
        self._counted = StepCounter(self._trainer, (0.0, 0) if saved is None else tuple(saved["losses"]))
        self.watch.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing may be trained on while a check waits for its evaluation."""
        self._refuse_waiting()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Count the step; look, or ask for the evaluation that the look needs."""
        assert self.watch is not None
        assert self._counted is not None
        self.watch.stepped(self._counted.step(), epoch=state.epoch)
        if not (self.watch.due() or state.global_step >= state.max_steps):
            return control
        if self._metric is None:
            return self._look(args, state, control, None)
        self.watch.pause()
        self._waiting, self._seen = time.perf_counter(), set()
        control.should_evaluate = True
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Look, with the accuracy that was asked for; other evaluations are let pass."""
        if self._waiting is None or self.watch is None:
            return control
        metrics: Mapping[str, Any] = kwargs["metrics"]
        name = next((one for one in (self._metric, f"eval_{self._metric}") if one in metrics), None)
        if name is None:  # of several evaluation sets each is an event of its own
            self._seen |= set(metrics)
            return control
        seconds, self._waiting, self._evaluated = time.perf_counter() - self._waiting, None, state.global_step
        samples = len(getattr(kwargs.get("eval_dataloader"), "dataset", ()))
        value, watch = float(metrics[name]), self.watch

        def accuracy() -> float:
            watch.probed(samples, seconds)
            return value

        watch.start()
        return self._look(args, state, control, accuracy)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Do not evaluate again what was just evaluated for the epoch's last check."""
        self._refuse_waiting()
        if self._evaluated == state.global_step:
            control.should_evaluate = False
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the masks beside the Trainer's own files."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.watch is not None and state.is_world_process_zero and folder.is_dir():
            for number, masks in enumerate(self._older):
                _save(folder / FOLDER / f"older_{number}", masks)
            if self.masks is not None:
                _save(folder / FOLDER, self.masks)
        if self.watch is not None:
            self.watch.start()  # writing is not training

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop holding: what is done with the model from here on is its owner's business."""
        self.release()

    def state(self) -> dict[str, Any]:
        """Return what the Trainer writes into `trainer_state.json`: the watch, and by what to know the masks."""
        if self.watch is None:
            return {"args": {}, "attributes": {}}
        now = self.watch.state()
        tensors = {name: value for name, value in now.items() if isinstance(value, Tensor)}
        parts = [
            {k[len(f"older/{n}/") :]: v for k, v in tensors.items() if k.startswith(f"older/{n}/")}
            for n in range(now["older"])
        ]
        self._older = [Masks(part) for part in parts]
        saved = {
            "watch": {name: value for name, value in now.items() if name not in tensors},
            "masks": [_fingerprint(one) for one in (self.masks, *self._older)],
            "losses": [0.0, 0] if self._counted is None else list(self._counted.losses()),
            "reference": None if self._reference is None else self._reference.to_json(),
            "reference_accuracy": self._reference_accuracy,
        }
        return {"args": {}, "attributes": {"saved": saved}}

    # --- parts ---

    def _look(self, args: Any, state: Any, control: Any, accuracy: Callable[[], float] | None) -> Any:
        assert self.watch is not None
        assert self._counted is not None
        model: nn.Module = self.watch.model
        with as_written(model):
            verdict = self.watch.look(accuracy=accuracy, loss=self._counted.loss(), epoch=state.epoch)
        stop = agreed(verdict.stop, args.world_size)
        asked = control.should_log  # logging answers it, and the Trainer's own log of this step is still to come
        self._trainer.log(self._told(self.watch.checks[-1], stop))
        control.should_log = asked
        if stop:
            control.should_training_stop = True
        self.watch.start()
        return control

    def _told(self, check: Check, stop: bool) -> dict[str, float]:
        """Return a check as the Trainer logs it: numbers only, for every integration takes those."""
        told: dict[str, float] = {}
        if self.masks is not None:
            told["incop_sparsity"] = self.masks.sparsity
        if check.distance is not None:
            told["incop_distance"] = check.distance
        if check.accuracy is not None:
            told["incop_accuracy"] = check.accuracy
        if check.flow is not None:
            told |= {f"incop_flow/{name}": value for name, value in check.flow.values.items()}
        return {**told, "incop_stop": float(stop)}

    def _saved_in(self, state: Any) -> dict[str, Any]:
        found = (state.stateful_callbacks or {}).get(type(self).__name__)
        found = found[-1] if isinstance(found, list) and found else found
        with restoring("training"):
            saved = (found or {}).get("attributes", {}).get("saved")
            if saved is None:
                raise InputError(
                    f"the checkpoint of step {state.global_step} was written without {type(self).__name__}, so that its training "
                    "cannot be gone on from: load its weights (from_pretrained) and train from them instead"
                )
            return dict(saved)

    def _take(self, saved: Mapping[str, Any], folder: Path) -> None:
        """Take masks and reference of a checkpoint where none are given; those given must be the same."""
        with restoring("training"):
            wanted = list(saved["masks"])
            reference = None if saved["reference"] is None else Flow.from_json(saved["reference"])
            accuracy = saved["reference_accuracy"]
        if not folder.is_dir() and (len(wanted) > 1 or (self.masks is None and wanted[0] is not None)):
            raise InputError(
                f"the checkpoint's masks are not in {str(folder)!r}: name the folder that the Trainer resumes from, "
                "attach(trainer, checkpoint=…), and copy checkpoints as a whole"
            )
        if self.masks is None and wanted[0] is not None:
            self.masks = load_masks(folder)
        self._older = [load_masks(folder / f"older_{number}") for number in range(len(wanted) - 1)]
        if [_fingerprint(one) for one in (self.masks, *self._older)] != wanted:
            raise InputError(
                "the masks are not those of the checkpoint: pass the same ones, or none to take the checkpoint's"
            )
        for name, given, then in [
            ("reference", self._reference, reference),
            ("reference_accuracy", self._reference_accuracy, accuracy),
        ]:
            if given is not None and given != then:
                raise InputError(
                    f"{name}= is not that of the checkpoint: pass the same, or none to take the checkpoint's"
                )
        self._reference, self._reference_accuracy = reference, accuracy

    def _refuse_finished(self, state: Any) -> None:
        verdict = self.verdict
        if verdict is not None and verdict.stop:
            raise InputError(
                f"the training in the checkpoint of step {state.global_step} is over ({verdict.reason}): load its weights "
                "(from_pretrained); the Trainer would train on before anybody could stop it"
            )

    def _refuse_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting = None
            raise InputError(
                f"the evaluation has no metric {self._metric!r} (it has {', '.join(sorted(self._seen)) or 'none'}): let "
                "compute_metrics return it, or name another as accuracy="
            )


def _save(folder: Path, masks: Masks) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_masks(folder, masks)


def _fingerprint(masks: Masks | None) -> str | None:
    """Return what masks are known by: names, shapes, positions."""
    if masks is None:
        return None
    whole = hashlib.sha256()
    for name in sorted(masks):
        mask = masks[name].cpu()
        whole.update(f"{name} {tuple(mask.shape)} ".encode() + np.packbits(mask.numpy().reshape(-1)).tobytes())
    return whole.hexdigest()
