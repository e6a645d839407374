"""Relevance against slow loops, gradients, captum and zennit's merging; conservation; errors."""

import copy
import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import Net, noise, seeded
from torch import nn

from pilcro.models import edge_filtered, small_cnn, small_resnet
from pilcro.neighbours import FILTERS, EdgeFilterConv2d, Explanation, explain, summarise
from pilcro.neighbours.relevance import EPSILON, guarded
from pilcro.second_moments import UnsupportedOperation
from pilcro.untouched import draw_network

IMAGE = torch.rand(3, 12, 12, generator=seeded(1))


def edge_cnn(channels=3, image_size=12):
    """With the filters first."""
    first, *others = edge_filtered(small_cnn(4, channels, image_size))
    return nn.Sequential(*first, *others)


def edges(seed=0):
    return draw_network(edge_cnn, seeded(seed)).double()


def without_biases(model):
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2, generator=seeded(2))
            nn.init.uniform_(module.weight, 0.5, 2, generator=seeded(3))
    return model


def shifted(model):
    """Batch norm as training leaves it."""
    for i, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=seeded(i))
            nn.init.normal_(module.bias, generator=seeded(i + 1))
    return model


@pytest.fixture(scope="module")
def vgg():
    from torchvision.models import vgg11

    build = lambda: vgg11(num_classes=5, init_weights=False, dropout=0.0)  # noqa: E731
    return without_biases(draw_network(build, seeded())).eval()


# --- the rules, slowly -----------------------------------------------------------------------


def numbers(tensor):
    return tensor.detach().double().tolist()


def responses(image, layer):
    """(colour, filter, row, column): response, and the taps by the pixel that they read."""
    found, (colours, height, width) = {}, image.shape
    (padding, _), (stride, _) = layer.padding, layer.stride
    pixels = numbers(image)
    taps = [numbers(torch.tensor(FILTERS[name])) for name in layer.filters]
    places = itertools.product(
        range(-padding, height + padding - 2, stride),
        range(-padding, width + padding - 2, stride),
    )
    for top, left in places:
        for colour, (f, tap) in itertools.product(range(colours), enumerate(taps)):
            norm = sum(t * t for row in tap for t in row) ** 0.5
            reads = {
                (top + a, left + b): tap[a][b] / norm
                for a, b in itertools.product(range(3), range(3))
                if 0 <= top + a < height and 0 <= left + b < width
            }
            z = sum(t * pixels[colour][r][c] for (r, c), t in reads.items())
            found[colour, f, top, left] = z, reads
    return found


def dense(weight, bias, inputs):
    """One weighted sum for each row, and the relevance of its inputs."""
    outputs = [
        sum(w * x for w, x in zip(row, inputs, strict=True)) + b
        for row, b in zip(weight, bias, strict=True)
    ]

    def back(relevance):
        return [
            sum(
                row[i] * x * r / z if z else 0.0
                for row, r, z in zip(weight, relevance, outputs, strict=True)
            )
            for i, x in enumerate(inputs)
        ]

    return outputs, back


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), (3, 2)])
def test_every_step_in_slow_loops(biases, stride, padding):
    """Filters, a 1x1 convolution, ReLU, a linear layer: colours, filters and pixels one by one."""
    layer = EdgeFilterConv2d(2, ["scharr_y", "emboss"], stride=stride, padding=padding)
    image = noise(2, 6, 5)
    side = layer(image[None].float()).shape[2:]
    net = draw_network(
        lambda: nn.Sequential(
            layer, nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * side.numel(), 2)
        ),
        seeded(),
    ).double()
    if not biases:
        without_biases(net)
    found = explain(net, image, target=1)

    filtered = responses(image, layer)
    places = list(dict.fromkeys((top, left) for _, _, top, left in filtered))
    channels = list(dict.fromkeys((colour, f) for colour, f, *_ in filtered))
    mixed = {
        place: dense(
            numbers(net[1].weight.flatten(1)),
            numbers(net[1].bias),
            [filtered[channel + place][0] for channel in channels],
        )
        for place in places
    }
    hidden = [max(mixed[place][0][k], 0.0) for k in range(3) for place in places]
    output, back = dense(numbers(net[4].weight), numbers(net[4].bias), hidden)
    relevance = back([0.0, output[1]])
    want = torch.zeros(2, 2, 6, 5, dtype=torch.float64)
    for p, place in enumerate(places):
        behind = mixed[place][1]([relevance[k * len(places) + p] for k in range(3)])
        for (colour, f), r in zip(channels, behind, strict=True):
            reads = filtered[(colour, f, *place)][1]
            squares = sum(t * t for t in reads.values())
            for (row, column), t in reads.items():
                want[colour, f, row, column] += r * t * t / squares if squares else 0.0

    torch.testing.assert_close(found.relevance, want, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.colour, want.sum((1, 2, 3)), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.edge, want.sum((0, 2, 3)), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.pixel, want.sum((0, 1)), rtol=1e-6, atol=1e-9)
    assert found.output == pytest.approx(output[1])
    assert found.absorbed == pytest.approx(output[1] - float(want.sum()), abs=1e-9)
    assert (abs(found.absorbed) > 1e-3) == biases
    assert found.filters == ("scharr_y", "emboss")


