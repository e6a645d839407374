"""Random graphs of layers against brute force: every pattern of signs of all weights and biases.

The closed form takes weights and biases to be independent and symmetric around zero. Flipping each
sign with probability one half is such a distribution, and a small network has few enough patterns
to try them all, gates and in-place operations included, on one fixed image: the average of its
squared Jacobian has no sampling error. That it says ``exact`` and agrees, and that it says so for
every graph that gives it no reason not to, is tested; shares no code with the rules.
"""

from functools import partial

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, event, given, settings
from torch import Tensor, nn

import pilcro

# what torch.func.jacfwd says on its first use
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")

SIGNS = 11  # at most: 2048 networks


# --- brute force ---------------------------------------------------------------------------------


def brute_force(model: nn.Module, image: Tensor) -> Tensor:
    """Mean over all patterns of signs of sum over channels and outputs (df/dx)^2 / outputs."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    numbers = sum(p.numel() for p in parameters.values())
    bits = torch.arange(2 ** (1 + numbers))[:, None] >> torch.arange(1 + numbers)
    patterns = (1 - 2 * (bits & 1)).to(image)

    def squared_jacobian(signs: Tensor, x: Tensor) -> Tensor:
        of_image, parts = signs[0], signs[1:].split([p.numel() for p in parameters.values()])
        signed = {
            name: p * part.reshape(p.shape)
            for (name, p), part in zip(parameters.items(), parts, strict=True)
        }

        def outputs(x: Tensor) -> Tensor:
            return torch.func.functional_call(model, signed, (x.clone(),)).flatten()

        jacobian = torch.func.jacfwd(outputs)(of_image * x)
        return jacobian.square().sum((0, 1, 2)) / len(jacobian)

    images = image.expand(len(patterns), *image.shape).contiguous()
    return torch.func.vmap(squared_jacobian, chunk_size=512)(patterns, images).mean(0)


# --- random graphs -------------------------------------------------------------------------------


class Graph(nn.Module):
    """Each step takes the tensors that are there and adds one; the last is the output."""

    def __init__(self, steps, layers):
        super().__init__()
        self.steps, self.layers = steps, layers

    def forward(self, x):
        tensors = [x]
        for step in self.steps:
            tensors.append(step(tensors))
        return tensors[-1]


def parameters(layers):
    return sum(p.numel() for p in layers.parameters())


def pick(draw, options):
    """Often the latest, so that most steps matter to the output."""
    return draw(st.one_of(st.just(options[-1]), st.sampled_from(options)))


def conv(draw, tensors, layers):
    """A new layer on one of the tensors."""
    i = pick(draw, range(len(tensors)))
    channels = tensors[i].shape[1]
    groups = draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
    out = groups * draw(st.integers(1, 2 if groups == 1 else 1))
    padding = draw(st.tuples(st.integers(0, 1), st.integers(0, 1)))
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    layer = nn.Conv2d(
        channels,
        out,
        draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (1, 3)])),
        stride=draw(st.tuples(st.integers(1, 2), st.integers(1, 3))),
        padding=padding,
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        groups=groups,
        padding_mode=mode,
        bias=draw(st.booleans()),
    )
    layers.append(layer)
    return lambda tensors: layer(tensors[i])


def again(draw, tensors, layers):
    """A layer that is there already: once more, or another that shares its weights or biases."""
    old = draw(st.sampled_from([layer for layer in layers if isinstance(layer, nn.Conv2d)]))
    channels = old.in_channels
    i = pick(draw, [i for i, t in enumerate(tensors) if t.shape[1] == channels])
    layer = old
    shared = draw(st.sampled_from(["module", "weight", "bias"]))
    if shared != "module":
        layer = nn.Conv2d(channels, old.out_channels, old.kernel_size, groups=old.groups)
        if shared == "weight" or old.bias is None:
            layer.weight = old.weight
        else:
            layer.bias = old.bias
        layers.append(layer)
    return lambda tensors: layer(tensors[i])


def relu(draw, tensors, layers):
    i, inplace = pick(draw, range(len(tensors))), draw(st.booleans())
    return lambda tensors: F.relu(tensors[i], inplace)


def add(draw, tensors, layers):
    """Two branches, or one and itself."""
    i = pick(draw, range(len(tensors)))
    j = draw(st.sampled_from([j for j, t in enumerate(tensors) if t.shape == tensors[i].shape]))
    how = draw(st.sampled_from([torch.add, torch.sub, torch.Tensor.add_]))
    return lambda tensors: how(tensors[i], tensors[j], alpha=2)


def cat(draw, tensors, layers):
    dim = draw(st.integers(1, 3))
    i = pick(draw, range(len(tensors)))
    rest = [n for d, n in enumerate(tensors[i].shape) if d != dim]
    fits = [
        j for j, t in enumerate(tensors) if [n for d, n in enumerate(t.shape) if d != dim] == rest
    ]
    j = draw(st.sampled_from(fits))
    return lambda tensors: torch.cat([tensors[i], tensors[j]], dim)


def part(draw, tensors, layers):
    """Half of the channels, rows or columns: a view of the whole."""
    i, dim, last = (
        pick(draw, range(len(tensors))),
        draw(st.integers(1, 3)),
        draw(st.booleans()),
    )
    return lambda tensors: tensors[i].chunk(2, dim)[-last]


def move(draw, tensors, layers):
    """The same entries in another order, or another tensor object in front of the same memory."""
    i = pick(draw, range(len(tensors)))
    how = draw(
        st.sampled_from(
            [
                lambda t: t.transpose(2, 3),
                lambda t: t.flip(3),
                lambda t: t.roll(1, 2),
                lambda t: t.contiguous(),
                lambda t: t.to(torch.float64),
                lambda t: t.view(t.shape),
                lambda t: t.clone(),
                lambda t: F.dropout(t, training=False),
                lambda t: F.pad(t, (1, 0, 0, 0)),
            ]
        )
    )
    return lambda tensors: how(tensors[i])


def constant(draw, tensors, layers):
    i = pick(draw, range(len(tensors)))
    how = draw(
        st.sampled_from([lambda t: -2 * t, lambda t: t / 3, lambda t: 2 - t, lambda t: t.mul_(2)])
    )
    return lambda tensors: how(tensors[i])


@st.composite
def graphs(draw, kinds):
    """A graph that runs on its image and has no more than a few weights; float64."""
    channels = draw(st.integers(1, 2))
    size = draw(st.tuples(st.integers(2, 4), st.integers(3, 5)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    tensors = [torch.zeros(1, channels, *size).double()]
    steps, layers = [], nn.ModuleList()
    for _ in range(draw(st.integers(3, 8))):
        kind = draw(st.sampled_from([k for k in kinds if k is not again or len(layers)]))
        more = nn.ModuleList(layers)
        step = kind(draw, tensors, more)
        more.double()
        try:
            new = step([t.clone() for t in tensors])
        except (RuntimeError, IndexError):  # shapes that do not fit
            continue
        if parameters(more) <= SIGNS and 0 < new.numel() <= 60:
            layers = more
            steps.append(step)
            tensors.append(new)
    for parameter in layers.parameters():
        value = torch.rand(parameter.shape, generator=random, dtype=torch.float64) + 0.5
        parameter.data.copy_(value if draw(st.booleans()) else value.mean())
    image = torch.randn(1, channels, *size, generator=random, dtype=torch.float64)
    return Graph(steps, layers), image


def rectified(draw, tensors, layers):
    """A new layer and its ReLU: open half of the time."""
    step, inplace = conv(draw, tensors, layers), draw(st.booleans())
    return lambda tensors: F.relu(step(tensors), inplace)


def shortcut(draw, tensors, layers, before=torch.Tensor.clone):
    """A tensor and a new layer of its own."""
    i, alpha = pick(draw, range(len(tensors))), draw(st.sampled_from([1, -1, 2]))
    channels, mode = tensors[i].shape[1], draw(st.sampled_from(["zeros", "circular"]))
    layer = nn.Conv2d(
        channels, channels, (1, 3), padding=(0, 1), groups=channels, padding_mode=mode
    )
    layers.append(layer)
    return lambda tensors: torch.add(tensors[i], layer(before(tensors[i])), alpha=alpha)


EXACT = [conv, rectified, rectified, shortcut, cat, part]
ANY = [*EXACT, partial(shortcut, before=F.relu), relu, add, move, constant, again, again]
TWICE = [conv, rectified, again, again]


def closed_form(case, weights):
    model, image = case
    return pilcro.closed_form(model, image.shape[2:], channels=image.shape[1], weights=weights)


def assert_equal(found, want):
    torch.testing.assert_close(found.importance, want, rtol=1e-6, atol=1e-9 * float(want.max()))


OPTIONS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=150, **OPTIONS)
@given(graphs(ANY) | graphs(TWICE))
def test_exact_is_what_brute_force_finds(case):
    """Whatever the graph: views, in-place changes, layers used twice, tied weights and biases."""
    found = closed_form(case, "drawn")
    event(f"exact: {found.exact}")
    if found.exact:
        assert_equal(found, brute_force(*case))


@settings(max_examples=60, **OPTIONS)
@given(graphs(EXACT), st.sampled_from(["expected", "drawn"]))
def test_graphs_that_ought_to_be_exact_are(case, weights):
    """Branches, strides, groups, dilation, every padding, residuals with weights of their own."""
    if weights == "expected":  # all weights of a layer are one number then, but for their signs
        for parameter in case[0].parameters():
            parameter.data.fill_(float(parameter.detach().mean()))
    found = closed_form(case, weights)
    assert found.reasons == ()
    assert_equal(found, brute_force(*case))
