"""The callback: a Lightning fit that keeps pruned weights at zero, shows its flow, and ends when the rule says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn

from incop import inspection
from incop.batches import first_samples, reusable, unpack
from incop.errors import InputError, TrainingError
from incop.flat_state import part, random_states, restore_random, restoring, under
from incop.flow import Meter, measure
from incop.integrations.lightning.hooks import Looking
from incop.masks import Masks
from incop.records import Check, Flow, Interval, Verdict
from incop.stopping import Rule
from incop.watch import Watch


class LightningCallback(Looking):
    """A callback for any `lightning.Trainer`: holds masks, measures the flow while a module is fitted, stops it by the rule.

    Pruned weights stay exactly zero through whatever `configure_optimizers` returns, one optimizer or several, stepped
    by Lightning or by hand, with accumulation, clipping and mixed precision. A check is made after the optimizer step at which it
    is due; where the rule says stop, no further step is taken, unless the Trainer's own `min_epochs` or `min_steps` ask for
    it: then Lightning trains on to there, which a warning says, and no further check is made. Where `accuracy` names a
    metric, a check is made at the first validation at or after its step, because Lightning measures it there.

    Everything of it that a fit needs to go on is in Lightning's own checkpoints: masks, checks, ledger, and the random
    states, so that shuffling and dropout go on as well. Tensors and plain values alone: they load with `weights_only=True`.
    (It is Lightning that loads them, with `torch.load`; load no file that you would not run.) Names of weights stay the
    module's own.

    Args:
        masks: the weights that are left, by the module's own names; None: all, or those of the checkpoint gone on from.
        probe: batches of the training split that the meter sees, as the module's `forward` takes them; re-readable.
        meter: `flow.InformationFlow()` or `flow.GradientFlow(loss)`; without one no flow is measured.
        rule: when to stop; without one the fit takes its course, and flow and checks are noted.
        reference: the dense module's flow, from the same meter and probe: `.flow` after its fit.
        reference_accuracy: its validation accuracy in [0, 1], for `AccuracyRestored`.
        next_masks: gives the masks that would be cut now, for `MaskSettled`.
        check_every: how often to check: epochs (1, 0.1) or optimizer steps ("50steps").
        accuracy: name of a metric logged by the module's validation, in [0, 1]; needed where a rule asks for accuracy.
        log: hand flow, distance and sparsity of every check to the Trainer's loggers, as `incop/…`, and to its
            `callback_metrics`, so that other callbacks may monitor them.

    Raises:
        InputError: something given cannot be used; here where it can be known, or when the fit begins.

    Example:
        >>> import torch, lightning
        >>> from incop import flow, stopping
        >>> from incop.integrations.lightning import InCoPCallback
        >>> class Net(lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        ...     def forward(self, x):
        ...         return self.net(x)
        ...     def training_step(self, batch, batch_idx):
        ...         return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters())
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> watched = InCoPCallback(probe=x, meter=flow.InformationFlow(), rule=stopping.AfterEpochs(2))
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        >>> trainer = lightning.Trainer(max_epochs=9, accelerator="cpu", callbacks=[watched], **quiet)
        >>> trainer.fit(Net(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16))
        >>> watched.verdict.reason, list(watched.flow.values)
        ('after 2 epochs', ['net.0->net.2'])
    """

    @property
    def state_key(self) -> str:
        """Under what a checkpoint of Lightning's holds the state; it must not change."""
        return "InCoPCallback"

    def __init__(
        self,
        masks: Masks | Mapping[str, torch.Tensor] | None = None,
        *,
        probe: Any = None,
        meter: Meter | None = None,
        rule: Rule | None = None,
        reference: Flow | None = None,
        reference_accuracy: float | None = None,
        next_masks: Callable[[], Masks] | None = None,
        check_every: float | str | Interval = 1.0,
        accuracy: str | None = None,
        log: bool = True,
    ) -> None:
        if rule is not None and isinstance(rule, Rule) and "accuracy" in rule.wants and accuracy is None:
            raise InputError(
                f"the rule {str(rule)!r} needs the validation accuracy: name the metric that the module logs, "
                "InCoPCallback(accuracy='val_acc')"
            )
        super().__init__(accuracy)
        self._given = None if masks is None else Masks(masks)
        self._probe = None if probe is None else reusable(probe)
        self._parts: dict[str, Any] = {
            "meter": meter,
            "rule": rule,
            "reference": reference,
            "reference_accuracy": reference_accuracy,
            "next_masks": next_masks,
            "every": check_every,
        }
        self._log = log
        self._loaded: dict[str, Any] | None = None
        self._again: dict[str, Any] | None = None  # random states to put back when the next epoch begins
        self._goes_on = False  # whether this fit goes on from a checkpoint
        self._fresh(nn.Identity(), None)  # says now what does not go together

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks of the last fit, oldest first."""
        return () if self._watch is None else self._watch.checks

    @property
    def verdict(self) -> Verdict | None:
        """The last check's verdict; None before the first."""
        return None if self._watch is None else self._watch.verdict

    @property
    def flow(self) -> Flow | None:
        """The flow at the last check: after the dense module's fit, the reference for others."""
        return self.checks[-1].flow if self.checks else None

    @property
    def watch(self) -> Watch | None:
        """The watch of the last fit, with its ledger `spent`."""
        return self._watch

    @property
    def masks(self) -> Masks | None:
        """The weights that are left: those given, or those of the checkpoint that the fit went on from."""
        return self._masks if self._masks is not None else self._given

    def _fresh(self, model: nn.Module, masks: Masks | None) -> Watch:
        return Watch(model, self._probe, masks=masks, **self._parts)

    @property
    def _stopped(self) -> bool:
        verdict = self.verdict
        return verdict is not None and verdict.stop

    # --- Lightning's hooks

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget what an earlier checkpoint held; one for this run is loaded after this."""
        super().setup(trainer, pl_module, stage)
        self._loaded = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a watch, or go on with that of the checkpoint, and hold the masks."""
        state, self._loaded = self._loaded, None
        self._masks = _agreed(self._given, None if state is None else part("masks", state))
        self._watch = self._fresh(pl_module, self._masks)
        self._counted = self._before = self._samples = 0
        self._losses, self._awaited = [], False
        super().on_fit_start(trainer, pl_module)
        self._try(pl_module)
        if state is not None:
            with restoring("fit"):
                self._watch.restore(part("watch", state))
                self._counted, self._before = int(state["counted"]), int(state["before"])
                self._samples = int(state["samples"])
                self._losses = list(state["losses"].to(pl_module.device).unbind())
                # now: Lightning makes the iterator of its data loader, which draws a number, between here and the first step
                restore_random(part("random", state))
                self._again = part("random", state) if state["validated"] else None
        self._goes_on = state is not None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Say at once that a fit has already ended, where it goes on from a checkpoint of its end."""
        super().on_train_start(trainer, pl_module)
        if not self._goes_on:
            self._counted, self._before = trainer.global_step, trainer.current_epoch
        elif self._stopped:
            trainer.should_stop = True
        elif self._now.due() and self._accuracy is None:
            self._look(trainer, pl_module)  # the checkpoint was written between a step and its check
        self._now.start()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the random states back once more, where Lightning made an iterator for an epoch that had only to end."""
        again, self._again = self._again, None
        if again is not None:
            restore_random(again)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Look a last time where training ended between two checks, and prove that pruned weights are zero."""
        end = self._now.checks[-1].step if self._now.checks else -1
        if not self._stopped and self._now.step > max(end, 0) and not self._needs_validation:
            self._look(trainer, pl_module)
        self._prove(pl_module)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Prove that what is saved holds zeros."""
        self._prove(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return what a fit needs to go on: tensors and plain values. Lightning puts it into its checkpoints."""
        if self._watch is None:
            return {}
        trainer: Any = self._watch.model.trainer
        self._count(trainer)  # another callback may save between a step and the call of this one's hook
        losses = torch.stack(self._losses).cpu() if self._losses else torch.empty(0)
        groups: dict[str, Mapping[str, Any]] = {
            "masks": {} if self._masks is None else self._masks,
            "watch": self._watch.state(),
            "random": random_states(),
        }
        return {
            "counted": self._counted,
            "before": self._before,
            "samples": self._samples,
            "losses": losses,
            "validated": bool(trainer.validating and trainer.is_last_batch),
            **{key: value for name, group in groups.items() for key, value in under(name, group).items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint holds; the fit that begins next goes on from there."""
        self._loaded = dict(state_dict)

    # --- how

    def _due(self) -> bool:
        return not self._stopped and super()._due()

    def _looked(self, trainer: Any, verdict: Verdict) -> None:
        if self._log:
            self._tell(trainer)
        if not verdict.stop:
            return
        trainer.should_stop = True
        trained = {"min_epochs": trainer.current_epoch + bool(trainer.is_last_batch), "min_steps": trainer.global_step}
        ahead = {name: least for name in trained if trained[name] < (least := getattr(trainer, name) or 0)}
        if ahead:
            asked = ", ".join(f"{name}={least}" for name, least in ahead.items())
            warnings.warn(
                f"the rule ended this fit at step {self._now.step} ({verdict.reason}), and Lightning trains on because of the "
                f"Trainer's {asked} (min_steps brings min_epochs=1): leave it out to stop where the rule says",
                stacklevel=2,
            )

    def _tell(self, trainer: Any) -> None:
        check = self.checks[-1]
        values = {"distance": check.distance, "accuracy": check.accuracy}
        if self._masks is not None:
            values["sparsity"] = self._masks.sparsity
        if check.verdict is not None and self._parts["rule"] is not None:
            values["stop"] = float(check.verdict.stop)
        if check.flow is not None:
            # MLflow takes no ">" in a name
            values |= {f"flow/{name.replace('->', '-to-')}": value for name, value in check.flow.values.items()}
        metrics = {f"incop/{name}": float(value) for name, value in values.items() if value is not None}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _try(self, module: Any) -> None:
        """Measure a few samples before any training: they tell whether module, probe and reference go together."""
        meter, reference = self._parts["meter"], self._parts["reference"]
        if meter is None:
            return
        with inspection.undisturbed(module):  # a shuffled probe draws numbers
            few = [first_samples(unpack(batch), 2) for batch in islice(self._probe or (), 2)]
        if not few:
            raise InputError("the probe is empty: pass at least one batch")
        found = measure(module, few, meter, masks=self._masks)
        if reference is not None:
            found.distance(reference)

    def _prove(self, module: nn.Module) -> None:
        if self._masks is None:
            return
        for name, weight in self._masks.weights(module).items():
            if bool((weight.detach()[~self._masks[name].to(weight.device)] != 0).any()):
                raise TrainingError(
                    f"pruned weights of {name!r} are no longer zero, though no optimizer step moved them: the module or another "
                    "callback writes to it"
                )


def _agreed(given: Masks | None, saved: Mapping[str, torch.Tensor] | None) -> Masks | None:
    """Return the masks given or saved; where there are both, they must be the same."""
    kept = Masks(saved) if saved else None
    if given is None or saved is None:
        return given if given is not None else kept
    if kept != given:
        raise InputError(
            "the checkpoint to go on from was trained with other masks than those given to InCoPCallback: leave masks= out to take "
            "the checkpoint's, or start a fresh fit"
        )
    return kept
