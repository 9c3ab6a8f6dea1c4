"""What goes on beside the steps of a training: checkpoints, the stop on a TERM signal, the log, the progress bar."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, TQDMProgressBar
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import distributed

from climapred.learning.dataset import Batch
from climapred.learning.launch import Interrupted
from climapred.learning.order import Share
from climapred.whole import replacing


def own_folder(checkpoints: Path, identity: dict[str, Any]) -> Path:
    """Return the folder of the checkpoints of these data and options; the first process removes those of others."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    own = checkpoints / digest
    if Share.current().rank == 0:
        for other in checkpoints.glob("*"):
            if other != own:
                shutil.rmtree(other)
        own.mkdir(parents=True, exist_ok=True)
    return own


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it: Lightning's own comes from /tmp, maybe another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint whole or not at all."""
        with replacing(Path(path)) as temporary, temporary.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint, read as numbers only: no file can run code. Tensors stay on disk until they are used.

    Raises:
        ValueError: if it is not one, names the file.
    """
    try:
        state = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
        if not (isinstance(state, dict) and {"state_dict", "loops"} <= state.keys()):
            raise TypeError(f"it holds a {type(state).__name__} of something else")
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a file of any content makes of the reader
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} is not a checkpoint of climapred ({reason}); remove it, and the training begins anew"
        ) from error
    return state


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt`` and ``best.ckpt``, and saves and stops when it is asked to stop.

    ``last.ckpt`` is written at the end of each epoch, before its last batch, and inside it at least every ``seconds``, always
    between two steps of the optimiser. Never after the last batch: Lightning, resumed there, would skip the validation.
    ``best.ckpt`` is the one of least ``validation_mae``.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.last, self.best = folder / "last.ckpt", folder / "best.ckpt"
        self.seconds = seconds
        self.best_error, self.best_epoch = float("inf"), -1
        self.asked_to_stop = False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run has to know."""
        return {"best_error": self.best_error, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of an earlier run."""
        self.best_error, self.best_epoch = state_dict["best_error"], state_dict["best_epoch"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()

    def ask_to_stop(self) -> None:
        """Save after the present step and stop: what a TERM signal calls."""
        self.asked_to_stop = True

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Save when it is time; stop when asked to."""
        left = int(trainer.num_training_batches) - batch_idx - 1
        if left == 0 or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        stop = self._any(trainer, self.asked_to_stop)
        due = self._any(trainer, time.monotonic() - self._saved_at >= self.seconds)
        if stop or due or left <= trainer.accumulate_grad_batches:
            trainer.save_checkpoint(self.last)
            self._saved_at = time.monotonic()
        if stop:
            raise Interrupted

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Stop when asked to: the state before the last batch of the epoch is saved."""
        if self._any(trainer, self.asked_to_stop):
            raise Interrupted

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save; a kill between the two names makes the resumed run come here again, with the same result."""
        error = float(trainer.callback_metrics["validation_mae"])
        best = error < self.best_error
        if best:
            self.best_error, self.best_epoch = error, trainer.current_epoch
        made = self.last.with_name("epoch.ckpt")
        trainer.save_checkpoint(made)
        if trainer.is_global_zero:
            if best:
                _second_name(made, self.best)
            os.replace(made, self.last)
        trainer.strategy.barrier()
        self._saved_at = time.monotonic()
        if self._any(trainer, self.asked_to_stop):
            raise Interrupted

    @staticmethod
    def _any(trainer: lightning.Trainer, decision: bool) -> bool:
        """Whether one of the processes says so; they must save and stop together."""
        if trainer.world_size == 1:
            return decision
        return bool(trainer.strategy.reduce_boolean_decision(decision, all=False))


def _second_name(path: Path, name: Path) -> None:
    with replacing(name) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)


