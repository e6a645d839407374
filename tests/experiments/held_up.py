"""The command line with small experiments, whose runs a test can stop where it wants.

A program of its own, and a preload of dask's workers. The tests talk to the runs through files in
the folder that FAULTS names:

- ``hold-KEY-2``: the run with this key waits after its second epoch for as long as the file exists
- ``held-KEY``: it waits now, in the process with this number
- ``kill-KEY``: the run kills the process that it is in
- ``started``: the keys of the runs, each as often as it was started
"""

import os
import resource
import signal
import time
from pathlib import Path

from pilcro import cli
from pilcro.experiments import lab, sweep, train
from pilcro.experiments.config import Run

SMALL = Run(images=100, epochs=3, batch=20)
EXPERIMENTS = {
    "three": lab.Experiment((SMALL,), (0, 1, 2), ()),
    "tested": lab.Experiment((SMALL,), (0,), (100,)),
}
METHODS = {
    "none": [{"learning_rate": 0.1}],
    "wild": [{"learning_rate": rate} for rate in (1e30, 1e5, 0.05)],
}


def held_up(run, *, checkpoint, report):
    folder = Path(os.environ["FAULTS"])
    with open(folder / "started", "a") as file:
        file.write(f"{run.key}\n")
    if (folder / f"kill-{run.key}").exists():
        os.kill(os.getpid(), signal.SIGKILL)

    def reported(epoch, accuracy):
        report(epoch, accuracy)
        hold, held = folder / f"hold-{run.key}-{epoch}", folder / f"held-{run.key}"
        if hold.exists():
            held.write_text(str(os.getpid()))
        while hold.exists():
            time.sleep(0.02)

    return train.train(run, checkpoint=checkpoint, report=reported)


if "FAULTS" in os.environ:
    lab.EXPERIMENTS |= EXPERIMENTS
    lab.METHODS.clear()
    lab.METHODS |= METHODS
    sweep.train = held_up

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background shells have it ignored
    if limit := int(os.environ.get("LARGEST_FILE", "0")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    cli.main()
