"""The ¶-objective against finite differences, slow derivations and every way to misuse it."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net, noise, seeded
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from pilcro import PObjective, UnsupportedOperation, draw_network
from pilcro.double_backward import REPLACED
from pilcro.objective import backprop, evenly_spread, twin

BOTH = pytest.mark.parametrize("estimator", ["backprop", "twin"])


def drawn(*layers, seed=0):
    """A network in float64 whose batch norms are not the identity."""

    def build():
        net = nn.Sequential(*copy.deepcopy(layers))
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (*module.parameters(), module.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5)
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
        return net

    return draw_network(build, seeded(seed)).double()


def penalty(net, images, weight=1.0, seed=0, **options):
    options = {"fraction": 1.0, **options}
    return PObjective(weight, generator=seeded(seed), **options)(net, images)


def gradients(value, net):
    found = torch.autograd.grad(
        value, [p for p in net.parameters() if p.requires_grad], materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in found])


def relu_net(outputs=3, activation=None):
    return drawn(
        nn.Conv2d(2, 4, 3, padding=1),
        activation or nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2),
        activation or nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3 * 3 * 2, outputs),
    )


def norm_net():
    return drawn(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 3, stride=2),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3 * 3 * 2, 3),
    )


@pytest.fixture
def images():
    return noise(5, 2, 8, 6)


# --- the gradient is the derivative of the value -------------------------------------------------


class Attends(nn.Module):
    """Pixels are tokens; both faces of PyTorch's attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(2, 4, 2, stride=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + F.scaled_dot_product_attention(x, 2 * x, x)
        return self.head(self.norm(x)).mean(1)


