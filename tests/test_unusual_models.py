"""Models that are compiled, hooked, parametrised or change tensors in place: the right result, or
one clear error, and the model as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import pilcro
from pilcro import closed_form, on_data
from pilcro.second_moments import UnsupportedOperation


class Net(nn.Module):
    """``function`` is handed the image and a layer."""

    def __init__(self, function, layer=None):
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x):
        return self.function(x, self.layer)


def chain():
    return pilcro.draw_network(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten())
    )


@pytest.fixture
def images(generator):
    return torch.randn(2, 2, 7, 7, generator=generator)


# --- compiled ------------------------------------------------------------------------------------


def whole(net):
    return torch.compile(net, backend="eager")


def inside(net):
    net[2] = torch.compile(net[2], backend="eager")
    return net


def itself(net):
    net.compile(backend="eager")
    return net


def function(net):
    return Net(torch.compile(lambda x, layer: layer(x), backend="eager"), net)


@pytest.mark.parametrize("compiled", [whole, inside, itself, function])
def test_compiled_models_run_as_they_are_written(compiled, images):
    plain, net = chain(), compiled(chain())
    for weights in ("expected", "drawn"):
        found = closed_form(net, 7, channels=2, weights=weights)
        assert found.exact, found.reasons
        want = closed_form(plain, 7, channels=2, weights=weights)
        assert torch.equal(found.importance, want.importance)
    torch.testing.assert_close(on_data(net, images).importance, on_data(plain, images).importance)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    def again(x, layer):
        return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant)

    net = Net(again, chain())
    if reentrant:
        with (
            pytest.warns(UserWarning, match="Gradients"),
            pytest.raises(ValueError, match="no gradient"),
        ):
            closed_form(net, 7, channels=2)
    else:
        found = closed_form(net, 7, channels=2).importance
        torch.testing.assert_close(found, closed_form(net.layer, 7, channels=2).importance)


# --- hooks ---------------------------------------------------------------------------------------


def test_a_forward_hook_is_part_of_the_model():
    net = chain()
    once = closed_form(net, 7, channels=2)
    net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    net[2].register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))
    found = closed_form(net, 7, channels=2)
    torch.testing.assert_close(found.importance, 36 * once.importance)
    assert found.exact


def test_backward_hooks_see_nothing_and_change_nothing():
    net = chain()
    want = closed_form(net, 7, channels=2).importance
    seen = []
    net[0].register_full_backward_hook(lambda *arguments: seen.append(1))
    net[2].register_full_backward_pre_hook(lambda *arguments: seen.append(1))
    assert torch.equal(closed_form(net, 7, channels=2).importance, want)
    assert not seen


@pytest.mark.parametrize("use", ["closed_form", "on_data"])
def test_a_hook_that_raises_is_heard_and_leaves_the_model(use, images):
    """With its own error: it is the user's."""

    class Boom(Exception):
        pass

    def hook(*arguments):
        raise Boom

    net = nn.Sequential(nn.BatchNorm2d(2), *chain())
    handle = net[-1].register_forward_hook(hook)
    before, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with pytest.raises(Boom):
        closed_form(net, 7, channels=2) if use == "closed_form" else on_data(net, images)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert net.training
    assert list(net[-1]._forward_hooks) == [handle.id]


def test_a_hook_on_a_tensor_is_named():
    net = chain()
    net[0].register_forward_hook(lambda module, inputs, output: output.register_hook(print))
    with pytest.raises(UnsupportedOperation, match=r"register_hook, called in module '0'"):
        closed_form(net, 7, channels=2)


# --- parametrised --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
@pytest.mark.parametrize("weights", ["expected", "drawn"])
def test_parametrised_weights_are_what_they_compute(name, weights):
    """In evaluation mode spectral norm leaves its vectors alone, so that there is one answer."""
    net = chain().eval()
    getattr(parametrizations, name)(net[0])
    found = closed_form(net, 7, channels=2, weights=weights)
    assert [reason.split(":")[0] for reason in found.reasons] == ["0"]
    assert "computed" in found.reasons[0]
    parametrize.remove_parametrizations(net[0], "weight")
    want = closed_form(net, 7, channels=2, weights=weights)
    torch.testing.assert_close(found.importance, want.importance)


@pytest.mark.parametrize("use", ["closed_form", "on_data"])
def test_spectral_norm_is_left_where_it_was(use, images):
    """In train mode each forward pass moves its vectors."""
    net = chain().train()
    parametrizations.spectral_norm(net[0])
    before = copy.deepcopy(net.state_dict())
    closed_form(net, 7, channels=2) if use == "closed_form" else on_data(net, images)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