def by_gradient(net, image, target, layer=None):
    """Activation times gradient, behind the layer or at the image."""
    seen = {}
    if layer is not None:
        layer.register_forward_hook(lambda module, x, out: seen.update(at=out))
    image = image[None].clone().requires_grad_()
    output = net(image)[0, target]
    at = seen.get("at", image)
    return (at * torch.autograd.grad(output, at)[0])[0].detach()


def test_relevance_is_activation_times_gradient_with_all_that_a_network_has():
    """Pooling, batch norm that no canonizer can merge, convolutions that go up again, a leaky
    activation, functions outside of modules."""

    def function(x, edges, first, norm, one, leaky, up, two, head):
        x = leaky(one(norm(F.relu(first(edges(x))))))
        x = F.dropout(F.max_pool2d(x, 2), training=False)  # 3 x 3
        x = torch.cat([F.relu(two(up(x))), x[:, :, :1]], 2)  # 3 x 3 and 1 x 3
        return head(x.flatten(1))

    layers = (
        EdgeFilterConv2d(3, padding=1),
        nn.Conv2d(30, 6, 1),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 4, 3, 2, 1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(4, 4, 2, 2),
        nn.AvgPool2d(2),
        nn.Linear(4 * 4 * 3, 5),
    )
    net = shifted(draw_network(lambda: Net(function, *layers), seeded())).double().eval()
    found = explain(net, IMAGE.double(), 2)
    want = by_gradient(net, IMAGE.double(), 2, layers[0]).sum((1, 2)).reshape(3, 10)
    torch.testing.assert_close(found.relevance.sum((2, 3)), want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "padding",
    [
        nn.ZeroPad2d((1, 2, 0, 1)),
        nn.ReflectionPad2d(2),
        nn.CircularPad2d(1),
        nn.ConstantPad2d(2, 0.5),  # what comes from there is not the image's
    ],
)
def test_padding_outside_of_convolutions(padding):
    def build():
        return nn.Sequential(padding, nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), *HEAD)

    net = draw_network(build, seeded()).double().eval()
    found = explain(net, IMAGE.double(), 1)
    want = by_gradient(net, IMAGE.double(), 1)
    torch.testing.assert_close(found.relevance[:, 0], want, rtol=1e-5, atol=1e-8)
    conserved = abs(found.absorbed) < 1e-6 * abs(found.output)
    assert conserved == (getattr(padding, "value", 0) == 0)


def test_residual_sums():
    net = shifted(without_biases(draw_network(lambda: small_resnet(4, 3), seeded()))).double()
    found = explain(net, IMAGE.double(), 1)
    want = by_gradient(net.eval(), IMAGE.double(), 1)
    torch.testing.assert_close(found.relevance[:, 0], want, rtol=1e-5, atol=1e-8)
    assert found.edge is None
    assert found.filters == ()


