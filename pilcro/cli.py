"""The command line: ``pilcro landscape resnet18 --image-size 224 --out resnet18.png``."""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

from tqdm import tqdm

from pilcro.experiments.config import NetworkName, Run
from pilcro.experiments.torchvision_models import initial

EXPECTED = (ValueError, TypeError, NotImplementedError, OSError, ImportError)


def main(args: list[str] | None = None) -> None:
    """Run one command; an error that a user can make is one line on stderr and exit code 1."""
    try:
        import tyro
    except ImportError:
        sys.exit("pilcro: the command line needs tyro: pip install 'pilcro[experiments]'")
    # Its fields are options of the command: --epochs, not --run.epochs.
    train.__annotations__["run"] = Annotated[Run, tyro.conf.arg(name="")]
    commands = {
        "landscape": landscape,
        "fetch": fetch,
        "train": train,
        "sweep": sweep,
        "results": results,
    }
    try:
        with warnings.catch_warnings():
            # in one line, and not in the middle of a progress bar
            warnings.showwarning = lambda message, *_: tqdm.write(f"pilcro: {message}", sys.stderr)
            tyro.extras.subcommand_cli_from_dict(commands, prog="pilcro", args=args)
    except EXPECTED as error:
        sys.exit(f"pilcro: {error}")
    except KeyboardInterrupt:
        sys.exit("pilcro: interrupted")


def landscape(
    model: str,
    /,
    image_size: int,
    out: Path | None = None,
    channels: int = 3,
    weights: Literal["expected", "drawn"] = "expected",
) -> None:
    """Print the summary of a torchvision model's landscape at initialisation, and draw it.

    Args:
        model: name of a torchvision model, such as resnet18.
        image_size: height and width of the image in pixels.
        out: picture to write (png, svg, pdf, ...).
        channels: channels of the image.
        weights: the architecture itself, or one random draw of its weights.
    """
    if out is not None:
        check_picture(out)
    from pilcro import closed_form

    found = closed_form(initial(model), image_size, channels=channels, weights=weights)
    for name, value in found.summary().items():
        print(f"{name:<16} {value:.4g}")
    print(f"{'exact':<16} {'yes' if found.exact else 'no'}")
    for reason in found.reasons:
        print(f"  {reason}")
    if out is not None:
        ax = found.plot()
        ax.set_title(f"{model} at {image_size}")
        ax.figure.savefig(out)
        print(f"drawn to {out}")


def check_picture(out: Path) -> None:
    """Complain before the work, not after it."""
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if out.suffix.lstrip(".").lower() not in formats:
        raise ValueError(f"out must end in one of {', '.join(sorted(formats))}; got {out}")
    if not out.parent.is_dir():
        raise ValueError(f"out lies in a folder that does not exist: {out.parent}")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"out cannot be written: {out}")


def fetch(names: tuple[str, ...] = (), /, all: bool = False) -> None:
    """Download data sets into the cache folder, verified.

    Args:
        names: data sets, such as cifar10.
        all: fetch every data set that the book uses.
    """
    from pilcro import data
    from pilcro.data.fetching import look_up

    if all == bool(names):
        raise ValueError(f"name the data sets or say --all; known: {', '.join(data.DATASETS)}")
    for name in names:  # all, before the first one takes minutes
        look_up(name)
    for name in data.DATASETS if all else names:
        print(f"{name}: {data.fetch(name)}")


def train(run: Run, out: Path | None = None) -> None:
    """Train one network and measure it. Under torchrun the processes share each batch.

    Args:
        run: what to train, on what, how.
        out: file of results to add the record to; a run that is there is not repeated, one that
            was interrupted goes on. Without it, what was found is printed alone.
    """
    import json

    from pilcro.experiments.stored import train_and_store
    from pilcro.experiments.train import is_first

    record = train_and_store(run, out)
    if is_first():
        print(json.dumps(record["metrics"], indent=1))


def sweep(
    name: str,
    /,
    folder: Path = Path("results"),
    networks: tuple[NetworkName, ...] = (),
    methods: tuple[str, ...] = (),
    scheduler: str | None = None,
    workers: int | None = None,
    choose_anew: bool = False,
) -> None:
    """Complete an experiment: make the runs that its file of results lacks.

    Args:
        name: of an experiment, fashion say, or lab, neighbours or full for all that these hold.
        folder: holds a file for each experiment.
        networks: those wanted; all if none is named.
        methods: those wanted, "none" "¶ log", say; all if none is named.
        scheduler: address of a dask scheduler, such as tcp://10.0.0.1:8786; without it, workers
            are started on this machine.
        workers: how many to start on this machine; one a core if not said.
        choose_anew: run the trials that are best here on test images, whatever the results that
            ship with pilcro have chosen.
    """
    from pilcro.experiments.sweep import sweep

    sweep(
        name,
        folder,
        networks=networks,
        methods=methods,
        scheduler=scheduler,
        workers=workers,
        choose_anew=choose_anew,
    )


def results(files: tuple[Path, ...], /) -> None:
    """Print what files of results hold: each method against none, over the seeds they share.

    Args:
        files: of results, as sweep and train write them.
    """
    from pilcro.experiments.tables import overview

    for path in files:
        print(overview(path))
