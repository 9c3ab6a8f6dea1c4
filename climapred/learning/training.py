"""Training with Lightning: loss, schedule, checkpoints, a log, and a resume that ends where the undisturbed run ends."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader

from climapred.learning.loader import Batch
from climapred.models.scaled import Scaled

Precision = Literal["auto", "bf16", "float32"]
Loss = Literal["mse", "mae"]


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        epochs, batch_size: as usual; the last batch of an epoch may be smaller.
        learning_rate: the peak of the one-cycle schedule (Smith and Topin 2018).
        weight_decay: AdamW's.
        clip: largest norm of the gradient; 0 for none.
        loss: mean squared or mean absolute error of the scaled fields, over all leads and cells.
        precision: "auto" computes the network in bfloat16 where the processor multiplies it natively.
        seed: of weights and batch order.
    """

    epochs: int = 5
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    loss: Loss = "mse"
    precision: Precision = "auto"
    seed: int = 0


def lightning_precision(precision: Precision) -> Literal["bf16-mixed", "32-true"]:
    """Return Lightning's name; "auto" asks the GPU, or the CPU for AMX or AVX-512 BF16."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    if precision == "auto":
        if torch.cuda.is_available():
            native = torch.cuda.is_bf16_supported()
        else:
            checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
            native = any(getattr(torch.cpu, check, bool)() for check in checks)
        precision = "bf16" if native else "float32"
    return "bf16-mixed" if precision == "bf16" else "32-true"


class Forecasting(lightning.LightningModule):
    """One training step of a scaled network: ``history`` frames in, the rest of the window is the truth."""

    def __init__(self, module: Scaled, history: int, training: Training) -> None:
        super().__init__()
        self.module, self.history, self.training_options = module, history, training

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return forecast and truth, both ``(B, S, C, H, W)`` in physical units."""
        fields, calendar = batch
        return self.module(fields[:, : self.history], calendar), fields[:, self.history :]

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss of a batch."""
        forecast, truth = self(batch)
        error = (forecast - truth) / self.module.scale
        loss = error.square().mean() if self.training_options.loss == "mse" else error.abs().mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}, step {self.global_step}: "
                f"{_finite(input=batch[0], forecast=forecast)}; lower training.learning_rate or training.clip, or "
                "use training.precision=float32"
            )
        self.log("train_loss", loss, on_epoch=True, on_step=False, prog_bar=True, batch_size=len(truth))
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Log the mean absolute error, in physical units."""
        forecast, truth = self(batch)
        error = (forecast - truth).abs().mean()
        if not torch.isfinite(error):
            raise FloatingPointError(
                f"the validation error became {error.item()} in epoch {self.current_epoch}: "
                f"{_finite(input=batch[0], forecast=forecast)}"
            )
        self.log("validation_mae", error, on_epoch=True, prog_bar=True, batch_size=len(truth))

    def configure_optimizers(self) -> Any:
        """Return AdamW under a one-cycle learning rate."""
        options = self.training_options
        optimizer = torch.optim.AdamW(self.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, options.learning_rate, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _finite(**tensors: Tensor) -> str:
    return ", ".join(f"{name} finite: {bool(torch.isfinite(tensor).all())}" for name, tensor in tensors.items())


class LossLog(Callback):
    """A row per epoch in ``log.csv``; rows of epochs that a resumed run does again are dropped first."""

    COLUMNS = ("epoch", "step", "train_loss", "validation_mae", "learning_rate", "seconds")

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the rows of finished epochs."""
        rows: list[list[str]] = []
        if self.path.exists():
            with self.path.open(newline="") as stream:
                rows = [row for row in csv.reader(stream) if row[0].isdigit() and int(row[0]) < trainer.current_epoch]
        partial = self.path.with_suffix(".tmp")
        with partial.open("w", newline="") as stream:
            csv.writer(stream).writerows([self.COLUMNS, *rows])
        os.replace(partial, self.path)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Append the row of this epoch."""
        metrics, rate = trainer.callback_metrics, trainer.optimizers[0].param_groups[0]["lr"]
        row = [
            trainer.current_epoch,
            trainer.global_step,
            float(metrics["train_loss"]),
            float(metrics["validation_mae"]),
        ]
        with self.path.open("a", newline="") as stream:
            csv.writer(stream).writerow([*row, rate, round(time.monotonic() - self._began, 2)])


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it: Lightning's own comes from /tmp, maybe another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint whole or not at all."""
        partial = Path(path).with_suffix(".tmp")
        torch.save(checkpoint, partial)
        os.replace(partial, path)


class MovableCheckpoint(ModelCheckpoint):
    """Keeps the best score when the folder has moved since; Lightning would forget it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of an earlier run."""
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})


