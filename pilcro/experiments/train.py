"""Train one network as a ``Run`` says, measure it, and make the record of it.

Under ``torchrun`` the processes share each batch through DistributedDataParallel, and each measures
its own copy.
"""

import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pilcro.curvature import NoLandscapeError
from pilcro.experiments import metrics, networks, results
from pilcro.experiments.config import Run
from pilcro.experiments.methods import augmented, dropping, penalty
from pilcro.experiments.splits import CLASSES, split
from pilcro.experiments.thumbnail import thumbnail
from pilcro.landscape import Landscape, on_data
from pilcro.neighbours import drop_nothing, drop_salient
from pilcro.untouched import draw_network

WARM_UP = 0.2  # share of the steps in which the learning rate rises


def train(
    run: Run,
    *,
    checkpoint: Path | None = None,
    report: Callable[[int, float], None] = lambda epoch, accuracy: None,
) -> dict:
    """Train and measure one network.

    Args:
        run: the configuration.
        checkpoint: file in which each epoch is kept; a run that finds one goes on from there and
            gives the numbers that it would have given uninterrupted. It stays, until whoever
            stores the record removes it.
        report: called after each epoch with its number and the validation accuracy.

    Returns:
        ``config``, ``seed``, ``curves`` (a number an epoch), ``landscape`` (summaries at the
        start, in the middle and at the end), ``thumbnail`` of the last one, ``metrics`` and
        ``provenance``. A run whose loss is no longer finite stops there, and its metrics hold
        ``diverged_in_epoch`` alone.

    Raises:
        ValueError, FetchError: as :func:`split` does; a damaged checkpoint.
        OSError: the checkpoint could not be written.
    """
    with reproducible(run), processes(run) as (rank, world):
        training = Training(run, rank, world)
        if checkpoint is not None and checkpoint.exists():
            training.load(checkpoint)
        curves = training.curves
        if not curves["landscape"]:
            training.measure_landscape()
        while training.epoch < run.epochs and not training.diverged:
            training.one_epoch()
            if checkpoint is not None and rank == 0:
                training.save(checkpoint)
            report(training.epoch, curves["accuracy"][-1])
        return training.record()