def test_batch_norm_need_not_be_merged():
    """zennit's canonizer does; it leaves eps behind, so here there is none."""
    from zennit.composites import LayerMapComposite
    from zennit.layer import Sum
    from zennit.rules import Epsilon, Pass
    from zennit.torchvision import ResNetCanonizer

    net = shifted(draw_network(lambda: small_resnet(4, 3), seeded())).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    found = explain(net, IMAGE.double(), 1)
    linear = (nn.Conv2d, nn.Linear, nn.AdaptiveAvgPool2d, Sum)
    rules = [(linear, Epsilon(1e-12)), ((nn.ReLU, nn.BatchNorm2d), Pass())]
    image = IMAGE.double()[None].requires_grad_()
    with LayerMapComposite(rules, canonizers=[ResNetCanonizer()]).context(net):
        output = net(image)
        (want,) = torch.autograd.grad(output[0, 1], image, output[0, 1].detach())
    torch.testing.assert_close(found.relevance[:, 0], want[0], rtol=1e-5, atol=1e-8)


def test_smooth_activations_pass_relevance_on():
    """To the activation goes what came out of it, though its gradient is another."""
    net = draw_network(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh()), seeded())
    head = draw_network(lambda: nn.Linear(3, 2), seeded(1))
    image = noise(1, 2, 2)
    found = explain(nn.Sequential(*net, head).double(), image, 0)
    z, back = dense(numbers(net[1].weight), numbers(net[1].bias), numbers(image.flatten()))
    inner = torch.tensor(z).tanh()
    output, above = dense(numbers(head.weight), numbers(head.bias), numbers(inner))
    want = torch.tensor(back(above([output[0], 0.0]))).reshape(2, 2).double()
    torch.testing.assert_close(found.pixel, want, rtol=1e-5, atol=1e-7)


# --- conservation ----------------------------------------------------------------------------


def conserved(found):
    assert abs(found.absorbed) < 1e-3 * abs(found.output)
    for scores in (found.colour, found.edge, found.pixel):
        if scores is not None:
            assert float(scores.sum()) == pytest.approx(found.output, rel=1e-3)
    assert found.relevance.abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("target", [None, 0, 1, 2, 3])
def test_small_cnn_without_biases(channels, target):
    net = draw_network(lambda: without_biases(edge_cnn(channels, 28)), seeded())
    found = explain(net, torch.rand(channels, 28, 28, generator=seeded(1)), target)
    conserved(found)
    assert found.colour.shape == (channels,)
    assert found.edge.shape == (10,)
    assert found.pixel.shape == (28, 28)


def test_vgg_without_biases(vgg):
    found = explain(vgg, torch.rand(3, 32, 32, generator=seeded(1)))
    conserved(found)
    assert found.edge is None


@pytest.fixture(scope="module")
def resnet50():
    def build():
        return edge_filtered(torchvision.models.resnet50(num_classes=5))

    return without_biases(draw_network(build, seeded()))


def test_resnet50_without_biases(resnet50):
    found = explain(resnet50, torch.rand(3, 32, 32, generator=seeded(1)))
    conserved(found)
    assert found.edge.shape == (10,)


def test_small_activations_lose_no_more():
    """What guards a division by zero goes with the size of the activations."""
    net, image = without_biases(edges()).float(), IMAGE
    large = explain(net, image, 0)
    small = explain(net, image * 1e-12, 0)
    conserved(small)
    torch.testing.assert_close(small.relevance * 1e12, large.relevance, rtol=1e-3, atol=1e-6)


def test_a_black_image_has_no_relevance():
    found = explain(without_biases(edges()), torch.zeros(3, 12, 12), 0)
    assert found.relevance.abs().max() == 0
    assert found.output == 0


def test_guard():
    z = torch.tensor([3.0, -4.0, 0.0])
    guard = EPSILON * (25 / 3) ** 0.5
    moved = guarded(z.double()) - z.double()
    torch.testing.assert_close(
        moved, guard * torch.tensor([1.0, -1, 1]).double(), rtol=1e-5, atol=0
    )
    assert (0 / guarded(torch.zeros(3))).isfinite().all()


# --- captum, where it is right ---------------------------------------------------------------


