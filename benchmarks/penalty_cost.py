"""A penalised training step costs little more than a plain one: time and peak memory.

Each setting is one optimizer step with SGD: forward, loss, penalty, backward, update. Settings are
timed in turns; peak memory is that of a fresh process. Without ``--full`` the small network is
measured and nothing is stored. With it, all networks go to data/results/cost/penalty.jsonl, and
what is there already for this device, precision and memory format is not measured again.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pandas
import torch
import torch.nn.functional as F
import tyro
from _memory import in_new_process, resident
from _timing import in_turns, ratio, seconds, wall_clock
from torch import Tensor, nn

from pilcro import PObjective, draw_network
from pilcro.experiments import results
from pilcro.models import plain_cnn, resnet18_small_images

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    # name: builder, image size, batch sizes
    "plain_cnn": (partial(plain_cnn, channels=3), 32, (32, 64, 128, 256)),
    "resnet18_small_images": (resnet18_small_images, 32, (32, 64, 128, 256)),
    "resnet50": (lambda: torchvision_model("resnet50"), 64, (32, 128)),
}
TARGETS = {  # design: times, and the peak memory of the second
    "backprop, quarter batch": 1.5,
    "backprop, quarter batch, every 4th step": 1.2,
    "twin": 1.1,
}
CONFIG = ("batch", "image_size", "device", "precision", "channels_last")
Penalty = Callable[[nn.Module, Tensor], Tensor]
Step = Callable[[], None]


def torchvision_model(name: str) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, num_classes=10)


def penalties() -> dict[str, tuple[int, Penalty]]:
    """Steps that one measurement takes, and what is added to the loss."""
    return {
        "plain": (1, lambda model, images: images.new_zeros(())),
        "backprop": (1, PObjective(fraction=1.0)),
        "backprop, quarter batch": (1, PObjective()),
        "backprop, quarter batch, every 4th step": (4, PObjective(every=4)),
        "twin": (1, PObjective(estimator="twin")),
        "Jacobian penalty": (1, partial(jacobian_penalty, torch.Generator().manual_seed(0))),
    }


def jacobian_penalty(generator: torch.Generator, model: nn.Module, images: Tensor) -> Tensor:
    """The peer: squared norm of the Jacobian by one random projection for each image, whole batch,
    in PyTorch's own operations (Hoffman, Roberts and Yaida, arXiv 1908.02729)."""
    x = images.detach().requires_grad_()
    output = model(x)
    vectors = F.normalize(torch.randn(output.shape, generator=generator)).to(output)
    (gradient,) = torch.autograd.grad(output, x, vectors, create_graph=True)
    return 0.01 * output.shape[1] / 2 * gradient.square().sum() / len(x)


def main(
    networks: tuple[str, ...] = ("plain_cnn",),
    /,
    full: bool = False,
    device: str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
    channels_last: bool = False,
    path: Path | None = None,
) -> None:
    """Measure, and print a table of ratios to the plain step.

    Args:
        networks: names; with --full all of them.
        full: measure all networks and store the results.
        device: cpu or cuda.
        precision: bfloat16 runs the step under autocast.
        channels_last: memory format of images and weights.
        path: of the results; data/results/cost/penalty.jsonl if it is not given.
    """
    path = path or results.folder() / "cost" / "penalty.jsonl"
    wanted = [
        (name, batch, NETWORKS[name][1], device, precision, channels_last)
        for name in (NETWORKS if full else networks)
        for batch in NETWORKS[name][2]
    ]
    runs = results.complete(
        path if full else None,
        wanted,
        lambda name, *values: measure(name, dict(zip(CONFIG, values, strict=True))),
        lambda run: (run["network"], *(run["config"][key] for key in CONFIG)),
        "{}, batch {}",
    )
    print(table(runs).to_string(index=False))


def measure(name: str, config: dict) -> dict:
    steps = {setting: penalised_step(name, config, setting) for setting in penalties()}
    times = in_turns(steps, clock=wall_clock(config["device"]))
    counts = {setting: count for setting, (count, _) in penalties().items()}
    memory = {setting: peak_memory(name, config, setting) for setting in counts}
    return {
        "experiment": "cost of the penalty",
        "dataset": "white noise",
        "network": name,
        "method": "one training step with SGD, over the plain one",
        "seed": 0,
        "config": config,
        "metrics": {
            "seconds": {k: value / counts[k] for k, value in seconds(times).items()},
            "ratio": {k: ratio(times, k, "plain") / counts[k] for k in counts},
            "peak_bytes": memory,
            "memory_ratio": {k: memory[k] / memory["plain"] for k in counts},
            "rounds": len(times["plain"]),
        },
        "provenance": {**results.provenance(), "accelerator": accelerator(config["device"])},
    }


def penalised_step(name: str, config: dict, setting: str) -> Step:
    """As many optimizer steps as one measurement of the setting takes."""
    build, size, _ = NETWORKS[name]
    count, penalty = penalties()[setting]
    layout = torch.channels_last if config["channels_last"] else torch.contiguous_format
    place = {"device": config["device"], "memory_format": layout}
    model = draw_network(build).to(**place)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(config["batch"], 3, size, size, generator=random).to(**place)
    labels = torch.randint(10, (config["batch"],), generator=random).to(config["device"])
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    half = config["precision"] == "bfloat16"

    def step() -> None:
        for _ in range(count):
            optimizer.zero_grad()
            with torch.autocast(config["device"], torch.bfloat16, enabled=half):
                loss = F.cross_entropy(model(images), labels) + penalty(model, images)
            loss.backward()
            optimizer.step()

    return step


def peak_memory(name: str, config: dict, setting: str) -> int:
    """Bytes that two measurements of a setting need at most, weights and all, in a new process."""
    return in_new_process(peak_memory_here, name, config, setting)


def peak_memory_here(name: str, config: dict, setting: str) -> int:
    torch.set_num_threads(1)
    before = resident()
    step = penalised_step(name, config, setting)
    step()
    step()
    if config["device"] == "cpu":
        return resident() - before
    return torch.cuda.max_memory_allocated()


def accelerator(device: str) -> str | None:
    return torch.cuda.get_device_name() if device == "cuda" else None


def table(runs: list[dict]) -> pandas.DataFrame:
    """One line a setting: times and peak memory over those of the plain step."""
    rows = []
    for run in runs:
        for setting, times in run["metrics"]["ratio"].items():
            target = TARGETS.get(setting)
            rows.append(
                {
                    "network": run["network"],
                    **{key: run["config"][key] for key in ("batch", "device", "precision")},
                    "setting": setting,
                    "time": round(times, 2),
                    "target": f"<= {target}" if target else "",
                    "memory": round(run["metrics"]["memory_ratio"][setting], 2),
                }
            )
    return pandas.DataFrame(rows)


if __name__ == "__main__":
    tyro.cli(main)
