"""What `import pilcro` costs, and that a reader's machine needs no more than it must."""

import subprocess
import sys

HEAVY = (
    "torchvision",
    "matplotlib",
    "dask",
    "pooch",
    "PIL",
    "tyro",
    "ipywidgets",
    "pandas",
    "scipy",
    "zennit",
    "captum",
)


def python(*args):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True)


def test_import_is_light():
    trace = python("-X", "importtime", "-c", "import pilcro.neighbours").stderr
    modules = {line.rsplit("|", 1)[1].strip() for line in trace.splitlines() if "|" in line}
    assert "pilcro.landscape" in modules
    assert not [m for m in modules if m.split(".")[0] in HEAVY]


def test_import_is_silent_and_changes_nothing():
    code = (
        "import random, warnings, torch\n"
        "before = (warnings.filters[:], torch.get_rng_state().tolist(), random.getstate(),\n"
        "          torch.get_default_dtype(), torch.get_num_threads())\n"
        "import pilcro\n"
        "after = (warnings.filters[:], torch.get_rng_state().tolist(), random.getstate(),\n"
        "         torch.get_default_dtype(), torch.get_num_threads())\n"
        "assert before == after\n"
    )
    done = python("-W", "error", "-c", code)
    assert done.stdout == done.stderr == ""


def test_jaxtyping_is_optional():
    code = (
        "import sys; sys.modules['jaxtyping'] = None\n"
        "import pilcro, torch\n"
        "assert pilcro.shapes.Map is torch.Tensor\n"
        "print(pilcro.closed_form(torch.nn.Conv2d(3, 1, 3), 5).exact)\n"
    )
    assert python("-c", code).stdout == "True\n"
