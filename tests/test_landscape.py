"""Landscapes: the summary numbers, sampling, data, and every error a user can make."""

import copy

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import pilcro
from pilcro import Landscape, closed_form, draw_network, monte_carlo, on_data


def landscape(values):
    return Landscape(torch.as_tensor(values, dtype=torch.float64), exact=True)


def small_net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(4 * 30, 3),
    )


@pytest.fixture
def net(generator):
    return draw_network(small_net, generator)


@pytest.fixture
def images(generator):
    return torch.randn(6, 2, 5, 6, generator=generator)


# --- summary numbers -----------------------------------------------------------------------------


def test_a_flat_landscape():
    flat = landscape(torch.full((32, 24), 3.0))
    assert flat.summary() == pytest.approx(
        {
            "mean": 3,
            "coverage": 1,
            "centre_bias": 1,
            "tilt_vertical": 0,
            "tilt_horizontal": 0,
            "periodicity_2": 0,
            "periodicity_4": 0,
            "periodicity_8": 0,
            "roughness": 0,
        }
    )
    assert flat.log.abs().max() == 0


def test_coverage_counts_the_pixels_in_use():
    half = torch.zeros(8, 8)
    half[:4] = 5
    assert landscape(half).coverage == pytest.approx(0.5)


def test_centre_bias():
    values = torch.ones(16, 16)
    values[4:12, 4:12] = 6  # the central quarter of the area
    assert landscape(values).centre_bias == pytest.approx(6)
    values[2:14, 2:14] = 6  # a border two pixels wide is the outer ring
    assert landscape(values).centre_bias == pytest.approx(6)
    values[1] = 60  # one row of the ring: it enters the ring's mean
    assert landscape(values).centre_bias == pytest.approx(6 / ((96 + 16 * 60) / 112))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_tiny_maps_have_summaries(size):
    flat = landscape(torch.ones(size, size)).summary()
    assert flat["coverage"] == pytest.approx(1)
    assert flat["roughness"] == 0


def test_coverage_is_the_exponential_of_the_entropy():
    share = torch.tensor([0.25, 0.75])
    entropy = -(share * share.log()).sum()
    assert landscape([[1.0, 3.0]]).coverage == pytest.approx(float(entropy.exp()) / 2)


def test_centre_bias_of_a_wide_image():
    values = torch.ones(16, 32)
    values[4:12, 8:24] = 3
    assert landscape(values).centre_bias == pytest.approx(3)


def test_roughness_uses_the_levels_that_fit():
    row = torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) + 0.1
    expected = pilcro.curvature(row.double(), levels=2)
    assert landscape(row).roughness == pytest.approx(float(expected))


def test_a_landscape_is_float64_on_the_cpu_and_free_of_the_graph():
    given = torch.ones(4, 4, requires_grad=True)
    found = Landscape(given, exact=False, standard_error=given)
    for stored in (found.importance, found.standard_error):
        assert stored.dtype == torch.float64
        assert not stored.requires_grad


def test_tilt_is_per_axis():
    values = torch.ones(6, 8)
    values[0] = 4
    assert landscape(values).tilt == pytest.approx((0.75, 0))
    assert landscape(values.T).tilt == pytest.approx((0, 0.75))


def test_periodicity():
    row = torch.arange(32) % 4 + 1.0
    found = landscape(row.expand(32, 32)).periodicity
    assert set(found) == {2, 4, 8}
    assert found[4] == pytest.approx(1)
    assert found[8] == pytest.approx(1)
    # position modulo 2 explains the even/odd part: means 2 and 3 of variance 1.25
    assert found[2] == pytest.approx(0.25 / 1.25)


def test_roughness_is_the_log_curvature():
    values = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) + 0.1
    found = landscape(values)
    assert found.roughness == pytest.approx(float(pilcro.curvature(found.importance)))


@pytest.mark.parametrize("values", [torch.ones(3), torch.ones(0, 3), torch.ones(1, 3, 3)])
def test_a_landscape_is_a_map(values, as_a_user):
    with pytest.raises(ValueError, match="importance must be a non-empty"):
        Landscape(values, exact=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_importance_is_finite_and_not_negative(bad):
    with pytest.raises(ValueError, match="finite and non-negative"):
        landscape([[1.0, bad]])


def test_no_importance_at_all_has_no_shape():
    dead = landscape(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="zero at every pixel"):
        dead.summary()


# --- on data -------------------------------------------------------------------------------------


def exact_importance(model, images):
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))(images)
    return jacobian.double().square().sum((1, 2)).mean(0) / jacobian.shape[1]