class Patience(EarlyStopping):
    """Stops after ``patience`` epochs without a lower ``validation_mae``; a run that has stopped so stays stopped."""

    def __init__(self, patience: int) -> None:
        super().__init__("validation_mae", patience=patience, check_on_train_epoch_end=True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop at once where the checkpoint is that of the last epoch."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class EpochLog(Callback):
    """A row per epoch in ``log.csv``; those of epochs that a resumed run does again are dropped first.

    ``train_loss`` is the mean over the windows of the epoch, each as the network stood when it came; ``learning_rate`` that of
    the last step. ``windows_per_second`` and ``waiting``, the share of time in which the step waited for data, are of training
    alone; ``seconds`` has the validation too.
    """

    COLUMNS = (
        "epoch",
        "step",
        "train_loss",
        "validation_mae",
        "learning_rate",
        "seconds",
        "windows_per_second",
        "waiting",
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self._clear()

    def _clear(self) -> None:
        self.loss, self.windows, self.seconds, self.training, self.waited = 0.0, 0, 0.0, 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the epoch so far, those of all processes."""
        loss, windows = self._totals()
        return {
            "loss": loss,
            "windows": windows,
            "seconds": self.seconds,
            "training": self.training,
            "waited": self.waited,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the sums of an earlier run; one process has them all."""
        first = not distributed.is_initialized() or distributed.get_rank() == 0
        for name, value in state_dict.items():
            setattr(self, name, value if first else type(value)())

    def _totals(self) -> tuple[float, int]:
        if not (distributed.is_available() and distributed.is_initialized()):
            return self.loss, self.windows
        backend_device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        sums = torch.tensor([self.loss, self.windows], dtype=torch.float64, device=backend_device)
        distributed.all_reduce(sums)
        return float(sums[0]), int(sums[1])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the rows of finished epochs; start the clocks."""
        self._tick, self._waited_before = time.monotonic(), self._waited(trainer)
        if not trainer.is_global_zero:
            return
        rows: list[list[str]] = []
        if self.path.exists():
            with self.path.open(newline="") as stream:
                rows = [row for row in csv.reader(stream) if row[0].isdigit() and int(row[0]) < trainer.current_epoch]
        with replacing(self.path) as temporary, temporary.open("w", newline="") as stream:
            csv.writer(stream).writerows([self.COLUMNS, *rows])

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin new sums (an epoch that is resumed inside goes on with its own)."""
        self._clear()
        self._tick, self._waited_before = time.monotonic(), self._waited(trainer)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Add a batch."""
        self.loss += float(outputs["loss"]) * len(batch.fields) * trainer.accumulate_grad_batches
        self.windows += len(batch.fields)
        self.rate = pl_module.rate
        seconds, waited = self._lap(), self._waited(trainer)
        self.training += seconds
        self.seconds += seconds
        self.waited += waited - self._waited_before
        self._waited_before = waited

    def _lap(self) -> float:
        now = time.monotonic()
        seconds, self._tick = now - self._tick, now
        return seconds

    @staticmethod
    def _waited(trainer: lightning.Trainer) -> float:
        return float(getattr(trainer.train_dataloader, "waited", 0.0))

    def pace(self) -> tuple[float, float]:
        """Return windows per second of this process, and the share of time it waited for data, in this epoch so far."""
        return self.windows / max(self.training, 1e-9), self.waited / max(self.training, 1e-9)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Append the row of this epoch."""
        self.seconds += self._lap()
        loss, windows = self._totals()
        pl_module.log("train_loss", loss / windows, sync_dist=True)
        _, waiting = self.pace()
        row = [
            trainer.current_epoch,
            trainer.global_step,
            loss / windows,
            float(trainer.callback_metrics["validation_mae"]),
            self.rate,
            round(self.seconds, 2),
            round(windows / max(self.training, 1e-9), 1),
            round(waiting, 4),
        ]
        if trainer.is_global_zero:
            with self.path.open("a", newline="") as stream:
                csv.writer(stream).writerow(row)


class Progress(TQDMProgressBar):
    """Lightning's bar with windows per second and the share of time that waits for data."""

    def __init__(self, log: EpochLog) -> None:
        super().__init__(refresh_rate=5)
        self._log = log

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """Return what stands behind the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        pace, waiting = self._log.pace()
        return {**shown, "windows/s": f"{pace:.1f}", "waiting": f"{waiting:.1%}"}
