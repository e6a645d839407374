"""Real images: what ships with pilcro, and what can be fetched."""

from .fetching import FetchError, data_folder, fetch, is_fetched
from .loaders import cifar10, cifar10c, cifar10c_kinds, fashion_mnist, fashion_mnist_subset
from .registry import DATASETS, DataSet
from .scenes import anywhere, centred, grid_of_places, scenes

__all__ = [
    "DATASETS",
    "DataSet",
    "FetchError",
    "anywhere",
    "centred",
    "cifar10",
    "cifar10c",
    "cifar10c_kinds",
    "data_folder",
    "fashion_mnist",
    "fashion_mnist_subset",
    "fetch",
    "grid_of_places",
    "is_fetched",
    "scenes",
]
