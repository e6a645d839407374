"""Choose the subset of Fashion-MNIST that ships, from the full set (fetched if need be).

Run `python data/fashion-mnist-subset/make.py`. The indices that it writes say what was chosen,
whatever a later numpy draws from the same seed.
"""

import gzip
from pathlib import Path

import numpy as np

from pilcro.data import fetch
from pilcro.data.loaders import read_idx

HERE = Path(__file__).parent
SEED = 20170825
PER_CLASS = {"train": 600, "test": 100}


def choose(labels: np.ndarray, per_class: int, generator: np.random.Generator) -> np.ndarray:
    """As many indices of every class, drawn without replacement, in ascending order."""
    chosen = [
        generator.choice(np.flatnonzero(labels == label), per_class, replace=False)
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(chosen))


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write unsigned bytes as a compressed IDX file, the same bytes every time."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=9, mtime=0))


def main() -> None:
    full = fetch("fashion_mnist")
    generator = np.random.default_rng(SEED)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(full / f"{prefix}-images-idx3-ubyte")
        labels = read_idx(full / f"{prefix}-labels-idx1-ubyte")
        indices = choose(labels, PER_CLASS[part], generator)
        np.savetxt(HERE / f"{part}-indices.txt", indices, fmt="%d")
        write_idx(HERE / f"{part}-images-idx3-ubyte.gz", images[indices])
        write_idx(HERE / f"{part}-labels-idx1-ubyte.gz", labels[indices])


if __name__ == "__main__":
    main()