SMOOTH = {
    "tanh": lambda: relu_net(activation=nn.Tanh()),
    "norms": lambda: drawn(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.GELU(),
        nn.Conv2d(3, 2, 3, stride=2),
        nn.BatchNorm2d(2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
    ),
    "attention": lambda: draw_network(Attends, seeded(1)).double(),
}


def agrees_with_finite_differences(net, images, h, directions=2, **options):
    """For every parameter, along random directions."""
    value = penalty(net, images, **options)
    assert value.dtype == torch.float64
    names, tensors = zip(*net.named_parameters(), strict=True)
    found = torch.autograd.grad(value, tensors, materialize_grads=True)
    scale = max(float(gradient.abs().max()) for gradient in found)
    assert scale > 1e-3 * value.item()
    for name, tensor, gradient in zip(names, tensors, found, strict=True):
        for seed in range(directions):
            direction = noise(*tensor.shape, seed=seed)
            before, sides = tensor.detach().clone(), []
            for step in (h, -h):
                tensor.data.copy_(before + step * direction)
                with torch.no_grad():
                    sides.append(penalty(net, images, **options).item())
            tensor.data.copy_(before)
            slope = (sides[0] - sides[1]) / (2 * h)
            exact = float((gradient * direction).sum())
            assert slope == pytest.approx(exact, rel=2e-5, abs=1e-6 * scale), name


@pytest.mark.parametrize("form", ["log", "mean", "raw"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("projections", [1, 3])
@pytest.mark.parametrize("build", SMOOTH.values(), ids=SMOOTH)
def test_gradient_of_backprop(build, projections, training, form, images, as_a_user):
    net = build().train(training)
    options = {"form": form, "projections": projections, "fraction": 0.5}
    agrees_with_finite_differences(net, images, 1e-5, **options)


@pytest.mark.parametrize("form", ["log", "mean", "raw"])
@pytest.mark.parametrize(
    ("build", "training"),
    [(SMOOTH["tanh"], True), (SMOOTH["norms"], False), (norm_net, True), (norm_net, False)],
)
def test_gradient_of_the_twin(build, training, form, images, as_a_user):
    net = build().train(training)
    agrees_with_finite_differences(net, images, 1e-5, 1, form=form, estimator="twin")


# --- slow and independent ------------------------------------------------------------------------


def laplacian_matrix(height, width):
    """Row p: the sum over neighbours inside of (theirs minus mine)."""
    matrix = torch.zeros(height * width, height * width, dtype=torch.float64)
    for i, j in itertools.product(range(height), range(width)):
        for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            if 0 <= a < height and 0 <= b < width:
                matrix[i * width + j, a * width + b] += 1
                matrix[i * width + j, i * width + j] -= 1
    return matrix


def pooling_matrix(height, width):
    matrix = torch.zeros((height // 2) * (width // 2), height * width, dtype=torch.float64)
    for i, j in itertools.product(range(height // 2 * 2), range(width // 2 * 2)):
        matrix[(i // 2) * (width // 2) + j // 2, i * width + j] = 0.25
    return matrix


def slow_curvature(importance, form, levels):
    height, width = importance.shape
    field = importance.flatten()
    if form == "raw":
        field = field * height * width
    else:
        field = field / (field.sum() / (height * width))
        field = field.log() if form == "log" else field
    total = 0
    for _ in range(levels):
        total = total + (laplacian_matrix(height, width) @ field).pow(2).sum() / (height * width)
        field = pooling_matrix(height, width) @ field
        height, width = height // 2, width // 2
    return total


def full_jacobian(net, images):
    """d f[n, k] / d x[m, c, p, q], which can be differentiated: one row after the other."""
    x = images.clone().requires_grad_()
    output = net(x).flatten(1)
    rows = [torch.autograd.grad(o, x, create_graph=True)[0] for o in output.flatten()]
    return torch.stack(rows).view(*output.shape, *x.shape)


def on_diagonal(jacobian):
    """(N, K, C, H, W): where the images of a batch do not see each other."""
    return torch.stack([jacobian[n, :, n] for n in range(len(jacobian))])


def same(net, got, want):
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    a, b = gradients(got, net), gradients(want, net)
    assert b.norm() > 1e-3 * want
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))


@pytest.mark.parametrize("form", ["log", "mean", "raw"])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("build", [relu_net, norm_net])
def test_all_projections_against_every_row_of_the_jacobian(build, levels, form, images):
    net = build().eval()
    got = penalty(net, images, 0.3, form=form, levels=levels, projections=3)
    jacobian = on_diagonal(full_jacobian(net, images))
    importance = jacobian.pow(2).sum((1, 2)).mean(0) / 3
    same(net, got, 0.3 * slow_curvature(importance, form, levels))


def test_jacrev_finds_the_same_jacobian(images):
    net = relu_net()
    rows = on_diagonal(full_jacobian(net, images))
    for image, row in zip(images, rows, strict=True):
        other = torch.func.jacrev(lambda x: net(x[None])[0])(image)
        torch.testing.assert_close(row, other)


def test_one_output_needs_no_projection(images):
    net = relu_net(outputs=1)
    got = penalty(net, images, fraction=0.4)
    importance = on_diagonal(full_jacobian(net, images[[0, 2]])).pow(2).sum((1, 2)).mean(0)
    same(net, got, slow_curvature(importance, "log", 3))


@pytest.mark.parametrize("projections", [1, 2])
def test_the_images_of_a_batch_see_each_other_in_batch_norm(projections, images, monkeypatch):
    """In train mode the gradient of one image holds the outputs of all."""
    net, v = norm_net().train(), noise(5, 3, projections)
    monkeypatch.setattr("pilcro.objective.unit_vectors", lambda *arguments: v)
    got = penalty(net, images, projections=projections)
    rows = torch.einsum("nki,nkmcpq->imcpq", v, full_jacobian(net, images))
    importance = rows.pow(2).sum(2).mean((0, 1))
    same(net, got, slow_curvature(importance, "log", 3))


@BOTH
def test_a_linear_model_has_a_formula(estimator):
    """f = W x: I = sum of W^2 / K, whatever the images are."""
    outputs, channels, height, width = 3, 2, 5, 4
    net = drawn(nn.Flatten(), nn.Linear(channels * height * width, outputs, bias=False))
    images = noise(2, channels, height, width)
    got = penalty(net, images, 0.1, form="raw", levels=1, projections=outputs, estimator=estimator)
    got.backward()
    weight = net[1].weight.detach().view(outputs, channels, -1)
    laplacian, pixels = laplacian_matrix(height, width), height * width
    field = pixels * weight.square().sum((0, 1)) / outputs
    assert got.item() == pytest.approx(0.1 * float((laplacian @ field).square().sum()) / pixels)
    back = 0.1 * 2 / pixels * laplacian.T @ laplacian @ field
    want = back * pixels * 2 * weight / outputs
    torch.testing.assert_close(net[1].weight.grad.view_as(want), want, rtol=1e-6, atol=1e-9)


def test_the_jacobian_penalty_is_its_sum(images):
    """Half the mean squared Frobenius norm, and K times the sum of the landscape is twice that."""
    for outputs in (1, 4):
        net = relu_net(outputs)
        importance = backprop(net, images, 1.0, outputs, seeded())
        jacobian = on_diagonal(full_jacobian(net, images))
        jacobian_penalty = jacobian.pow(2).sum() / len(images) / 2
        torch.testing.assert_close(outputs * importance.sum(), 2 * jacobian_penalty)


def test_the_twin_is_what_to_expect_of_the_data_at_initialisation(as_a_user):
    """For each fresh network the difference of two maps: its mean is 0 at every pixel."""
    differences, maps, random = [], [], seeded()
    shape = (4, 1, 6, 7)

    def build():
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 12, 4),
        )

    with torch.no_grad():
        for _ in range(400):
            net = draw_network(build, random).double()
            images = torch.randn(*shape, generator=random, dtype=torch.float64)
            maps.append(backprop(net, images, 1.0, 4, random))
            differences.append(maps[-1] - twin(net, torch.Size(shape)))
    difference, mean = torch.stack(differences), torch.stack(maps).mean(0)
    error = difference.std(0) / len(difference) ** 0.5
    assert (error / mean).max() < 0.05  # a gate of 1 instead of 1/2 would be seen
    assert (difference.mean(0) / error).abs().max() < 4


def test_the_twin_looks_at_no_image(images):
    net = norm_net().eval()
    found = [penalty(net, batch, estimator="twin") for batch in (images, 5 + images[:1])]
    assert torch.equal(*found)


def test_weight_levels_and_form_reach_the_curvature(images):
    net = relu_net()
    once = penalty(net, images)
    torch.testing.assert_close(penalty(net, images, 0.25), once / 4)
    assert penalty(net, images, levels=1) < once
    assert penalty(net, images, 0.0) == 0


# --- which images --------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0, 1, exclude_min=True))
def test_evenly_spread(batch, fraction):
    chosen = evenly_spread(batch, fraction)
    assert len(chosen) == math.ceil(batch * fraction)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert chosen[-1] < batch
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert not gaps or max(gaps) - min(gaps) <= 1


NET = relu_net()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from([0.05, 0.25, 0.6, 1.0]))
def test_shards_of_any_size_add_up_to_the_whole_batch(sizes, fraction):
    images = noise(sum(sizes), 2, 8, 6)
    want = backprop(NET, images, fraction, 2, seeded())
    total, before = 0, 0
    for shard in images.split(sizes):
        place = (before, len(images))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pilcro.objective.place_in_batch", lambda *arguments: place)  # noqa: B023
            total = total + backprop(NET, shard, fraction, 2, seeded())
        before += len(shard)
    torch.testing.assert_close(total, want)


def test_the_chosen_images_alone_count(images):
    net = relu_net(outputs=1)
    got = penalty(net, images, fraction=0.4)
    other = images.clone()
    other[[1, 3, 4]] += 1
    assert torch.equal(got, penalty(net, other, fraction=0.4))
    other[2] += 1
    assert not torch.equal(got, penalty(net, other, fraction=0.4))


def test_every_third_call(images):
    net = norm_net()
    one, three = PObjective(0.1, generator=seeded()), PObjective(0.1, every=3, generator=seeded())
    for call in range(7):
        value = three(net, images)
        if call % 3:
            assert value == 0
            assert value.dtype == torch.float64
            assert value.shape == ()
        else:
            torch.testing.assert_close(value, 3 * one(net, images))


def test_projections_and_seeds_differ_between_calls(images):
    net, p_objective = norm_net(), PObjective(generator=seeded())
    assert p_objective(net, images) != p_objective(net, images)
    default, zero = PObjective(), PObjective(generator=seeded(0))
    assert default(net, images) == zero(net, images)
    assert penalty(net, images, seed=1) != penalty(net, images, seed=2)


# --- in a training loop --------------------------------------------------------------------------


def dropout_net():
    return drawn(nn.Conv2d(2, 3, 3), nn.Dropout(0.3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))


@BOTH
def test_a_run_is_resumed_bit_by_bit(estimator, images, tmp_path):
    net = dropout_net()
    whole = PObjective(every=2, estimator=estimator, generator=seeded(5))
    for _ in range(3):
        whole(net, images)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    rest = [whole(net, images) for _ in range(4)]
    resumed = PObjective(every=2, estimator=estimator)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert rest == [resumed(net, images) for _ in range(4)]


@BOTH
def test_gradients_add_to_those_of_the_task_and_of_other_batches(estimator, images):
    net, parts = norm_net(), images.split([3, 2])
    want = 0
    for part in parts:
        want = want + gradients(penalty(net, part, estimator=estimator), net)
        want = want + gradients(net(part).square().mean(), net)
    for part in parts:
        loss = net(part).square().mean() + penalty(net, part, estimator=estimator)
        loss.backward()
    got = torch.cat([p.grad.flatten() for p in net.parameters()])
    torch.testing.assert_close(got, want)


@BOTH
def test_frozen_parameters(estimator, images):
    net = norm_net()
    value = penalty(net, images, estimator=estimator)
    want = gradients(value, net[3])
    for module in (net[0], net[1], net[7]):
        module.requires_grad_(False)
    again = penalty(net, images, estimator=estimator)
    again.backward()
    assert torch.equal(again, value)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in net[3].parameters()]), want)
    assert all(p.grad is None for p in net[0].parameters())
    net.requires_grad_(False)
    frozen = penalty(net, images, estimator=estimator)
    torch.testing.assert_close(frozen.detach(), value.detach())
    net(images).sum().add(frozen).requires_grad_().backward()
    assert all(p.grad is None for p in net[1].parameters())


@BOTH
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_gradients_there_is_a_value(estimator, guard, images):
    net = norm_net()
    want = penalty(net, images, estimator=estimator)
    with guard():
        got = penalty(net, images.clone(), estimator=estimator)
        assert not backprop(net, images.clone(), 1.0, 1, seeded()).requires_grad  # nor its cost
    torch.testing.assert_close(got, want.detach())
    assert not got.requires_grad


def test_images_get_no_gradient(images):
    images.requires_grad_()
    before = images.detach().clone()
    penalty(relu_net(), images).backward()
    assert images.grad is None
    assert torch.equal(images, before)


@BOTH
def test_autocast(estimator, images):
    net, images = norm_net().float(), images.float()
    want = penalty(net, images, estimator=estimator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = penalty(net, images, estimator=estimator)
        importance = backprop(net, images, 1.0, 1, seeded())
    assert got.dtype == importance.dtype == torch.float32
    assert got.item() == pytest.approx(want.item(), rel=0.2)
    assert estimator == "twin" or got != want  # the network did run in bfloat16
    assert gradients(got, net).isfinite().all()


@BOTH
def test_a_bfloat16_model(estimator, images):
    net = norm_net().float()
    want = penalty(net, images.float(), estimator=estimator)
    got = penalty(net.bfloat16(), images.bfloat16(), estimator=estimator)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(want.item(), rel=0.2)


@BOTH
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model(estimator, backend, images):
    net = norm_net()
    want = penalty(net, images, estimator=estimator)
    compiled = torch.compile(net, backend=backend)
    compiled(images).sum().backward()
    net.zero_grad()
    statistics = copy.deepcopy(net.state_dict())
    got = penalty(compiled, images, estimator=estimator)
    got.backward()
    assert torch.equal(got, want)
    torch.testing.assert_close(net[3].weight.grad, gradients(want, net[3])[:-3].view(3, 4, 3, 3))
    assert all(torch.equal(statistics[name], b) for name, b in net.named_buffers())


@BOTH
def test_channels_last(estimator, images):
    net = norm_net()
    want = penalty(net, images, estimator=estimator)
    before = gradients(want, net)
    net, images = (it.to(memory_format=torch.channels_last) for it in (net, images))
    got = penalty(net, images, estimator=estimator)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got, net), before)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: nn.DataParallel(torch.compile(net))])