def test_on_data_is_the_mean_squared_jacobian(net, images):
    net.eval()
    got = on_data(net, images, projections=3)  # as many as outputs: a basis, no noise
    want = exact_importance(net, images)
    torch.testing.assert_close(got.importance, want, rtol=1e-5, atol=0)
    torch.testing.assert_close(got.importance.sum(), want.sum(), rtol=1e-5, atol=0)


def test_more_projections_than_outputs_add_nothing(net, images):
    net.eval()
    got, want = (on_data(net, images, projections=n).importance for n in (5, 3))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)


def test_equal_images_have_no_spread():
    model = nn.Conv2d(2, 1, 1)
    same = torch.ones(3, 2, 4, 4)
    assert on_data(model, same, projections=16).standard_error.max() < 1e-7


def test_images_are_left_alone(net, images):
    images.requires_grad_()
    before = images.detach().clone()
    on_data(net.eval(), images)
    assert images.requires_grad
    assert images.grad is None
    assert torch.equal(images, before)


@pytest.mark.parametrize("projections", [1, 2])
def test_fewer_projections_are_unbiased(net, images, projections):
    net.eval()
    many = images[:1].expand(4000, -1, -1, -1)
    got = on_data(net, many, projections=projections)
    want = exact_importance(net, images[:1])
    z = (got.importance - want) / got.standard_error
    assert z.abs().max() < 4
    assert (got.standard_error / want).max() < 0.05


def test_one_tensor_batches_and_loader_give_the_same(net, images):
    net.eval()
    labels = torch.zeros(6)
    pairs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 4)
    results = [
        on_data(net, source, projections=3).importance
        for source in (images, images.split(2), iter(images.split(5)), pairs)
    ]
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-5, atol=0)


def test_a_large_tensor_is_worked_off_in_parts(net, images, monkeypatch):
    net.eval()
    want = on_data(net, images, projections=3)
    monkeypatch.setattr(pilcro.landscape, "BATCH", 4)
    sizes = []
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    got = on_data(net, images, projections=3)
    assert sizes == [4, 2]
    torch.testing.assert_close(got.importance, want.importance, rtol=1e-5, atol=0)
    torch.testing.assert_close(got.standard_error, want.standard_error, rtol=1e-5, atol=0)


def test_standard_error_is_that_of_the_mean_over_images(net, images):
    net.eval()
    got = on_data(net, images, projections=3)
    each = torch.stack([on_data(net, x[None], projections=3).importance for x in images])
    torch.testing.assert_close(got.importance, each.mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(got.standard_error, each.std(0) / 6**0.5, rtol=1e-4, atol=0)


def test_a_single_image_has_no_standard_error(net, images):
    assert on_data(net.eval(), images[:1]).standard_error is None


def test_works_under_no_grad_and_inference_mode(net, images):
    net.eval()
    want = on_data(net, images).importance
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            torch.testing.assert_close(on_data(net, images).importance, want)
            assert closed_form(net, (5, 6), channels=2).importance.shape == (5, 6)


def test_float64_and_non_square(net, images):
    got = on_data(net.double().eval(), images.double(), projections=3).importance
    assert got.dtype == torch.float64
    assert got.shape == (5, 6)


# --- sampling ------------------------------------------------------------------------------------


def test_the_generator_fixes_everything():
    def sample(seed):
        return monte_carlo(
            small_net,
            (5, 6),
            channels=2,
            networks=3,
            generator=torch.Generator().manual_seed(seed),
        ).importance

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))
    assert torch.equal(
        monte_carlo(small_net, (5, 6), channels=2, networks=3).importance,
        monte_carlo(small_net, (5, 6), channels=2, networks=3).importance,
    )


