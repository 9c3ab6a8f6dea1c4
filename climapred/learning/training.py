"""Training with Lightning: loss, schedules, several processes, and a resume that ends where the undisturbed run ends."""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import lightning
import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from climapred.learning.callbacks import (
    CheckpointFiles,
    Checkpoints,
    EpochLog,
    Patience,
    Progress,
    own_folder,
    read_checkpoint,
)
from climapred.learning.dataset import Batch
from climapred.learning.launch import Interrupted, on_term
from climapred.learning.loader import WindowLoader
from climapred.learning.objective import Feeding, Loss, Sampling, leads_in_epoch, mean_loss
from climapred.learning.order import Share
from climapred.models.scaled import Scaled

Precision = Literal["auto", "bf16", "float32"]
Schedule = Literal["one_cycle", "cosine", "constant"]
Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        epochs: most passes over the training windows.
        batch_size: windows in a batch, over all processes; the last of an epoch may be smaller.
        accumulate: batches whose gradients are added before the optimiser (AdamW) steps.
        learning_rate: the highest of the schedule.
        schedule: "one_cycle" (Smith and Topin 2018), "cosine" (linear warm-up, then half a cosine to 0; Loshchilov and
            Hutter 2017), or "constant" (after the warm-up).
        warmup: share of the steps in which the learning rate rises.
        weight_decay: AdamW's.
        clip: largest norm of the gradient; 0 for none.
        loss: see ``learning.objective.mean_loss``.
        loss_on_seen: a one-pass network learns from its forecasts of the frames that it reads, too, all but the first
            (as PredRNN's authors train): from the first step on there is much that it can learn.
        area_weighted: whether a cell counts by its area in the loss; else all cells count the same.
        averaging: decay of an exponential moving average of the weights, which is what is validated and kept; 0 for none.
        patience: epochs without a lower validation error after which training stops; 0: never.
        sampling, sampling_end: what a network that feeds back is fed; see ``learning.objective.Feeding``.
        curriculum: epochs over which the leads that are trained grow from one to all; 0: all from the beginning.
        precision: "auto" computes the network in bfloat16 where the processor multiplies it natively.
        compile: compile the network (torch.compile) before training it.
        processes: how many train together on this machine, one for each GPU; torchrun's number comes first.
        strategy: what they share: "ddp" the gradients, "fsdp" the weights too (FSDP2).
        checkpoint_seconds: longest time between two checkpoints inside an epoch.
        tensorboard: write TensorBoard's files too; the CSV log is always written.
        seed: of weights, batch order and sampling.
    """

    epochs: int = 5
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 2e-3
    schedule: Schedule = "one_cycle"
    warmup: float = 0.3
    weight_decay: float = 0.01
    clip: float = 1.0
    loss: Loss = "mse"
    loss_on_seen: bool = False
    area_weighted: bool = False
    averaging: float = 0.0
    patience: int = 0
    sampling: Sampling = "none"
    sampling_end: float = 0.5
    curriculum: int = 0
    precision: Precision = "auto"
    compile: bool = False
    processes: int = 1
    strategy: Strategy = "ddp"
    checkpoint_seconds: float = 60.0
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"schedule": Schedule, "loss": Loss, "precision": Precision, "strategy": Strategy}
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "accumulate", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("weight_decay", "clip", "patience", "curriculum", "checkpoint_seconds", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        for name in ("warmup", "averaging"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.strategy == "fsdp" and self.averaging:
            raise ValueError("averaging needs whole weights in each process; use strategy ddp, or averaging 0")
        Feeding(self.sampling, self.sampling_end)


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
    """One training step of a scaled network: ``history`` frames in, the rest of the window is the truth.

    Args:
        module: the network between physical fields.
        history: frames that it sees.
        training: options.
        steps: of the optimiser, in all.
        areas: ``(H, W)`` or ``(H, 1)``, for an area-weighted loss.
    """

    areas: Tensor | None

    def __init__(
        self, module: Scaled, history: int, training: Training, steps: int, areas: Tensor | None = None
    ) -> None:
        super().__init__()
        self.module, self.history, self.training_options, self.steps = module, history, training, steps
        if training.area_weighted and areas is None:
            raise ValueError("an area-weighted loss needs the areas of the cells")
        self.register_buffer("areas", areas.float() if training.area_weighted and areas is not None else None)
        self.feeding = Feeding(training.sampling, training.sampling_end)
        if training.sampling != "none" and not module.network.feeds_back:
            raise ValueError(
                f"sampling={training.sampling!r} is for networks that eat their own forecasts; this one does not: build it "
                "with feedback=True or one_pass=True, or use sampling='none'"
            )
        if training.loss_on_seen and not module.network.one_pass:
            raise ValueError(
                "loss_on_seen=True is for networks that forecast the frames that they read; this one does not: build it with "
                "one_pass=True"
            )
        self.rate = math.nan
        self._error = self._count = 0.0

    def setup(self, stage: str) -> None:
        """Compile the network, in the process that trains it."""
        if self.training_options.compile:
            self.module.network.compile()

    def on_train_epoch_start(self) -> None:
        """Tell the loader the epoch: Lightning restores its place inside an epoch, not at the end of one."""
        if isinstance(loader := self.trainer.train_dataloader, WindowLoader):
            loader.set_epoch(self.current_epoch)

    def forward(
        self, batch: Batch, leads: int, use_truth: Tensor | None = None, whole: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return forecast and truth of the first leads, both ``(B, leads, C, H, W)`` in physical units.

        ``whole``: of the frames that are seen, too, all but the first.
        """
        stop = self.history + leads
        seen, ahead = batch.fields[:, : self.history], batch.fields[:, self.history : stop]
        eaten = ahead if self.module.network.feeds_back and (use_truth is not None or self._forcings(batch)) else None
        forecast = self.module(seen, batch.calendar[:, :stop], future=eaten, use_truth=use_truth, whole=whole)
        return forecast, batch.fields[:, stop - forecast.shape[1] : stop, : len(self.module.scale)]

    def _forcings(self, batch: Batch) -> int:
        return batch.fields.shape[2] - len(self.module.scale)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        options, windows = self.training_options, len(batch.fields)
        place = (options.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))  # dropout: the same after a resume
        horizon = batch.fields.shape[1] - self.history
        leads = leads_in_epoch(horizon, self.current_epoch, options.curriculum)
        progress = self.global_step / self.steps
        use_truth = self.feeding.use_truth(windows, self.history, leads, progress, place)
        use_truth = None if use_truth is None else use_truth.to(batch.fields.device)
        forecast, truth = self(batch, leads, use_truth, options.loss_on_seen)
        error = (forecast - truth) / self.module.scale
        loss = mean_loss(error, options.loss, weights=self.areas, mask=self._mask(truth))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss.item()} {self._where(batch, forecast, truth)}; {_ADVICE}")
        penalty = self.module.network.take_penalty()  # type: ignore[operator]
        return loss if penalty is None else loss + penalty

    def _mask(self, truth: Tensor) -> Tensor | None:
        return ~torch.isnan(truth) if self.module.missing == "mask" else None

    def _where(self, batch: Batch, forecast: Tensor, truth: Tensor) -> str:
        """Say when it happened, and which came first: the input, the truth or the output."""
        first, last = (np.datetime64(int(time), "ns") for time in (batch.times.min(), batch.times.max()))
        came = {"input": batch.fields[:, : self.history], "truth": truth, "output": forecast}
        if self.module.missing == "mask":  # what is masked did no harm
            came |= {name: came[name].nan_to_num(0.0, math.inf) for name in ("input", "truth")}
        found = ", ".join(
            f"{name} {'finite' if torch.isfinite(at).all() else 'NOT finite'}" for name, at in came.items()
        )
        between = " to ".join(np.datetime_as_string(time, unit="h") for time in (first, last))
        return f"in epoch {self.current_epoch}, step {self.global_step} (windows from {between}): {found}"

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the norm of the gradient, and refuse one that is not finite."""
        self.rate = optimizer.param_groups[0]["lr"]
        known = {name: weight for name, weight in self.module.named_parameters() if weight.grad is not None}
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in known.values() if weight.grad is not None])
        if not torch.isfinite(norm):
            bad = [name for name, weight in known.items() if not torch.isfinite(weight.grad).all()]  # type: ignore[arg-type]
            others = f" and {len(bad) - 3} others" if len(bad) > 3 else ""
            found = f"NOT finite: that of {', '.join(bad[:3])}{others}" if bad else "each finite, their norm overflows"
            raise FloatingPointError(
                f"the gradient became {float(norm)} in epoch {self.current_epoch}, step {self.global_step}: input and output "
                f"finite, gradients {found}; {_ADVICE}"
            )
        if self.training_options.clip:
            torch.nn.utils.clip_grads_with_norm_(known.values(), self.training_options.clip, norm)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Add to the mean absolute error over all leads: in physical units, of several variables in those of the scale."""
        forecast, truth = self(batch, batch.fields.shape[1] - self.history)
        error = (forecast - truth).abs().double()
        if len(self.module.scale) > 1:
            error = error / self.module.scale
        if (mask := self._mask(truth)) is not None:
            error = torch.where(mask, error, 0.0)
        self._error += float(error.sum())
        self._count += error.numel() if mask is None else int(mask.sum())
        if not math.isfinite(self._error):
            raise FloatingPointError(f"the validation error became {self._error} {self._where(batch, forecast, truth)}")

    def on_validation_epoch_end(self) -> None:
        """Log ``validation_mae``, over the windows of all processes."""
        sums = torch.tensor([self._error, self._count], dtype=torch.float64, device=self.device)
        error, count = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self._error = self._count = 0.0
        if not count:
            raise ValueError("every truth in the validation period is missing: choose another one, or fill them")
        self.log("validation_mae", (error / count).float(), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return AdamW under the learning rate's schedule."""
        options = self.training_options
        decay = options.weight_decay
        optimizer = torch.optim.AdamW(self.parameters(), options.learning_rate, weight_decay=decay, fused=True)
        schedule = learning_rate_schedule(optimizer, options, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


_ADVICE = "lower training.learning_rate or training.clip, or use training.precision=float32"


def learning_rate_schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> LRScheduler:
    """Return the schedule of ``training`` over ``steps`` steps of the optimiser."""
    rising = training.warmup * steps
    if training.schedule == "one_cycle":
        # A warm-up of one step would end where it begins, and torch divide by its length: a hair less is none.
        warmup = training.warmup * (1 - 1e-9) if rising == 1 else float(training.warmup)
        return OneCycleLR(optimizer, training.learning_rate, total_steps=steps, pct_start=warmup)

    def factor(step: int) -> float:
        if step + 1 < rising:
            return (step + 1) / rising
        if training.schedule == "constant":
            return 1.0
        done = (step - rising) / max(1.0, steps - rising)
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, max(0.0, done)))

    return LambdaLR(optimizer, factor)