def fit(
    module: Scaled,
    train: DataLoader[Batch],
    validation: DataLoader[Batch],
    *,
    history: int,
    training: Training,
    folder: Path,
    identity: str = "",
    show_progress: bool = True,
) -> dict[str, Any]:
    """Train ``module`` in place and leave it with the weights of the epoch of least validation error.

    Writes ``checkpoints/best.ckpt``, ``checkpoints/last.ckpt`` and ``log.csv`` into ``folder``. Called again after a kill
    with the same arguments it goes on after the last finished epoch and, on the same CPU and number of threads, ends with
    the same weights, bit for bit: the order of batches depends on seed and epoch alone, and optimiser and schedule are in
    the checkpoint.

    Args:
        module: the untrained network.
        train, validation: from ``window_loader``.
        history: frames that the network sees.
        training: options.
        folder: of this model.
        identity: of data and network; checkpoints of another identity, or of other options, are thrown away.
        show_progress: a progress bar on the terminal.

    Returns:
        what goes into the artefact: epochs, best epoch, validation error, options.

    Raises:
        FloatingPointError: when the loss is no longer finite.
    """
    checkpoints = folder / "checkpoints"
    last = _own_checkpoint(checkpoints, {"identity": identity, "training": asdict(training)})
    kept = {"enable_version_counter": False, "save_on_train_epoch_end": True}
    best = MovableCheckpoint(checkpoints, "best", monitor="validation_mae", **kept)
    newest = MovableCheckpoint(checkpoints, "last", **kept)
    callbacks: list[Callback] = [LossLog(folder / "log.csv"), best, newest]
    if show_progress:
        callbacks.append(TQDMProgressBar(refresh_rate=5))
    task = Forecasting(module, history, training)
    with _quiet():
        torch.manual_seed(training.seed)
        trainer = lightning.Trainer(
            devices=1,
            max_epochs=training.epochs,
            precision=lightning_precision(training.precision),
            gradient_clip_val=training.clip or None,
            callbacks=callbacks,
            plugins=CheckpointFiles(),
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=show_progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(task, train, validation, ckpt_path=last, weights_only=True)
    chosen = torch.load(checkpoints / "best.ckpt", weights_only=True, map_location="cpu")
    task.load_state_dict(chosen["state_dict"])
    module.to("cpu").eval()
    return {
        "options": asdict(training),
        "best_epoch": int(chosen["epoch"]),
        "validation_mae": float(best.best_model_score) if best.best_model_score is not None else None,
    }


def _own_checkpoint(checkpoints: Path, identity: dict[str, Any]) -> Path | None:
    """Return the checkpoint to go on from; wipe those of other data or options."""
    stamp = checkpoints / "identity.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != identity:
        shutil.rmtree(checkpoints, ignore_errors=True)
        checkpoints.mkdir(parents=True)
        (checkpoints / "identity.tmp").write_text(json.dumps(identity))
        os.replace(checkpoints / "identity.tmp", stamp)
    last = checkpoints / "last.ckpt"
    return last if last.exists() else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's greetings, and its advice on loader workers: our windows are in memory."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6 itself, on torch 2.13
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
