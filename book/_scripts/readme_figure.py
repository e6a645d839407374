"""Draw book/_static/landscapes.png, the picture of the README and of the preface.

`.venv/bin/python book/_scripts/readme_figure.py` remakes it; it takes seconds and no data.
"""

from pathlib import Path

import pilcro
from pilcro import plot
from pilcro.experiments.torchvision_models import initial

OUT = Path(__file__).resolve().parents[1] / "_static" / "landscapes.png"
NAMES = {
    "AlexNet": "alexnet",
    "VGG-11": "vgg11",
    "ResNet-18": "resnet18",
    "DenseNet-121": "densenet121",
}

if __name__ == "__main__":
    found = {label: pilcro.closed_form(initial(name), 224) for label, name in NAMES.items()}
    plot.panel(found).savefig(OUT, dpi=110, metadata={"Software": None})