def by_captum(net, inputs, target):
    from captum.attr import LRP

    return LRP(copy.deepcopy(net)).attribute(inputs.clone().requires_grad_(), target).detach()[0]


def test_captum_on_the_small_cnn():
    """With biases, which both leave out. Captum knows neither a layer of filters, so it starts
    behind it, nor nn.Flatten."""
    net = edges().eval()
    with torch.no_grad():
        filtered = net[0](IMAGE.double()[None])
    behind = Net(lambda z, layers, head: head(layers(z).flatten(1)), net[1:-2], net[-1])
    want = by_captum(behind, filtered, 2).sum((1, 2)).reshape(3, 10)
    found = explain(net, IMAGE, 2)
    assert abs(found.absorbed) > 1e-3
    torch.testing.assert_close(found.relevance.sum((2, 3)), want, rtol=1e-4, atol=1e-6)


def test_captum_on_vgg(vgg):
    image = torch.rand(3, 32, 32, generator=seeded(1))
    want = by_captum(vgg, image[None], 2).double()
    found = explain(vgg, image, 2).relevance[:, 0]
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


# --- what it is used on ----------------------------------------------------------------------


def test_the_predicted_class_by_default():
    net = edges()
    found, output = explain(net, IMAGE), net(IMAGE.double()[None])[0].detach()
    assert found.target == int(output.argmax())
    assert found.output == pytest.approx(float(output.max()))
    torch.testing.assert_close(found.relevance, explain(net, IMAGE, found.target).relevance)


def test_a_network_without_convolutions_has_pixels():
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 3, bias=False))
    found = explain(net, IMAGE, 1)
    want = net[1].weight[1].detach().reshape(3, 12, 12) * IMAGE
    torch.testing.assert_close(found.relevance[:, 0], want.double(), rtol=1e-4, atol=1e-6)


def test_wrapped_and_half_precision_models():
    net = edges().float()
    want = explain(net, IMAGE, 1).relevance
    torch.testing.assert_close(explain(nn.DataParallel(net), IMAGE, 1).relevance, want)
    half = explain(copy.deepcopy(net).bfloat16(), IMAGE.bfloat16(), 1)
    torch.testing.assert_close(half.edge, want.sum((0, 2, 3)), rtol=0.2, atol=0.05)


def test_in_place_activations_behind_the_filters():
    plain, in_place = (
        nn.Sequential(EdgeFilterConv2d(3), nn.ReLU(inplace=p), nn.Flatten(), nn.Linear(3000, 2))
        for p in (False, True)
    )
    in_place.load_state_dict(plain.state_dict())
    want = explain(plain, IMAGE, 0).relevance
    torch.testing.assert_close(explain(in_place, IMAGE, 0).relevance, want)


def snapshot(net, image):
    return {
        "values": [t.clone() for t in (*net.parameters(), *net.buffers(), image)],
        "rest": [
            (id(t), t.requires_grad, t.dtype, t.grad is None, t._version, t.data_ptr())
            for t in (*net.parameters(), *net.buffers(), image)
        ],
        "modules": [
            (
                sorted(vars(m)),
                m.training,
                list(m._forward_hooks.values()),
                list(m._forward_pre_hooks.values()),
                list(m._parameters),
                m.forward.__func__,
            )
            for m in net.modules()
        ],
        "random": torch.get_rng_state(),
        "mode": torch.is_grad_enabled(),
    }


class Boom(Exception):
    pass


