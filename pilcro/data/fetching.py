"""Bring a data set onto this machine: try its sources in turn, verify, then rename into place."""

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from .registry import DATASETS, DataSet
from .sources import Source, say


class FetchError(OSError):
    """A data set is not there or could not be fetched; the message says what to do."""


def data_folder(folder: str | os.PathLike | None = None) -> Path:
    """Where the data sets lie: the given folder, else ``$PILCRO_DATA``, else the user's cache.

    >>> data_folder("here").name
    'here'
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pilcro"
    return Path(folder or os.environ.get("PILCRO_DATA") or cache).expanduser().absolute()


def is_fetched(name: str, folder: str | os.PathLike | None = None) -> bool:
    """Tell whether every file of the set is there with its size; ``fetch`` checks the content.

    Raises ValueError for an unknown name.

    >>> is_fetched("cifar10", "/an/empty/folder")
    False
    """
    dataset = look_up(name)
    return _fault(dataset, data_folder(folder) / name, content=False) is None


def fetch(name: str, folder: str | os.PathLike | None = None, *, progress: bool = True) -> Path:
    """Make sure that the set is there and whole, downloading it if need be; return its folder.

    Every file is verified by its sha256 after the download and appears under its name only
    then. A set that is already there is verified and left alone; one with other content is
    moved aside, with a warning. What you put into ``folder/by-hand/NAME`` (the files
    themselves or an archive of theirs) is taken before anything is downloaded.

    Raises ValueError for an unknown name, FetchError when the set cannot be had or written.

    >>> fetch("mnist")
    Traceback (most recent call last):
    ValueError: no data set is called 'mnist'; there are: cifar10, fashion_mnist
    """
    dataset = look_up(name)
    root = data_folder(folder)
    try:
        if _fault(dataset, root / name) is None:
            return root / name
        lock = _lock(root / f".{name}.lock")
        root.mkdir(parents=True, exist_ok=True)
        with lock:
            return _fetch(dataset, root, progress)
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(f"cannot use the data folder {root}: {error}") from error


def _lock(path: Path):
    try:
        import pooch  # noqa: F401
        from filelock import FileLock
    except ImportError as error:
        raise FetchError(
            f"fetching data needs {error.name}: pip install 'pilcro[experiments]'"
        ) from error
    return FileLock(path)


def look_up(name: str) -> DataSet:
    """The entry of the table; ValueError that names the known ones otherwise."""
    if name not in DATASETS:
        raise ValueError(f"no data set is called {name!r}; there are: {', '.join(DATASETS)}")
    return DATASETS[name]


def _fetch(dataset: DataSet, root: Path, progress: bool) -> Path:
    """Called with the lock held."""
    target = root / dataset.name
    prefix = f".{dataset.name}-partial-"
    for left_by_a_killed_fetch in root.glob(f"{prefix}*"):
        shutil.rmtree(left_by_a_killed_fetch, ignore_errors=True)
    if target.exists():
        fault = _fault(dataset, target)
        if fault is None:  # another process was quicker
            return target
        _move_aside(target, fault)
    reasons = []
    for label, attempt in _attempts(dataset, root, progress):
        with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as partial:
            obtained, result = Path(partial, "obtained"), Path(partial, "result")
            obtained.mkdir()
            result.mkdir()
            try:
                attempt(obtained, result)
                if fault := _fault(dataset, result):
                    raise ValueError(fault)
            except Exception as error:  # whatever it is, the next source has its turn
                reasons.append(f"{label}: {_reason(error)}")
                say(f"{dataset.name}: {reasons[-1]}", progress)
            else:
                os.replace(result, target)
                say(f"{dataset.name}: verified, from {label}, now in {target}", progress)
                return target
    raise FetchError(_what_to_do(dataset, root, reasons))


def _attempts(
    dataset: DataSet, root: Path, progress: bool
) -> Iterator[tuple[str, Callable[[Path, Path], None]]]:
    """The ways to get the canonical files, as (label, function of two empty folders)."""
    place = _by_hand(dataset, root)
    if any((place / file.name).exists() for file in dataset.files):
        yield "by hand", lambda obtained, result: _copy(dataset, place, result)
    for archives, source in {tuple(source.archives): source for source in dataset.sources}.items():
        if any(next(place.glob(pattern), None) for pattern in archives):
            yield (
                f"by hand, {', '.join(archives)}",
                lambda obtained, result, source=source: _open(source, place, result),
            )
    for source in dataset.sources:

        def attempt(obtained: Path, result: Path, source: Source = source) -> None:
            source.obtain(obtained, progress)
            _open(source, obtained, result)

        yield source.label, attempt


def _copy(dataset: DataSet, place: Path, result: Path) -> None:
    for file in dataset.files:
        shutil.copyfile(place / file.name, result / file.name)


def _open(source: Source, place: Path, result: Path) -> None:
    """Check the source's archives that lie in a place and unpack them."""
    archives = []
    for pattern, checksum in source.archives.items():
        archive = max(place.glob(pattern), default=None)
        if archive is None:
            raise FileNotFoundError(f"there is no {pattern} in {place}")
        if checksum is not None:
            kind, expected = checksum.split(":")
            if (got := _digest(archive, kind)) != expected:
                raise ValueError(f"{archive.name} has {kind} {got}, expected {expected}")
        archives.append(archive)
    source.unpack(archives, result)


def _fault(dataset: DataSet, folder: Path, *, content: bool = True) -> str | None:
    """What is wrong with the canonical files in a folder, None if nothing is."""
    for file in dataset.files:
        path = folder / file.name
        if not path.is_file():
            return f"{file.name} is missing"
        if (size := path.stat().st_size) != file.size:
            return f"{file.name} has {size:,} bytes, expected {file.size:,}"
        if content and (got := _digest(path, "sha256")) != file.sha256:
            return f"{file.name} has sha256 {got}, expected {file.sha256}"
    return None


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _move_aside(target: Path, fault: str) -> None:
    aside = target.with_name(f"{target.name}.wrong")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(target, aside)
    warnings.warn(f"{target} is not as it should be ({fault}): moved to {aside}", stacklevel=4)


def _by_hand(dataset: DataSet, root: Path) -> Path:
    return root / "by-hand" / dataset.name


def _reason(error: Exception) -> str:
    """The first line of an error, without the layers that requests wraps around its cause."""
    cause = getattr(error.args[0], "reason", error) if error.args else error
    return f"{type(error).__name__}: {str(cause).strip().partition(chr(10))[0]}"


def _what_to_do(dataset: DataSet, root: Path, reasons: list[str]) -> str:
    kinds = [[file.name for file in dataset.files]]
    kinds += [list(source.archives) for source in dataset.sources]
    choices = dict.fromkeys(", ".join(names) for names in kinds)
    return "\n".join(
        [
            f"{dataset.name} could not be fetched. Tried:",
            *(f"  - {reason}" for reason in reasons),
            f"By hand: put one of these into {_by_hand(dataset, root)}",
            *(f"  - {choice}" for choice in choices),
            f"(see {dataset.url}), then run `pilcro fetch {dataset.name}` again.",
        ]
    )