# --- tensors that share memory -------------------------------------------------------------------


def alias_then_relu(alias):
    def forward(x, layer):
        y = layer(x)
        z = alias(y)
        F.relu_(z)
        return y

    return forward


def relu_behind_its_view(x, layer):
    y = layer(x)
    z = y.view(1, -1)
    F.relu_(y)
    return z


ALIASES = {
    "view": alias_then_relu(lambda y: y.view(1, -1)),
    "part": alias_then_relu(lambda y: y[:, :1]),
    "contiguous": alias_then_relu(lambda y: y.contiguous()),
    "to": alias_then_relu(lambda y: y.to(torch.float32)),
    "float": alias_then_relu(lambda y: y.float()),
    "the tensor behind a view": relu_behind_its_view,
}


@pytest.mark.parametrize("name", ALIASES)
def test_in_place_changes_of_shared_memory_are_never_called_exact(name):
    found = closed_form(Net(ALIASES[name], nn.Conv2d(2, 2, 3)), 5, channels=2)
    assert not found.exact
    assert "in-place change of a view" in found.reasons[0]


def test_dropout_in_evaluation_mode_is_the_same_tensor():
    net = Net(alias_then_relu(lambda y: F.dropout(y, training=False)), nn.Conv2d(2, 2, 3))
    half = closed_form(net, 5, channels=2)
    assert half.exact
    whole = closed_form(net.layer, 5, channels=2)
    torch.testing.assert_close(2 * half.importance, whole.importance)


@pytest.mark.parametrize(
    "change", [lambda x: F.silu(x, inplace=True), lambda x: x.__iadd__(x.mean())]
)
def test_with_covariances_an_in_place_change_without_a_rule_is_not_lost(change):
    def forward(x, layer):
        change(x)
        return F.avg_pool2d(x, 2)

    pairs, diagonal = (
        closed_form(Net(forward), 4, channels=32, covariances=c) for c in (True, False)
    )
    torch.testing.assert_close(pairs.importance, diagonal.importance)


# --- constants -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "minus", [lambda x: 2 - x, lambda x: torch.sub(2, x), lambda x: -1 * x + 2]
)
def test_a_number_minus_a_tensor(minus):
    """relu(2 - x) is open as often as a standard normal number is below 2."""
    found = closed_form(Net(lambda x, layer: F.relu(minus(x))), 3, channels=1).importance
    often = torch.special.ndtr(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(found.sum(), often)


@pytest.mark.parametrize("operation", [lambda x: x * 1j, lambda x: x + 1j, lambda x: x / 2j])
def test_complex_constants_are_refused(operation):
    with pytest.raises(UnsupportedOperation, match=r"complex64 numbers, used in module 'Net'"):
        closed_form(Net(lambda x, layer: operation(x)), 3, channels=1)


def test_complex_images_are_refused(images):
    with pytest.raises(TypeError, match=r"floating point, got torch\.complex64"):
        on_data(chain(), images.to(torch.complex64))


def test_layer_norm_takes_out_what_its_features_share_and_no_more():
    """A parameter of mean zero over the features stays, one that they all have goes."""
    shift = torch.tensor([3.0, -3.0]) + 5

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(shift)

        def forward(self, x):
            return F.layer_norm(torch.flatten(x, 1) + self.shift, [2], eps=0.0)

    found = closed_form(Shifted(), (1, 2), channels=1, weights="drawn").importance
    torch.testing.assert_close(found, torch.full((1, 2), 0.5 / (1 + 9)).double())


def test_means_of_pooled_maps_are_joined_by_blocks():
    """Behind a pool a mean is one number for all channels, as the moments are."""

    class Net(nn.Module):
        def __init__(self, *widths):
            super().__init__()
            convolutions = [nn.Conv2d(1, width, 3, padding=1, bias=False) for width in widths]
            self.branches = nn.ModuleList(convolutions)
            for convolution in convolutions:  # the same mean square, however many there are
                nn.init.constant_(convolution.weight, 0.5)

        def forward(self, x):
            branches = [F.relu(branch(x)) for branch in self.branches]
            pooled = [F.avg_pool2d(F.max_pool2d(branch, 2), 2) for branch in branches]
            return F.relu(torch.cat(pooled, 1))

    one, two = (closed_form(Net(*w), 8, channels=1, covariances=False) for w in ([12], [4, 8]))
    torch.testing.assert_close(two.importance, one.importance)