class Breaks(nn.Module):
    """In the forward pass, or backwards, or on the way there: always after the rules are in."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def forward(self, x):
        if self.where == "forward":
            raise Boom
        if self.where == "no rule":
            return x * 2
        x = x.clone()

        def hook(gradient):
            raise Boom

        x.register_hook(hook)
        return x


@pytest.mark.parametrize("trouble", [None, "forward", "backward", "no rule"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(trouble, training):
    net = nn.Sequential(
        nn.Sequential(EdgeFilterConv2d(3, padding=1), nn.Conv2d(30, 16, 1, bias=False)),
        *shifted(small_resnet(4, 3))[1:],
    )
    net.train(training)
    net[1].eval()
    net[1].weight.requires_grad_(False)
    net[0][1].register_forward_hook(lambda module, x, out: None)
    image = IMAGE.clone()
    if trouble:
        net.insert(5, Breaks(trouble))
    before = snapshot(net, image)
    with torch.no_grad():
        if trouble:
            with pytest.raises((Boom, UnsupportedOperation)):
                explain(net, image)
        else:
            explain(net, image)
    after = snapshot(net, image)
    for key in ("rest", "modules"):
        assert before[key] == after[key], key
    assert all(map(torch.equal, before["values"], after["values"]))
    assert torch.equal(before["random"], after["random"])


def test_train_mode_makes_no_difference():
    net = nn.Sequential(*edges()[:-1], nn.Dropout(0.5), edges()[-1])
    both = [explain(net.train(training), IMAGE, 0).relevance for training in (True, False)]
    torch.testing.assert_close(*both)


# --- one clear error each --------------------------------------------------------------------

HEAD = (nn.AdaptiveAvgPool2d(1), nn.Flatten())


def net_of(function, *layers):
    return Net(function, nn.Conv2d(3, 4, 3, padding=1), *layers)


@pytest.mark.parametrize(
    ("image", "target", "error", "message"),
    [
        (IMAGE[None], 0, ValueError, r"one image \(colours, height, width\), got shape \(1, 3, 12"),
        (IMAGE[0], 0, ValueError, r"one image \(colours, height, width\), got shape \(12, 12\)"),
        (IMAGE.numpy(), 0, TypeError, "image must be a tensor, got ndarray"),
        ((IMAGE * 255).byte(), 0, TypeError, "floating point, got torch.uint8"),
        (IMAGE[:1], 0, ValueError, r"failed on images of shape \(1, 1, 12, 12\): .*30"),
        (IMAGE[:, :8], 0, ValueError, r"failed on images of shape \(1, 3, 8, 12\)"),
        (IMAGE / 0, 0, ValueError, "images must be finite"),
        (IMAGE, 4, ValueError, r"target must lie in 0 \.\.\. 3, got 4"),
        (IMAGE, -1, ValueError, r"target must lie in 0 \.\.\. 3, got -1"),
        (IMAGE, 1.0, TypeError, "target must be an int, got 1.0"),
        (IMAGE, True, TypeError, "target must be an int, got True"),
    ],
)
def test_refused_images_and_targets(image, target, error, message, as_a_user):
    with pytest.raises(error, match=message):
        explain(edges().float(), image, target)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("net", TypeError, "model must be a torch.nn.Module, got str"),
        (
            nn.Conv2d(3, 2, 3),
            ValueError,
            r"must return \(1, classes\).* got shape \(1, 2, 10, 10\)",
        ),
        (Net(lambda x: (x, x)), TypeError, "must return one tensor, got tuple"),
        (Net(lambda x: x.detach().flatten(1)), ValueError, "carries no gradient"),
    ],
)
def test_refused_models(model, error, message, as_a_user):
    with pytest.raises(error, match=message):
        explain(model, IMAGE, 0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (net_of(lambda x, a: (a(x) + x[:, :1]).flatten(1)), "Tensor.add, called in module 'Net'"),
        (net_of(lambda x, a: a(x).mean((2, 3))), "mean, called in module 'Net'; .*AdaptiveAvg"),
        (net_of(lambda x, a: F.conv2d(x, a.weight).flatten(1)), "conv2d, called in module 'Net'"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), *HEAD), "sigmoid, called in module '1'"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), *HEAD, nn.Softmax(1)), "softmax, called in module '3'"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), *HEAD),
            "module '1': it normalises",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), *HEAD),
            "module '1': it normalises by the statistics of the image",
        ),
        (net_of(lambda x, a, b: b(b(a(x))).flatten(1), nn.Conv2d(4, 4, 1)), "'layers.1' is used m"),
        (net_of(lambda x, a: F.dropout(a(x)).flatten(1)), "random numbers in eval mode"),
    ],
)
def test_what_has_no_rule(model, message):
    with pytest.raises(UnsupportedOperation, match=message):
        explain(model, IMAGE, 0)


def test_a_residual_block_of_ones_own():
    """zennit's canonizer would put torchvision's forward in its place."""
    from torchvision.models.resnet import BasicBlock

    class Scaled(BasicBlock):
        def forward(self, x):
            return super().forward(2 * x)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Scaled(4, 4), *HEAD)
    with pytest.raises(UnsupportedOperation, match="blocks do more than those of torchvision"):
        explain(model, IMAGE, 0)


@pytest.mark.parametrize(
    "model",
    [
        Net(lambda x, a: a(a(x)[:, :3]).flatten(1), EdgeFilterConv2d(3)),
        Net(lambda x, a: a(x.flip(3)).flatten(1), EdgeFilterConv2d(3)),
        Net(lambda x, a: a(x[:, :, 1:]).flatten(1), EdgeFilterConv2d(3)),
        Net(lambda x, a: torch.cat([a(x), x], 1).flatten(1), EdgeFilterConv2d(3, padding=1)),
        Net(lambda x, a: torch.cat([a(x), a(x)], 1).flatten(1), EdgeFilterConv2d(3)),
        Net(
            lambda x, a, b: torch.cat([a(x), b(x)], 1).flatten(1),
            EdgeFilterConv2d(3),
            EdgeFilterConv2d(3),
        ),
    ],
)
def test_the_filters_are_the_one_way_in(model):
    with pytest.raises((ValueError, UnsupportedOperation), match=r"all that reads the image|flip"):
        explain(model, IMAGE, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad):
    net = edges()
    with torch.no_grad():
        net[1].weight[0, 0] = bad
    with pytest.raises(ValueError, match="relevance is not finite"):
        explain(net, IMAGE, 0)


def test_without_zennit_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "zennit.composites", None)
    with pytest.raises(
        ImportError, match=r"explain needs zennit.*pip install 'pilcro\[relevance\]'"
    ):
        explain(edges(), IMAGE)


def test_import_takes_torch_only():
    code = (
        "import sys, pilcro.neighbours\n"
        "heavy = {'zennit', 'captum', 'torchvision', 'matplotlib', 'skimage', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# --- classes ---------------------------------------------------------------------------------


def random_explanations(count, filters=("sobel_x", "identity"), target=1):
    return [
        Explanation(noise(3, len(filters) or 1, 4, 5, seed=seed), filters, target, 1.0)
        for seed in range(count)
    ]


def test_summary_in_slow_loops():
    explanations = random_explanations(5)
    found = summarise(explanations)
    for name in ("colour", "edge", "pixel"):
        shares = []
        for one in explanations:
            scores = getattr(one, name).flatten().tolist()
            shares.append([s / sum(map(abs, scores)) for s in scores])
        columns = list(zip(*shares, strict=True))
        mean = torch.tensor([sum(c) / 5 for c in columns]).double()
        torch.testing.assert_close(getattr(found, name).flatten(), mean, rtol=1e-5, atol=1e-7)
        if name != "pixel":
            spread = [(sum((v - sum(c) / 5) ** 2 for v in c) / 4) ** 0.5 for c in columns]
            got = getattr(found, f"{name}_spread")
            torch.testing.assert_close(got, torch.tensor(spread).double(), rtol=1e-5, atol=1e-7)
    assert (found.target, found.images, found.filters) == (1, 5, ("sobel_x", "identity"))


def test_summary_without_filters_and_of_nothing():
    found = summarise(random_explanations(3, ()))
    assert found.edge is None
    assert found.edge_spread is None
    black = Explanation(torch.zeros(3, 1, 4, 5, dtype=torch.float64), (), 1, 0.0)
    assert (summarise([black, black]).colour == 0).all()


@pytest.mark.parametrize(
    "explanations",
    [
        [],
        random_explanations(1),
        random_explanations(2) + random_explanations(1, target=2),
        random_explanations(2) + random_explanations(1, ("sobel_x", "emboss")),
    ],
)
def test_summary_of_unlike_explanations(explanations):
    with pytest.raises(ValueError, match="at least two, with one target, filters and image size"):
        summarise(explanations)
