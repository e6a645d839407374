"""How many networks have to be sampled to know a landscape as well as its closed form does.

Errors are those of maps over their means, averaged over 4x4 pixels, root mean square. That of the
closed form is its difference to a large sample, less what the noise of that sample explains. When
nothing is left, it is below that noise, and the number of networks is a lower bound. Where the
closed form is exact it has no error: the budget is the one at which the sample's own is 1 %.
"""

import pandas
import torch
from _timing import in_turns, ratio
from torch import nn
from tqdm import tqdm

from pilcro import closed_form, draw_network, monte_carlo
from pilcro.experiments.sampling import NETWORKS, agreement, sample
from pilcro.experiments.torchvision_models import initial

SIZE = 64
INPUTS = 4
PARTS = 60  # of 2 networks each, in the large sample
EXACT = 0.01  # error that a sample has to reach where the closed form has none


def main() -> None:
    rows = [compare(name) for name in tqdm(["plain", "resnet18", "mobilenet_v2", "squeezenet1_1"])]
    print(f"\nOne thread, {SIZE} pixels, {INPUTS} images for each sampled network")
    print(pandas.DataFrame(rows).to_string(index=False))


def build(name: str, generator: torch.Generator | None = None) -> nn.Module:
    return draw_network(plain, generator) if name == "plain" else initial(name, generator)


def plain() -> nn.Module:
    """Strided convolutions and a fully connected layer: its closed form is exact."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64 * 16 * 16, 10)),
    )


def compare(name: str) -> dict:
    generator = torch.Generator().manual_seed(0)
    times = in_turns(  # both have to build their networks
        {
            "closed": lambda: closed_form(build(name), SIZE),
            "sampled": lambda: monte_carlo(
                lambda: build(name, generator), SIZE, networks=2, inputs=INPUTS
            ),
        }
    )
    closed = closed_form(build(name), SIZE)
    parts = sample(
        lambda: build(name, generator), SIZE, parts=PARTS, inputs=INPUTS, generator=generator
    )
    found = agreement(closed.importance, [part.importance for part in parts])
    noise = found["standard_error"]
    squared_error = found["difference"] ** 2 - noise**2
    seen = squared_error > noise**2
    error = EXACT if closed.exact else squared_error**0.5 if seen else noise
    budget = NETWORKS * PARTS * (noise / error) ** 2  # errors fall with the root of the number
    below = "" if closed.exact or seen else "<"
    return {
        "network": name,
        "exact": closed.exact,
        "correlation": round(found["correlation"], 4),
        "error": f"{below}{error:.3f}",
        "networks": f"{below and '>'}{budget:.0f}",
        "times as long": f"{below and '>'}{budget / 2 * ratio(times, 'sampled', 'closed'):.0f}",
    }


if __name__ == "__main__":
    main()