class Training:
    """A network in training: all that moves, and so all that a checkpoint holds."""

    def __init__(self, run: Run, rank: int, world: int) -> None:
        self.run, self.rank, self.world = run, rank, world
        self.device = device(run, rank)
        self.split = split(run)
        self.images, self.labels = (part.to(self.device) for part in self.split.train)
        self.images = self.split.standardised(self.images)
        channels, size = self.images.shape[1:3]

        def build() -> nn.Module:
            return networks.build(run.network, run.flat, channels, size, CLASSES, change=run.change)

        self.generators = {name: run.generator(name) for name in ("order", "moves", "drop")}
        self.model = draw_network(build, run.generator("weights")).to(self.device)
        if (drop := dropping(run, self.generators["drop"])) is not None:
            networks.put_behind_features(self.model, drop)
        self.steps = len(self.images) // run.batch  # an epoch: what does not fill a batch waits
        self.optimizer = optimizer(run, self.model)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            run.learning_rate,
            total_steps=self.steps * run.epochs,
            pct_start=WARM_UP,
            cycle_momentum=False,
        )
        self.shared = self.model
        if world > 1:
            cards = None if self.device.type == "cpu" else [self.device]
            self.shared = DistributedDataParallel(self.model, device_ids=cards)
        self.penalty = penalty(run.method, run.generator("penalty"))
        self.epoch, self.diverged = 0, False
        self.curves: dict[str, list] = {
            name: [] for name in ("loss", "accuracy", "seconds", "processor_seconds", "landscape")
        }

    def one_epoch(self) -> None:
        """Train on every image once, then look at the validation images."""
        wall, processor, total = time.perf_counter(), time.process_time(), 0.0
        order = torch.randperm(len(self.images), generator=self.generators["order"])
        order = order[: self.steps * self.run.batch].to(self.device)
        for rows in order.split(self.run.batch):
            loss = self.step(self.images[rows], self.labels[rows])
            total += loss
            if not math.isfinite(loss):
                break
        self.epoch += 1
        curves = self.curves
        curves["seconds"].append(round(time.perf_counter() - wall, 3))
        curves["processor_seconds"].append(round(time.process_time() - processor, 3))
        images, labels = self.split.validation
        scores = metrics.scores_of(self.model, self.split)(images)
        # The last step may have been the one too many: the loss is that before it.
        self.diverged = not (math.isfinite(total) and scores.isfinite().all())
        curves["loss"].append(None if self.diverged else round(total / self.steps, 5))
        curves["accuracy"].append(metrics.accuracy(scores, labels))
        if self.epoch in (self.run.epochs // 2, self.run.epochs) and not self.diverged:
            self.measure_landscape()

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One step; returns the loss of the task, that of the whole batch."""
        images = augmented(self.run.method, images, self.generators["moves"])
        mine = slice(self.rank, None, self.world)
        images, labels = images[mine].contiguous(), labels[mine]
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, self.run.precision == "bfloat16"):
            with drop_salient(self.shared, images, labels) if self.run.drop else nullcontext():
                task = F.cross_entropy(self.shared(images).float(), labels)
            loss = task
            if self.penalty is not None:
                try:
                    with drop_nothing(self.model):
                        loss = task + self.penalty(self.shared, images)
                except FloatingPointError:  # the ¶-objective says so before the loss does
                    return math.nan
                except NoLandscapeError:  # all gates are shut: it stays as bad as any dead network
                    pass
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        value = task.detach()
        if self.world > 1:
            dist.all_reduce(value)
        return float(value) / self.world

    def measure_landscape(self) -> None:
        """On validation images, with all outputs. An untrained network has no running statistics
        yet: there batch norm takes those of the images."""
        self.model.train(self.epoch == 0)
        images = self.split.standardised(self.split.validation[0][: metrics.SEEN].to(self.device))
        with drop_nothing(self.model):
            found = on_data(self.model, images, projections=CLASSES)
        self.model.train()
        for earlier in self.curves["landscape"]:
            earlier.pop("thumbnail", None)  # one picture a run
        self.curves["landscape"].append(pictured(found))

    def record(self) -> dict:
        """What is stored of the run."""
        curves, landscapes = dict(self.curves), self.curves["landscape"]
        del curves["landscape"]
        names = ("start", "middle", "end") if self.run.epochs > 1 else ("start", "end")
        return {
            "dataset": self.run.dataset,
            "network": self.run.network,
            "seed": self.run.seed,
            "config": self.run.as_dict(),
            "key": self.run.key,
            "curves": curves,
            "landscape": dict(zip(names, landscapes, strict=False)),
            "metrics": self.metrics(),
            "provenance": results.provenance(),
        }

    def metrics(self) -> dict:
        if self.diverged:
            return {"diverged_in_epoch": self.epoch}
        found: dict = {"validation_accuracy": self.curves["accuracy"][-1]}
        if self.split.test is None:
            return found
        images, labels = self.split.test
        scores = metrics.scores_of(self.model, self.split)
        logits = scores(images)
        found["accuracy"] = metrics.accuracy(logits, labels)
        found["calibration_error"] = round(metrics.calibration_error(logits, labels), 5)
        found |= metrics.breadth(self.model, self.split)
        if self.run.dataset.startswith("scenes"):
            return found | {"by_place": metrics.by_place(scores)}
        return found | metrics.robustness(scores, self.run.dataset)

    def parts(self) -> dict:
        """What knows its own state."""
        found = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        return found | {"penalty": self.penalty} if hasattr(self.penalty, "state_dict") else found

    def save(self, path: Path) -> None:
        """Whole or not at all: a killed process leaves the checkpoint before."""
        state = {
            "key": self.run.key,
            "epoch": self.epoch,
            "diverged": self.diverged,
            "curves": self.curves,
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            **{name: part.state_dict() for name, part in self.parts().items()},
        }
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(state, unfinished)
            os.replace(unfinished, path)
        except (OSError, RuntimeError) as error:  # torch.save has its own error for a full disk
            if not path.parent.exists():  # another run has ended, and took the empty folder away
                return self.save(path)
            unfinished.unlink(missing_ok=True)
            raise OSError(f"checkpoint {path} could not be written: {error}") from None

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of this run; nothing in it is executed.

        Raises:
            ValueError: the file is damaged, or belongs to another run.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path} is no whole checkpoint; delete it ({error})") from None
        if state["key"] != self.run.key:
            raise ValueError(f"{path} belongs to another run, {state['key']}; delete it")
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        self.epoch, self.diverged = state["epoch"], state["diverged"]
        self.curves = state["curves"]


def pictured(found: Landscape) -> dict:
    """Summary numbers, None for a ratio to nothing, and a thumbnail; of a network that has died,
    which no pixel moves, the mean alone."""
    if not found.importance.any():
        return {"mean": 0.0}
    numbers = found.summary().items()
    rounded = {name: float(f"{x:.5g}") if math.isfinite(x) else None for name, x in numbers}
    return rounded | {"thumbnail": thumbnail(found)}


def optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    if run.optimiser == "adamw":
        return torch.optim.AdamW(
            model.parameters(), run.learning_rate, weight_decay=run.weight_decay
        )
    return torch.optim.SGD(
        model.parameters(),
        run.learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=run.weight_decay,
    )


@contextmanager
def reproducible(run: Run) -> Iterator[None]:
    """The same sums in the same order, as far as PyTorch can; put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(run.threads)
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=True
        ):
            yield
    finally:
        torch.set_num_threads(threads)


def is_first() -> bool:
    """Whether this process writes and prints: of those that ``torchrun`` started, or alone."""
    return not dist.is_torchelastic_launched() or os.environ["RANK"] == "0"


@contextmanager
def processes(run: Run) -> Iterator[tuple[int, int]]:
    """This process's number and how many share a batch: those that ``torchrun`` started, or one.

    Raises:
        ValueError: they cannot share the batch evenly.
    """
    world = int(os.environ.get("WORLD_SIZE", "1")) if dist.is_torchelastic_launched() else 1
    if run.batch % world:
        raise ValueError(f"{world} processes cannot share a batch of {run.batch} evenly")
    if world == 1:
        yield 0, 1
        return
    dist.init_process_group("nccl" if run.device.startswith("cuda") else "gloo")
    try:
        yield dist.get_rank(), world
    finally:
        dist.destroy_process_group()


def device(run: Run, rank: int) -> torch.device:
    """Each process of ``torchrun`` has a card of its own.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        found = torch.device(run.device)
        if found.type == "cuda" and found.index is None:
            found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {run.device!r} cannot be used here: {error}") from None
    return found
