"""The training loop all stages share: prepare, accumulate, clip, step, average, log, save, resume. It knows no task.

A task brings its model and says how to lose on a batch (:class:`Task`). Samples are addressed by step (train.data), every
other draw comes from a generator in the task's state, and a checkpoint holds all of it: a killed run resumes to the same bits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lafr_core.errors import LafrError, MissingPackageError
from train.config import Config, Stage
from train.data.faces import Faces, Samples, manifest_hash, stream, write_list
from train.engine import checkpoints, journal, optimizers

log = logging.getLogger("train.loop")


class TrainingError(LafrError):
    """A run that must not go on: a loss that is not finite, a full disk, a checkpoint of another run."""


class Task(Protocol):
    """One stage. ``model`` is what is trained; its parameters without ``requires_grad`` are left alone.

    A task whose parts learn apart also has ``groups()``: groups of parameters (train.engine.optimizers.apart).
    """

    name: str
    model: nn.Module

    def begin(self, model: nn.Module, samples: Any, step: int) -> None:
        """Called before every optimiser step; the place for what happens at certain steps only, such as k-means."""
        ...

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms of one micro-batch; their sum is minimised. Draws nothing from global generators."""
        ...

    def finish(self) -> Mapping[str, float | Tensor]:
        """Called after every optimiser step; returns further readings to log. Tensors are read only when they are logged."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Everything of the model that training changes, by name."""
        ...

    def architecture(self) -> dict[str, Any]:
        """What rebuilds the model: its constructor's arguments, kept in every checkpoint; {} = the config alone does."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None: ...

    def state(self) -> dict[str, Any]:
        """Further state (counts, generators): plain tensors and numbers."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None: ...

    def sample(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Restored pictures (B, 3, S, S) for the sample sheet, with the averaged weights in place; None = none to show."""
        ...


class NetworkTask:
    """A task whose state is its network's alone: the base of those that only have to say how to lose on a batch."""

    name: str

    def __init__(self, network: nn.Module) -> None:
        self.model = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]

    def begin(self, model: nn.Module, samples: Any, step: int) -> None:
        """Nothing happens at certain steps only."""

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError

    def finish(self) -> Mapping[str, float | Tensor]:
        return {}

    def architecture(self) -> dict[str, Any]:
        return dict(getattr(self.model, "config", {}))

    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(dict(weights), strict=True)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """There is none beyond the weights."""

    def sample(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        return None


class Average:
    """Exponential moving average of what training changes; decay(t) = min(decay, (1 + t) / (10 + t)), so early steps count.

    That is the parameters that learn and the running statistics of batch normalisation, which belong to them.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for path, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                statistics = dict(module.named_buffers(prefix=path))
                self.live.update({name: b for name, b in statistics.items() if b.is_floating_point()})
        self.slow = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self.slow[name] for name in self.live], list(self.live.values()), 1 - keep)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model carries the averaged weights inside the ``with``, its own again afterwards."""
        own = {name: p.detach().clone() for name, p in self.live.items()}
        try:
            self._set(self.slow)
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.live.items():
            p.copy_(values[name])


def rate(step: int, stage: Stage, share: float | None = None) -> float:
    """Learning rate of optimiser ``step``: linear warm-up, ``hold`` of the run at ``lr``, then down to ``final * lr`` as
    ``falls`` says. ``share``: how much of the run is over; None = by the steps.
    """
    share = step / stage.steps if share is None else share
    done = max(0.0, share - stage.hold) / (1 - stage.hold)
    falling = optimizers.warm_linear if stage.falls == "linear" else optimizers.warm_cosine
    return falling(step, done, stage.lr, stage.warmup, stage.final)


def train(
    task: Task,
    stage: Stage,
    config: Config,
    samples: Samples,
    validation: Faces | None = None,
    judge: Callable[[Task, torch.device], dict[str, float]] | None = None,
) -> Path:
    """Run ``stage.steps`` optimiser steps (less what a checkpoint has done already) and return the folder of the
    checkpoint that validated best, of the last one where nothing was validated.

    ``judge`` scores the averaged weights every log.validate_every steps (train.engine.validation); the best checkpoint stays,
    and log.patience ends the run early, as log.minutes does: a later start goes on from there. Raises TrainingError when a term
    stops being finite: the last good checkpoint stays.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = stage.tf32
    accelerator = make_accelerator(stage, config)
    folder = Path(config.log.out) / task.name
    if accelerator.is_main_process:
        checkpoints.claim(folder)
        write_list(folder / "files.txt", samples.pictures)
    accelerator.wait_for_everyone()

    groups: Callable[[], list[dict[str, Any]]] | None = getattr(task, "groups", None)
    optimizer = make_optimizer(task.model, stage, groups() if groups is not None else None)
    trained = torch.compile(task.model) if stage.compile else task.model
    model, optimizer = accelerator.prepare(trained, optimizer)
    average = Average(task.model, stage.ema)
    identity = checkpoints.fingerprint(task.name, config, manifest_hash(samples.pictures), accelerator.num_processes)
    step = 0
    newest = checkpoints.newest(folder)
    if newest is not None and not config.log.resume:
        raise TrainingError(f"{folder}: holds checkpoints already and log.resume is false; choose another log.out or resume")
    if newest is not None:
        step = load(newest, task, optimizer, average, accelerator, identity)
        log.info("resumed %s at step %d", newest, step)

    world, rank = accelerator.num_processes, accelerator.process_index
    batches = stream(samples, step, batch=stage.batch, accumulate=stage.accumulate, rank=rank, world=world)
    diary = journal.Journal(folder, config, stage, step, accelerator)
    curve = journal.Curve(folder, config.log, step, accelerator)
    last = newest
    began = time.monotonic()
    seconds = 60 * config.log.minutes or math.inf
    model.train()
    while step < stage.steps:
        task.begin(model, samples, step)
        speed = rate(step, stage, (time.monotonic() - began) / seconds if config.log.clock else None)
        for group in optimizer.param_groups:
            group["lr"] = speed * group.get("share", 1.0)
        for _ in range(stage.accumulate):
            batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in next(batches).items()}
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    terms = task.losses(model, batch)
                check_finite(terms, step, last)
                diary.add(terms, batch)
                accelerator.backward(torch.stack(list(terms.values())).sum())
                if accelerator.sync_gradients:
                    norm = clip(accelerator, optimizer, stage.clip)
                    if accelerator.scaler is None:  # with a scaler an infinite norm is a skipped step, not an error
                        check_finite({"gradient": norm}, step, last)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        average.update(step)
        readings = task.finish()
        step += 1
        diary.step(step, speed, readings)
        if (
            validation is not None
            and (step % config.log.sample_every == 0 or step == stage.steps)
            and accelerator.is_main_process
        ):
            with average.in_place(), torch.no_grad():
                diary.sheet(step, task, validation, accelerator.device)
            model.train()
        better = enough = False
        if judge is not None and config.log.validate_every and step % config.log.validate_every == 0:
            with average.in_place(), torch.no_grad():
                better, enough = curve.add(step, lambda: judge(task, accelerator.device))
                better &= config.log.save_best
            model.train()
        late = accelerator.num_processes == 1 and time.monotonic() - began > seconds
        if step % config.log.save_every == 0 or step == stage.steps or better or enough or late:
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                last = save(folder, step, task, optimizer, average, accelerator, config, identity, curve.best)
                if config.log.plots:
                    diary.plot()
            accelerator.wait_for_everyone()
        if enough:
            log.info("stopped at step %d: %d validations without a better %s", step, config.log.patience, config.log.best)
            break
        if late:
            log.info("stopped at step %d: its %g minutes are over", step, config.log.minutes)
            break
    diary.close()
    return checkpoints.best(folder) or folder


def save(
    folder: Path,
    step: int,
    task: Task,
    optimizer: Any,
    average: Average,
    accelerator: Any,
    config: Config,
    identity: Mapping[str, Any],
    best: int | None = None,
) -> Path:
    """Write the checkpoint of ``step``; the previous ones stay intact, the oldest but ``best`` go afterwards."""
    state = {
        "step": step,
        "weights": task.weights(),
        "network": task.architecture(),
        "average": average.slow,
        "optimizer": optimizer.state_dict(),
        "task": task.state(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    try:
        path = checkpoints.write(folder, step, state, config, identity)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise TrainingError(
            f"{folder}: the checkpoint of step {step} could not be written ({error}); free space and resume"
        ) from error
    checkpoints.prune(folder, config.log.keep, best)
    return path


def load(path: Path, task: Task, optimizer: Any, average: Average, accelerator: Any, identity: Mapping[str, Any]) -> int:
    """Put a checkpoint's state back everywhere and return its step. Raises CheckpointError for one of another stage or run."""
    state = checkpoints.read(path, identity)
    task.load_weights(state["weights"])
    for name, slow in average.slow.items():
        slow.copy_(state["average"][name])
    optimizer.load_state_dict(state["optimizer"])
    task.load_state(state["task"])
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([t.cpu() for t in state["cuda"]])
    return int(state["step"])


def check_finite(terms: Mapping[str, Tensor], step: int, last: Path | None) -> None:
    """Raise TrainingError naming the first term that is NaN or infinite. One look at the device for all terms."""
    values = torch.stack([value.detach().float().sum() for value in terms.values()])
    if bool(torch.isfinite(values).all()):
        return
    name, value = next((n, v) for n, v in zip(terms, values.tolist(), strict=True) if not math.isfinite(v))
    kept = f"the last good checkpoint is {last}" if last is not None else "no checkpoint had been written yet"
    raise TrainingError(
        f"step {step}: the {name} term is {value}; stopped, {kept}. Lower the learning rate, or use bf16 or no instead of fp16 "
        "for precision"
    )


def make_accelerator(stage: Stage, config: Config) -> Any:
    """The Accelerator of a run: precision, accumulation and tracker from the config, devices from the launcher."""
    from accelerate import Accelerator

    tracker = journal.available_tracker(config.log.tracker)
    return Accelerator(
        gradient_accumulation_steps=stage.accumulate,
        mixed_precision=stage.precision,
        log_with=tracker,
        project_dir=config.log.out if tracker == "tensorboard" else None,
    )


def clip(accelerator: Any, optimizer: Any, largest: float) -> Tensor:
    """Scale gradients down to a norm of ``largest``: groups that learn apart each by itself, all others together. Returns the
    largest norm that was found.
    """
    accelerator.unscale_gradients()
    together = [p for group in optimizer.param_groups if "share" not in group for p in group["params"]]
    parts = [group["params"] for group in optimizer.param_groups if "share" in group]
    norms = [nn.utils.clip_grad_norm_(part, largest) for part in (*parts, together) if part]
    return torch.stack(norms).max()


def make_optimizer(model: nn.Module, stage: Stage, groups: list[dict[str, Any]] | None = None) -> torch.optim.Optimizer:
    """The stage's optimiser over the parameters that learn, or over ``groups`` of them (train.engine.optimizers.apart) where
    the task has such; the 8-bit one needs bitsandbytes and says so.
    """
    if groups is not None:
        return torch.optim.AdamW(groups, lr=stage.lr)
    if stage.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise MissingPackageError(
                "optimizer adamw8bit needs bitsandbytes and CUDA; install it, or set optimizer adamw"
            ) from error
        parameters = [p for p in model.parameters() if p.requires_grad]
        return AdamW8bit(parameters, lr=stage.lr, weight_decay=stage.weight_decay, betas=(stage.beta1, 0.99))
    return optimizers.make(stage.optimizer, model, stage.lr, stage.weight_decay, stage.beta1)


def learning_line(task: Task) -> str:
    """One line for the log: how many parameters learn."""
    learning = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    return json.dumps({"stage": task.name, "trainable_parameters": learning, "time": time.strftime("%Y-%m-%dT%H:%M:%S")})
