"""What the closed form costs as a network gets wider, deeper, and its image larger.

With expected weights all channels of a tensor are exchangeable, and one of them stands for all: the
cost must not grow with width.
"""

from collections.abc import Callable

import pandas
from _timing import in_turns, ratio, seconds
from torch import nn

from pilcro import closed_form
from pilcro.experiments.torchvision_models import initial

Case = tuple[nn.Module, int]  # model, image size


def main() -> None:
    for title, cases in {
        "width, a small network, 64 pixels": widths(),
        "width, torchvision, 224 pixels": models("resnet50", "wide_resnet50_2"),
        "depth, torchvision, 224 pixels": models("resnet50", "resnet101", "resnet152"),
        "image size, ResNet-50": sizes("resnet50", 112, 224, 336, 448),
    }.items():
        print(f"\n{title}: times relative to the first line")
        print(table(cases).to_string(index=False))


def widths() -> dict[str, Case]:
    return {f"x{times}": (small(32 * times), 64) for times in (1, 2, 4, 8)}


def small(width: int) -> nn.Module:
    """Six convolutions with batch norm and strides, and a head."""
    layers: list[nn.Module] = []
    for i in range(6):
        layers += [
            nn.Conv2d(width if i else 3, width, 3, stride=1 + i % 2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def models(*names: str) -> dict[str, Case]:
    return {name: (initial(name), 224) for name in names}


def sizes(name: str, *sizes: int) -> dict[str, Case]:
    model = initial(name)
    return {str(size): (model, size) for size in sizes}


def table(cases: dict[str, Case]) -> pandas.DataFrame:
    """One line a case: seconds, and how many times as long as the first takes."""
    first, *_ = cases
    columns: dict[str, dict] = {}
    for weights in ("expected", "drawn"):
        times = in_turns({name: run(*case, weights) for name, case in cases.items()})
        columns[f"{weights} s"] = {k: round(v, 4) for k, v in seconds(times).items()}
        columns[f"{weights} ratio"] = {name: round(ratio(times, name, first), 2) for name in cases}
    return pandas.DataFrame(columns).rename_axis("case").reset_index()


def run(model: nn.Module, size: int, weights: str) -> Callable[[], object]:
    return lambda: closed_form(model, size, weights=weights)


if __name__ == "__main__":
    main()
