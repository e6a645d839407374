"""Real images: what ships with pilcro, and what can be fetched."""

from .fetching import FetchError, data_folder, fetch, is_fetched
from .loaders import cifar10, fashion_mnist, fashion_mnist_subset
from .registry import DATASETS, DataSet

__all__ = [
    "DATASETS",
    "DataSet",
    "FetchError",
    "cifar10",
    "data_folder",
    "fashion_mnist",
    "fashion_mnist_subset",
    "fetch",
    "is_fetched",
]