def test_wrapped_models(wrap, images):
    net = norm_net()
    assert torch.equal(penalty(wrap(net), images), penalty(net, images))


# --- networks from elsewhere ---------------------------------------------------------------------


class WrittenOut(nn.Module):
    def forward(self, x):
        return ((x + 3) / 6).clamp(0, 1)


def plainly(net, images, monkeypatch):
    """With PyTorch's own double backward of everything."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, WrittenOut())
    with monkeypatch.context() as patch:
        for function in list(REPLACED):
            patch.delitem(REPLACED, function)
        value = penalty(net, images)
    return value, gradients(value, net)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5"])
def test_networks_of_torchvision(name, training, monkeypatch):
    net = draw_network(lambda: torchvision.models.get_model(name, num_classes=4, weights=None))
    net, images = net.double().train(training), noise(3, 3, 64, 64)
    if training:  # running statistics of use
        net(images)
    value = penalty(net, images)
    want, gradient = plainly(net, images, monkeypatch)
    torch.testing.assert_close(value, want)
    found = gradients(value, net)
    torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-8 * float(gradient.abs().max()))
    assert gradient.norm() > 1e-3


def transformer():
    net = torchvision.models.VisionTransformer(16, 4, 1, 2, 8, 16, num_classes=3)
    nn.init.normal_(net.heads.head.weight)  # torchvision begins with zeros
    return net


@pytest.mark.parametrize("training", [True, False])
def test_a_vision_transformer(training):
    net, images = draw_network(transformer).double().train(training), noise(3, 3, 16, 16)
    got = penalty(net, images, projections=3)
    importance = on_diagonal(full_jacobian_of_attention(net, images)).pow(2).sum((1, 2)).mean(0)
    same(net, got, slow_curvature(importance / 3, "log", 3))


def full_jacobian_of_attention(net, images):
    with sdpa_kernel(SDPBackend.MATH):
        return full_jacobian(net, images)


@BOTH
def test_dropout_is_decided_by_the_generator(estimator, images):
    net = dropout_net()
    before = torch.get_rng_state()
    one, same_seed, two = (penalty(net, images, seed=s, estimator=estimator) for s in (1, 1, 2))
    assert torch.equal(one, same_seed)
    assert (one != two) == (estimator == "backprop")
    assert torch.equal(before, torch.get_rng_state())
    one.backward()
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_is_on_in_train_mode(images):
    net = dropout_net()
    drops = [penalty(net.train(), images, seed=seed, projections=3) for seed in range(2)]
    keeps = [penalty(net.eval(), images, seed=seed, projections=3) for seed in range(2)]
    assert not torch.isclose(*drops)
    torch.testing.assert_close(*keeps)


# --- checkpointing -------------------------------------------------------------------------------


class Recomputed(nn.Module):
    def __init__(self, inner, again=True, reentrant=False):
        super().__init__()
        self.inner, self.again, self.reentrant = inner, again, reentrant

    def forward(self, x):
        if not self.again:
            return self.inner(x)
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("training", [True, False])
def test_checkpointed_blocks(training, images):
    net = norm_net()
    net.insert(6, nn.Dropout(0.3))
    inner, head = net[:7], net[7:]
    net.train(training)
    found = []
    for again in (False, True):
        value = penalty(nn.Sequential(Recomputed(inner, again), head), images)
        found.append((value, gradients(value, net)))
    torch.testing.assert_close(found[0], found[1])


def test_checkpointed_attention_takes_the_math_kernel_in_the_whole_step(images):
    """The backward pass of the step runs it again, outside of our reach: it fails aloud."""
    plain, again = (
        nn.Sequential(Recomputed(SMOOTH["attention"](), again), nn.Tanh())
        for again in (False, True)
    )
    want = gradients(penalty(plain, images), plain)
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        gradients(penalty(again, images), again)
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(gradients(penalty(again, images), again), want)


def test_a_reentrant_checkpoint_is_refused(images):
    net = nn.Sequential(Recomputed(relu_net(), reentrant=True))
    net[0].inner[0].register_forward_pre_hook(lambda module, inputs: None)
    with pytest.raises(ValueError, match="use_reentrant=True"):
        penalty(net, images)


# --- the model is left as it was found -----------------------------------------------------------


class Boom(Exception):
    pass


class Breaks(nn.Module):
    def forward(self, x):
        raise Boom


class BreaksBackwards(nn.Module):
    def forward(self, x):
        def hook(gradient):
            raise Boom

        x.register_hook(hook)
        return x


def snapshot(net):
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training)
        for m in net.modules()
    ]
    return {
        "state": copy.deepcopy(net.state_dict()),
        "hooks": hooks,
        "attributes": [sorted(vars(m)) for m in net.modules()],
        "gradients": [p.grad for p in net.parameters()],
        "values": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "identities": [id(t) for t in (*net.parameters(), *net.buffers())],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "random": torch.get_rng_state(),
        "mode": torch.is_grad_enabled(),
    }


def unchanged(before, after):
    for key in ("hooks", "attributes", "identities", "requires_grad", "mode"):
        assert before[key] == after[key], key
    assert list(before["state"]) == list(after["state"])
    for name, tensor in before["state"].items():
        assert torch.equal(tensor, after["state"][name]), name
    for a, b, value in zip(before["gradients"], after["gradients"], before["values"], strict=True):
        assert a is b
        assert a is None or torch.equal(value, b)
    assert torch.equal(before["random"], after["random"])


@BOTH
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("trouble", [None, Breaks, BreaksBackwards, "not finite"])
def test_the_model_is_untouched(estimator, training, trouble, images):
    net = norm_net()
    if isinstance(trouble, type):
        net.insert(4, trouble())
    elif trouble:
        net[3].weight.data[0, 0, 0, 0] = float("inf")
    net.train(training)
    net[0].eval()
    net[7].requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    net[1].register_forward_hook(lambda module, inputs, output: None)
    before = snapshot(net)
    if trouble is None:
        value = penalty(net, images, estimator=estimator)
    else:
        with pytest.raises((Boom, FloatingPointError, UnsupportedOperation)):
            penalty(net, images, estimator=estimator)
    unchanged(before, snapshot(net))
    if trouble is None:
        gradients(value, net)
        unchanged(before, snapshot(net))


def test_running_statistics_stay_in_the_backward_pass(images):
    net = norm_net().train()
    before = copy.deepcopy(net.state_dict())
    penalty(net, images).backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


# --- nothing wrong in silence --------------------------------------------------------------------


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, out):
        return 3 * ctx.saved_tensors[0] ** 2 * out


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_what_differentiates_once_is_heard(place, images):
    layers = {
        "first": lambda x, a, b: b(a(Cube.apply(x))),
        "middle": lambda x, a, b: b(Cube.apply(a(x))),
        "last": lambda x, a, b: Cube.apply(b(a(x))),
    }
    net = Net(layers[place], nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3)).double()
    with pytest.raises(RuntimeError, match="marked with @once_differentiable"):
        penalty(net, images).backward()


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_create_graph_is_refused_or_right(images):
    with pytest.raises(RuntimeError, match="not with create_graph=True"):
        penalty(norm_net().train(), images).backward(create_graph=True)
    net = relu_net(activation=nn.Tanh())
    (first,) = torch.autograd.grad(penalty(net, images), net[0].weight, create_graph=True)
    direction = noise(*first.shape)
    (found,) = torch.autograd.grad((first * direction).sum(), net[0].weight)
    sides = []
    for h in (1e-5, -1e-5):
        other = copy.deepcopy(net)
        other[0].weight.data += h * direction
        sides.append(torch.autograd.grad(penalty(other, images), other[0].weight)[0])
    want = (sides[0] - sides[1]) / 2e-5
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_a_pixel_that_nothing_reads_is_left_alone(images):
    """Importance 0 has log -inf: the floor keeps the penalty and its gradient finite."""
    net = drawn(nn.Conv2d(2, 3, 1, stride=2), nn.Tanh())
    value = penalty(net, images)
    assert value.isfinite()
    assert gradients(value, net).isfinite().all()


# --- one clear error each ------------------------------------------------------------------------

X = torch.ones(2, 2, 8, 6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight": -1}, ValueError, "weight must be a finite number of at least 0, got -1"),
        ({"weight": math.inf}, ValueError, "weight must be a finite number"),
        ({"weight": math.nan}, ValueError, "weight must be a finite number"),
        ({"weight": "0.1"}, TypeError, "weight must be a number, got '0.1'"),
        ({"weight": None}, TypeError, "weight must be a number, got None"),
        ({"weight": True}, TypeError, "weight must be a number, got True"),
        ({"form": "square"}, ValueError, "form must be one of log, mean, raw; got 'square'"),
        ({"form": None}, ValueError, "form must be one of"),
        ({"estimator": "tween"}, ValueError, "estimator must be one of backprop, twin; got"),
        ({"fraction": 0}, ValueError, r"fraction must lie in \(0, 1\], got 0"),
        ({"fraction": 1.5}, ValueError, r"fraction must lie in \(0, 1\], got 1.5"),
        ({"fraction": math.nan}, ValueError, r"fraction must lie in \(0, 1\], got nan"),
        ({"fraction": "a"}, TypeError, "fraction must be a number, got 'a'"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 1.5}, TypeError, "every must be an int, got 1.5"),
        ({"every": True}, TypeError, "every must be an int, got True"),
        ({"levels": 0}, ValueError, "levels must be at least 1, got 0"),
        ({"levels": 2.0}, TypeError, "levels must be an int, got 2.0"),
        ({"projections": 0}, ValueError, "projections must be at least 1, got 0"),
        ({"projections": None}, TypeError, "projections must be an int, got None"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator, got 3"),
    ],
)
def test_settings_out_of_range(options, error, message, as_a_user):
    with pytest.raises(error, match=message):
        PObjective(**options)


def test_whole_numbers_are_numbers(as_a_user):
    assert PObjective(1, fraction=1)(relu_net().float(), X).isfinite()


@BOTH
@pytest.mark.parametrize(
    ("net", "images", "error", "message"),
    [
        ("net", X, TypeError, "model must be a torch.nn.Module, got str"),
        (relu_net().float(), X[0], ValueError, r"images must be \(batch.*got \(2, 8, 6\)"),
        (relu_net().float(), X[:0], ValueError, "no empty dimension"),
        (relu_net().float(), X.int(), TypeError, "floating point, got torch.int32"),
        (relu_net().float(), X / 0, ValueError, "images must be finite"),
        (relu_net().float(), X * math.nan, ValueError, "images must be finite"),
        (relu_net().float(), [X], TypeError, "images must be tensors, got list"),
        (relu_net().float(), X[:, :1], ValueError, r"failed on images of shape \(\d, 1, 8, 6\)"),
        (nn.Conv2d(2, 1, 1), X[..., :3], ValueError, "levels=3 needs a map of at least 4 pixels"),
        (Net(lambda x: (x, x)), X, TypeError, "must return one tensor, got tuple"),
        (Net(lambda x: {"out": x}), X, TypeError, "must return one tensor, got dict"),
    ],
)
def test_refused_calls(estimator, net, images, error, message, as_a_user):
    with pytest.raises(error, match=message):
        PObjective(estimator=estimator)(net, images)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.detach(), "carries no gradient to the images"),
        (lambda x: x.sum(), r"must return a tensor \(batch, ...\)"),
        (lambda x: x[:1], r"must return a tensor \(batch, ...\)"),
    ],
)
def test_refused_outputs(function, message):
    with pytest.raises(ValueError, match=message):
        penalty(Net(function), X)


@BOTH
@pytest.mark.parametrize("form", ["log", "mean"])
def test_a_head_of_zeros_has_no_landscape(estimator, form, images):
    net = relu_net()
    nn.init.zeros_(net[-1].weight)
    with pytest.raises(ValueError, match="zero at every pixel"):
        penalty(net, images, estimator=estimator, form=form)


def test_the_twin_names_what_it_has_no_rule_for(images):
    with pytest.raises(UnsupportedOperation, match="cumprod"):
        penalty(Net(lambda x: x.cumprod(1)), images, estimator="twin")


@BOTH
@pytest.mark.parametrize("form", ["log", "mean", "raw"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite(estimator, form, bad, images):
    net = relu_net()
    with torch.no_grad():
        net[-1].weight[0, 0] = bad
    p_objective = PObjective(estimator=estimator, form=form)
    with pytest.raises(FloatingPointError, match=r"call 1 of the ¶-objective.*weights have diverg"):
        p_objective(net, images)


@BOTH
@pytest.mark.parametrize(("form", "size"), [("raw", 1e12), ("log", 1e18), ("mean", 1e18)])
def test_overflow_is_not_a_flat_landscape(estimator, form, size, images):
    """Each pixel may be finite, and their mean or the curvature not."""
    head = drawn(nn.Flatten(), nn.Linear(96, 3)).float()
    with torch.no_grad():
        head[1].weight.fill_(size).mul_(torch.linspace(0.5, 5, 96))
    options = {"form": form, "projections": 3, "estimator": estimator}
    importance = PObjective(**options).landscape(head, images.float(), None)
    assert importance.isfinite().all()
    with pytest.raises(FloatingPointError, match="not finite"):
        penalty(head, images.float(), **options)


def test_the_call_that_failed_is_named(images):
    net, p_objective = relu_net(), PObjective()
    p_objective(net, images)
    nn.init.constant_(net[-1].weight, math.nan)
    with pytest.raises(FloatingPointError, match="call 2 of"):
        p_objective(net, images)