class ShardedForecasting(Forecasting):
    """``Forecasting`` whose weights, gradients and optimiser are spread over the processes (FSDP2)."""

    def configure_model(self) -> None:
        """Shard the network as one unit: a recurrent one needs all its weights at every time step."""
        fully_shard(self.module.network, mesh=self.device_mesh["data_parallel"])


def fit(
    module: Scaled,
    train: WindowLoader,
    validation: WindowLoader,
    *,
    history: int,
    training: Training,
    folder: Path,
    areas: npt.NDArray[np.floating] | None = None,
    identity: str = "",
    show_progress: bool = True,
    callbacks: Iterable[Callback] = (),
) -> dict[str, Any]:
    """Train ``module`` in place and leave it with the weights of the epoch of least validation error.

    Writes ``checkpoints/*/best.ckpt``, ``checkpoints/*/last.ckpt`` and ``log.csv`` into ``folder``. Called again after a kill
    with the same arguments it goes on from the last checkpoint and, on the same CPU and number of threads, ends with the same
    losses and weights, bit for bit: the order of batches, dropout and sampling depend on seed, epoch and batch alone; all
    else is in the checkpoint.

    Under torchrun, or in the processes of ``learning.launch.together``, each calls this with the same arguments; batch k of all
    of them together is batch k of a single one, so that the weights are the same up to rounding. (Not where windows are
    streamed, each process from its own files; where sampling draws; or where missing values leave them unequal weights.)

    Args:
        module: the untrained network.
        train, validation: batches.
        history: frames that the network sees.
        training: options.
        folder: of this model.
        areas: of the cells, ``(H, W)`` or ``(H, 1)``, for ``training.area_weighted``.
        identity: of data and network; a checkpoint of another identity, or of other options, is not touched again.
        show_progress: a progress bar on the terminal.
        callbacks: more of Lightning's.

    Returns:
        what goes into the artefact: options, best epoch, validation error.

    Raises:
        FloatingPointError: when loss or gradient is no longer finite; says where that came from.
        ImportError: if TensorBoard is asked for and not installed.
        learning.launch.Interrupted: after a TERM signal, when the state is saved; exits with code 75.
        ValueError: if a checkpoint is not one.
    """
    checkpoints = own_folder(folder / "checkpoints", {"identity": identity, "training": asdict(training)})
    kept, log = Checkpoints(checkpoints, training.checkpoint_seconds), EpochLog(folder / "log.csv")
    kind = ShardedForecasting if training.strategy == "fsdp" else Forecasting
    trained = copy.deepcopy(module) if training.strategy == "fsdp" else module  # sharding takes the weights apart
    # Counted here: Lightning's own count would set the loader up before its place in the epoch is restored.
    steps = training.epochs * -(-len(train) // training.accumulate)
    task = kind(trained, history, training, steps, None if areas is None else torch.from_numpy(areas))
    for loader in (train, validation):
        loader.epoch = loader.position = 0  # an error may have ended an earlier fit inside an epoch
    with _quiet(), on_term(kept.ask_to_stop):
        torch.manual_seed(training.seed)
        trainer = lightning.Trainer(
            **_processes(training),
            max_epochs=training.epochs,
            precision=lightning_precision(training.precision),
            accumulate_grad_batches=training.accumulate,
            callbacks=[log, *_extras(training, log if show_progress else None), *callbacks, kept],
            default_root_dir=folder,
            logger=_tensorboard(folder) if training.tensorboard else False,
            enable_progress_bar=show_progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
        )
        # Lightning's own handler of TERM would end the process with code 0, without a checkpoint.
        trainer._signal_connector.register_signal_handlers = lambda: None
        if resumed := kept.last.exists():
            read_checkpoint(kept.last)
        try:
            trainer.fit(task, train, validation, ckpt_path=kept.last if resumed else None, weights_only=True)
        finally:
            module.network._compiled_call_impl = None
    if kept.asked_to_stop:
        raise Interrupted
    module.load_state_dict(_module_weights(kept.best))
    module.to("cpu").eval()
    return {"options": asdict(training), "best_epoch": kept.best_epoch, "validation_mae": kept.best_error}


def _tensorboard(folder: Path) -> TensorBoardLogger:
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError("tensorboard=True needs tensorboard; install the extra: pip install 'climapred[tensorboard]'")
    return TensorBoardLogger(folder, name="", version="tensorboard")


def _processes(training: Training) -> dict[str, Any]:
    """Return what Lightning's trainer has to know of the other processes; it never starts any."""
    world = Share.current().world
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world == 1:
        if training.processes > 1 or training.strategy == "fsdp":
            raise RuntimeError(
                f"this process is alone, and training wants {training.processes} with strategy {training.strategy}: start it "
                "with `climapred run`, with torchrun, or with learning.launch.together"
            )
        return {"devices": 1, "plugins": [CheckpointFiles(), LightningEnvironment()]}
    strategy: Any = DDPStrategy(gradient_as_bucket_view=True)
    if training.strategy == "fsdp":
        strategy = ModelParallelStrategy(
            data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return {
        "devices": here,
        "num_nodes": world // here,
        "strategy": strategy,
        "plugins": [CheckpointFiles(), TorchElasticEnvironment()],
    }


def _extras(training: Training, shown: EpochLog | None) -> Iterator[Callback]:
    if training.averaging:
        yield EMAWeightAveraging(decay=training.averaging, use_buffers=False)  # the average of a constant would drift
    if training.patience:
        yield Patience(training.patience)
    if shown is not None:
        yield Progress(shown)


def _module_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of the scaled network in a checkpoint."""
    state = read_checkpoint(path)["state_dict"]
    return {name.removeprefix("module."): value for name, value in state.items() if name.startswith("module.")}


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