def test_the_standard_error_shrinks_with_the_number_of_networks():
    few, many = (
        monte_carlo(small_net, (5, 6), channels=2, networks=n, device="cpu") for n in (20, 320)
    )
    ratio = (few.standard_error.mean() / many.standard_error.mean()).item()
    assert 2.5 < ratio < 6  # sqrt(320 / 20) is 4
    assert not many.exact
    assert "320 samples" in many.reasons[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_types_are_sampled(dtype):
    found = monte_carlo(lambda: nn.Conv2d(1, 2, 3).to(dtype), 5, channels=1, networks=3)
    assert found.importance.dtype == torch.float64
    assert (found.importance > 0).all()


def test_size_may_be_a_list(net, as_a_user):
    assert closed_form(net, [5, 6], channels=2).importance.shape == (5, 6)


# --- the model is left as it was found -----------------------------------------------------------


class Recomputed(nn.Module):
    """Batch norm inside a checkpoint: its forward runs again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)


def test_running_statistics_stay_under_checkpointing(images):
    model = Recomputed().train()
    before = copy.deepcopy(model.state_dict())
    on_data(model, images)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_only_the_generators_of_the_device_are_seeded(net, images, monkeypatch):
    def refused(seed):
        raise AssertionError("CUDA cards were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refused)
    monkeypatch.setattr(torch.cuda, "manual_seed", refused)
    on_data(net, images)


def test_a_forward_that_draws_leaves_the_global_generator(images):
    class Noisy(nn.Module):
        def forward(self, x):
            return torch.flatten(x, 1) + torch.rand(1)

    before = torch.get_rng_state()
    closed_form(Noisy(), (5, 6), channels=2)
    on_data(Noisy(), images)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_unwrapped(net, images, wrap):
    net.eval()
    want = on_data(net, images).importance
    torch.testing.assert_close(on_data(wrap(net), images).importance, want)
    assert closed_form(wrap(net), (5, 6), channels=2).importance.shape == (5, 6)


def test_autocast_changes_nothing(net, images):
    net.eval()
    want = on_data(net, images).importance, closed_form(net, (5, 6), channels=2).importance
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = on_data(net, images).importance, closed_form(net, (5, 6), channels=2).importance
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_running_out_of_memory_is_not_explained_away(images):
    class Hungry(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        on_data(Hungry(), images)


class Breaks(nn.Module):
    def forward(self, x):
        raise RuntimeError("boom")


def snapshot(model):
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training)
        for m in model.modules()
    ]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    return copy.deepcopy(model.state_dict()), hooks, grads, flags, torch.get_rng_state()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("broken", [True, False])
@pytest.mark.parametrize("use", ["on_data", "closed_form", "monte_carlo"])
def test_the_model_is_untouched(net, images, training, broken, use):
    if broken:
        net.append(Breaks())
    net.train(training)
    next(net.parameters()).grad = torch.ones_like(next(net.parameters()))
    next(net.parameters()).requires_grad_(False)
    state, hooks, grads, flags, rng = snapshot(net)

    calls = {
        "on_data": lambda: on_data(net, images),
        "closed_form": lambda: closed_form(net, (5, 6), channels=2),
        "monte_carlo": lambda: monte_carlo(lambda: net, (5, 6), channels=2, networks=2),
    }
    if broken:
        with pytest.raises(ValueError, match="boom"):
            calls[use]()
    else:
        calls[use]()

    state_, hooks_, grads_, flags_, rng_ = snapshot(net)
    assert list(state) == list(state_)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), state_.values(), strict=True))
    assert hooks == hooks_
    assert flags == flags_
    assert [g is None for g in grads] == [g is None for g in grads_]
    assert torch.equal(grads[0], grads_[0])
    assert torch.equal(rng, rng_), "the global generator moved"


# --- bad input: one clear error each -------------------------------------------------------------


class Returns(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


X = torch.ones(2, 2, 5, 6)


@pytest.mark.parametrize(
    ("model", "images", "error", "message"),
    [
        ("resnet18", X, TypeError, "model must be a torch.nn.Module, got str"),
        (small_net(), X[0], ValueError, r"images must be \(batch.*got \(2, 5, 6\)"),
        (small_net(), X[:0], ValueError, r"no empty dimension, got \(0, 2, 5, 6\)"),
        (small_net(), X[..., :0], ValueError, r"no empty dimension"),
        (small_net(), X[:, :1], ValueError, r"failed on images of shape \(2, 1, 5, 6\)"),
        (small_net(), X[..., :4], ValueError, r"failed on images of shape \(2, 2, 5, 4\)"),
        (small_net(), X / 0, ValueError, "images must be finite"),
        (small_net(), X * float("nan"), ValueError, "images must be finite"),
        (small_net(), X.int(), TypeError, "floating point, got torch.int32"),
        (small_net(), [X.numpy()], TypeError, "images must be tensors, got ndarray"),
        (small_net(), 7, TypeError, "iterable of them, got int"),
        (small_net(), [()], TypeError, "images must be tensors, got tuple"),
        (Returns(lambda x: x[..., :0]), X, ValueError, r"got shape \(2, 2, 5, 0\)"),
        (small_net(), [], ValueError, "images holds no batch"),
        (nn.Conv2d(2, 1, 1, device="meta"), X, ValueError, "the model is on the meta device"),
        (small_net(), X.to("meta"), ValueError, "images are on meta, but the model is on cpu"),
        (Returns(lambda x: (x, x)), X, TypeError, "one tensor, got tuple"),
        (Returns(lambda x: x.sum()), X, ValueError, r"tensor \(batch, ...\)"),
        (Returns(lambda x: x[:1]), X, ValueError, r"for a batch of 2, got shape \(1, 2, 5, 6\)"),
        (Returns(lambda x: x.detach()), X, ValueError, "carries no gradient"),
        (Returns(lambda x: torch.sqrt(x - 1)), X, ValueError, "NaN or infinite"),
    ],
)
def test_on_data_refuses(model, images, error, message, as_a_user):
    with pytest.raises(error, match=message):
        on_data(model, images)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_scripted_models_are_refused():
    model = torch.jit.script(nn.Conv2d(2, 1, 1))
    with pytest.raises(TypeError, match="pass the module that it was made from"):
        closed_form(model, 4, channels=2)


def test_no_grad_inside_the_model_is_named(images):
    class Blind(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                return torch.flatten(x, 1) + 1

    for use in (lambda m: on_data(m, images), lambda m: closed_form(m, (5, 6), channels=2)):
        with pytest.raises(ValueError, match="carries no gradient"):
            use(Blind())


@pytest.mark.parametrize("bad", [0, 42, "seed"])
def test_a_generator_is_a_generator(net, images, bad, as_a_user):
    for use in (
        lambda: on_data(net, images, generator=bad),
        lambda: monte_carlo(small_net, (5, 6), channels=2, generator=bad),
        lambda: draw_network(small_net, bad),
    ):
        with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
            use()


def test_images_of_two_sizes_are_refused():
    model = nn.Conv2d(2, 1, 1)
    with pytest.raises(ValueError, match="one size"):
        on_data(model, [X, X[..., :3]])


@pytest.mark.parametrize("bad", [0, -1])
def test_projections_are_counted(net, images, bad):
    with pytest.raises(ValueError, match="projections must be at least 1"):
        on_data(net, images, projections=bad)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "image_size must be at least 1, got 0"),
        ((5, -6), ValueError, "image_size must be at least 1, got -6"),
        ((5, 6, 7), ValueError, r"image_size must be an int or \(height, width\)"),
        (5.0, TypeError, "image_size must be an int, got 5.0"),
        (True, TypeError, "image_size must be an int"),
        ("5", TypeError, "image_size must be an int, got '5'"),
    ],
)
def test_image_size_is_checked(size, error, message, net, as_a_user):
    with pytest.raises(error, match=message):
        closed_form(net, size, channels=2)
    with pytest.raises(error, match=message):
        monte_carlo(small_net, size, channels=2)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (nn.Conv2d, {}, TypeError, "model must be a torch.nn.Module, got type"),
        (small_net(), {"channels": 1}, ValueError, r"\(1, 1, 5, 6\).*expected 2 channels, got 1"),
        (small_net(), {"channels": 0}, ValueError, "channels must be at least 1"),
        (small_net(), {"channels": 2, "weights": "mean"}, ValueError, "weights must be"),
        (Returns(lambda x: [x]), {}, TypeError, "one tensor, got list"),
        (Returns(lambda x: torch.ones(1, 2)), {}, ValueError, "does not depend on the image"),
        (nn.Conv2d(3, 1, 9), {}, ValueError, "failed on images of shape"),
        (nn.BatchNorm2d(2), {}, ValueError, "expected 2 channels, got 3"),
        (nn.Linear(3, 2), {}, ValueError, "expected 3 features, got 6"),
    ],
)
@pytest.mark.parametrize("also", ["expected", "drawn"])
def test_closed_form_refuses(model, options, error, message, also, as_a_user):
    with pytest.raises(error, match=message):
        closed_form(model, (5, 6), **{"weights": also, **options})


def test_weights_that_are_not_finite_are_named(net):
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        closed_form(net, (5, 6), channels=2)


@pytest.mark.parametrize(
    ("build", "options", "error", "message"),
    [
        (small_net(), {}, TypeError, "build_model must be a function"),
        (lambda: 3, {}, TypeError, "build_model must return a torch.nn.Module, got int"),
        (small_net, {"networks": 1}, ValueError, "networks must be at least 2"),
        (small_net, {"inputs": 0}, ValueError, "inputs must be at least 1"),
        (small_net, {"device": "gpu"}, ValueError, "device must be one that PyTorch knows"),
        (small_net, {"channels": 3}, ValueError, r"failed on images of shape \(4, 3, 5, 6\)"),
    ],
)
def test_monte_carlo_refuses(build, options, error, message, as_a_user):
    with pytest.raises(error, match=message):
        monte_carlo(build, (5, 6), **{"channels": 2, **options})


def test_a_model_without_parameters():
    assert monte_carlo(nn.Flatten, 3, networks=2).importance.shape == (3, 3)
    assert closed_form(nn.Flatten(), 3).exact


def test_an_output_that_ignores_part_of_the_image():
    class Crop(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 1, stride=4)

        def forward(self, x):
            return self.layer(x)

    found = closed_form(Crop(), 8, channels=1)
    assert (found.importance > 0).sum() == 4
    assert found.log.isfinite().all()
