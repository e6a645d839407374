"""SGDrop against a slow derivation, dropout, and every way to train with it."""

import contextlib
import copy
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net, noise, seeded
from torch import nn
from torch.utils.checkpoint import checkpoint

from pilcro import PObjective, closed_form, draw_network, monte_carlo, on_data
from pilcro.neighbours import SGDrop, drop_nothing, drop_salient
from pilcro.neighbours.sgdrop import feature_gradients

LABELS = torch.tensor([0, 2, 1, 2, 0])


@pytest.fixture
def images():
    return noise(5, 2, 8, 6)


def drawn(*layers):
    def build():
        net = nn.Sequential(*layers)
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        return net

    return draw_network(build, seeded(3)).double()


def conv_net(*drops):
    """A map of 4 channels and one of 3, an SGDrop behind each if there are two; 3 classes."""
    first, second = (*drops, nn.Identity(), nn.Identity())[:2]
    return drawn(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        first,
        nn.Conv2d(4, 3, 3, stride=2),
        nn.Tanh(),
        second,
        nn.Flatten(),
        nn.Linear(3 * 3 * 2, 3),
    )


def given_scores(scores):
    """An attribution that does not look at the features."""
    return lambda features, gradient: scores


def dropped(drop, features, scores=None):
    """What ``drop`` makes of these features when their attributions are ``scores``."""
    if scores is not None:
        drop.attribution = given_scores(scores)
    drop.salient, _ = drop.choose(features, torch.zeros_like(features), None)
    try:
        return drop.train()(features)
    finally:
        drop.salient = None


# --- what is dropped -----------------------------------------------------------------------------


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    quantile=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_exactly_the_share_with_the_highest_attributions(shape, quantile, seed):
    features, scores = noise(*shape, seed=seed), noise(*shape, seed=seed + 1000)
    found = dropped(SGDrop(quantile, rescale="none"), features, scores)
    entries = math.prod(shape[1:])
    count = min(round((1 - quantile) * entries), entries - 1)
    rows = zip(features, scores, found, strict=True)
    for feature, score, out in ([x.flatten().tolist() for x in row] for row in rows):
        highest = sorted(range(entries), key=lambda i: -score[i])[:count]
        assert out == [0 if i in highest else feature[i] for i in range(entries)]


@pytest.mark.parametrize(("quantile", "count"), [(0.9, 3), (0.5, 16), (0.99, 0), (0.001, 31)])
def test_ties_do_not_change_the_share(quantile, count):
    features = torch.ones(2, 2, 4, 4)
    found = dropped(SGDrop(quantile, rescale="none"), features, torch.zeros_like(features))
    assert (found == 0).flatten(1).sum(1).tolist() == [count, count]


@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (2, 5, 1, 1), (2, 1, 3, 1)])
def test_attributions_of_positions_or_channels(shape):
    features, scores = noise(2, 5, 3, 4), noise(*shape, seed=1)
    found = dropped(SGDrop(0.6, rescale="none"), features, scores)
    entries = math.prod(shape[1:])
    for i in range(2):
        threshold = sorted(scores[i].flatten().tolist())[-round(0.4 * entries)]
        mask = (scores[i] >= threshold).expand(features[i].shape)
        assert torch.equal(found[i], features[i].masked_fill(mask, 0))


def test_a_dropped_entry_may_be_infinite():
    features = torch.tensor([[1.0, math.inf, 2.0, 3.0]])
    found = dropped(SGDrop(0.75, rescale="none"), features, features)
    assert found.tolist() == [[1, 0, 2, 3]]


# --- rescaling -----------------------------------------------------------------------------------


def test_share_is_one_over_what_is_kept():
    features, scores = noise(3, 2, 5, 1), noise(3, 2, 5, 1, seed=1)
    plain = dropped(SGDrop(0.7, rescale="none"), features, scores)
    torch.testing.assert_close(dropped(SGDrop(0.7), features, scores), plain * 10 / 7)


def test_sum_keeps_the_sum_of_the_absolute_features():
    features = noise(3, 2, 5, 4)
    features[2] = 0
    found = dropped(SGDrop(0.7, rescale="sum"), features, features.abs())
    assert (found == 0).flatten(1).sum(1).tolist() == [12, 12, 40]
    torch.testing.assert_close(found.abs().sum((1, 2, 3)), features.abs().sum((1, 2, 3)))
    share = dropped(SGDrop(0.7), features, features.abs())
    assert (share.abs().sum((1, 2, 3)) < 0.8 * features.abs().sum((1, 2, 3)))[:2].all()


@pytest.mark.parametrize("rescale", ["share", "sum"])
def test_no_gradient_passes_through_the_factor(rescale):
    features = noise(2, 6).requires_grad_()
    found = dropped(SGDrop(0.5, rescale=rescale), features, noise(2, 6, seed=1))
    factor = (found / features).detach()
    (gradient,) = torch.autograd.grad(found.sum(), features)
    torch.testing.assert_close(gradient, factor)


def test_random_attribution_is_dropout():
    """Many rows are many draws. The number of dropped entries is fixed, so that two of them go
    together a little less often than by chance."""
    draws, entries, count = 20_000, 8, 2
    row = noise(entries)
    features = row.expand(draws, entries)
    random = torch.rand(draws, entries, generator=seeded(1))
    drop = SGDrop(1 - count / entries, attribution=given_scores(random))
    found = dropped(drop, features)
    gone = (found == 0).double()
    p = count / entries
    error = math.sqrt(p * (1 - p) / draws)
    assert (gone.mean(0) - p).abs().max() < 4 * error
    together = gone.T @ gone / draws
    want = torch.full((entries, entries), p * (count - 1) / (entries - 1), dtype=torch.float64)
    want.fill_diagonal_(p)
    assert (together - want).abs().max() < 4 * error
    # The same values with the same probabilities as dropout gives, so the same mean and variance.
    again = F.dropout(torch.ones(draws, entries), p).unique()
    torch.testing.assert_close((found / features).unique(), again.double(), atol=1e-7, rtol=0)
    spread = row.abs() * math.sqrt(p / (1 - p) / draws)
    assert ((found.mean(0) - row).abs() < 4 * spread).all()


# --- the first pass ------------------------------------------------------------------------------


def slow_step(net, images, labels, quantiles):
    """Gradient x activation, sorting and dropping by hand, for the layers of ``conv_net``."""
    stages = [net[:2], net[3:5], net[6:]]

    def run(masks):
        x, maps = images, []
        for i, stage in enumerate(stages):
            x = stage(x)
            if i < 2:
                x.retain_grad()
                maps.append(x)
                if masks is not None and masks[i] is not None:
                    x = x * masks[i]
        return x, maps

    logits, maps = run(None)
    sum(logits[n, k] for n, k in enumerate(labels.tolist())).backward()
    masks = []
    for features, quantile in zip(maps, quantiles, strict=True):
        if quantile is None:
            masks.append(None)
            continue
        mask = torch.ones_like(features)
        for n, one in enumerate(features.grad * features):
            count = round((1 - quantile) * one.numel())
            for i in sorted(range(one.numel()), key=lambda i: -one.flatten()[i].item())[:count]:
                mask[n].view(-1)[i] = 0
            mask[n] *= one.numel() / (one.numel() - count)
        masks.append(mask)
    net.zero_grad()
    loss = F.cross_entropy(run(masks)[0], labels)
    loss.backward()
    return loss.detach(), gradients(net)


def gradients(net):
    return [p.grad.clone() for p in net.parameters()]


def step(net, images, labels=LABELS, **options):
    """A training step; the loss and the gradients."""
    net.zero_grad()
    with drop_salient(net, images, labels, **options):
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
    return loss.detach(), gradients(net)


@pytest.mark.parametrize(
    "quantiles", [(0.8, None), (None, 0.7), (0.8, 0.7)], ids=["early", "late", "both"]
)
def test_a_step_as_derived_slowly(quantiles, images):
    drops = [nn.Identity() if q is None else SGDrop(q) for q in quantiles]
    net = conv_net(*drops)
    want = slow_step(conv_net(), images, LABELS, quantiles)
    torch.testing.assert_close(step(net, images), want)
    plain, _ = step(conv_net(SGDrop(0.999)), images)
    assert abs(plain - want[0]) > 1e-3


def test_each_step_chooses_anew(images):
    net = conv_net(SGDrop(0.8))
    torch.testing.assert_close(step(net, images), step(net, images), rtol=0, atol=0)
    others = (LABELS + 1) % 3
    loss, _ = step(net, images, others)
    with drop_salient(net, images, LABELS):
        assert F.cross_entropy(net(images), others) != loss


class Forbidden(torch.autograd.Function):
    """Multiplies; nobody may ask for a gradient of the parameter."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x * weight

    @staticmethod
    def backward(ctx, gradient):
        assert ctx.needs_input_grad == (True, False)
        return gradient * ctx.saved_tensors[0], None


class Unreached(torch.autograd.Function):
    """The backward pass ends before this."""

    @staticmethod
    def forward(ctx, x, weight):
        return x * weight

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("the backward pass went on below the feature map")


def test_the_first_pass_goes_down_to_the_feature_map_only(images):
    def forward(x, conv, drop, linear):
        x = drop(Unreached.apply(conv(x), conv.bias.sum()))
        return linear(Forbidden.apply(x, linear.bias.sum()).flatten(1))

    net = Net(forward, nn.Conv2d(2, 3, 3), SGDrop(0.9), nn.Linear(72, 3)).double()
    images.requires_grad_()
    with drop_salient(net, images, LABELS):
        pass
    assert images.grad is None
    assert all(p.grad is None for p in net.parameters())


def test_batch_norm_moves_once_and_sees_the_same_batch(images):
    def net():
        return drawn(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            SGDrop(0.8),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.Linear(4 * 6 * 4, 3),
        )

    ours, plain = net(), net()
    seen = []
    ours[1].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    step(ours, images)
    assert len(seen) == 2
    assert torch.equal(*seen)
    with drop_nothing(plain):
        plain(images)
    assert torch.equal(ours[1].running_mean, plain[1].running_mean)
    assert torch.equal(ours[1].running_var, plain[1].running_var)
    assert not torch.equal(ours[4].running_mean, plain[4].running_mean)
    assert [ours[i].num_batches_tracked.item() for i in (1, 4)] == [1, 1]


def test_dropout_masks_are_those_of_the_next_pass():
    """Where dropout cuts a feature off, its attribution is zero."""
    scores = []

    def attribution(features, gradient):
        scores.append(features * gradient)
        return scores[-1]

    net = drawn(SGDrop(0.5, attribution=attribution), nn.Flatten(), nn.Dropout(), nn.Linear(12, 3))
    kept = []
    net[2].register_forward_hook(lambda module, inputs, output: kept.append(output != 0))
    images = 1 + noise(5, 1, 3, 4).square()
    before = torch.get_rng_state()
    with drop_salient(net, images, LABELS):
        assert torch.equal(torch.get_rng_state(), before)
        net(images)
    first, second = kept
    assert 0 < first.double().mean() < 1
    assert torch.equal(first, (scores[0] != 0).flatten(1))
    salient = (scores[0] > 0).flatten(1)
    assert not (second & ~first).any()
    assert (first & ~second).any()
    assert (salient >= (first & ~second)).all()


# --- the moving threshold ------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("rescale", ["share", "none"])
def test_moving_threshold_as_in_a_slow_loop(ema, rescale):
    quantile, entries, expected = 0.75, 12, None
    drop = SGDrop(quantile, ema=ema, rescale=rescale).double()
    assert drop.threshold.isnan()
    shares = set()
    for number in range(4):
        features = noise(3, 3, 2, 2, seed=number) * (number + 1)
        scores = noise(3, 3, 2, 2, seed=50 + number) + torch.arange(3).view(3, 1, 1, 1)
        net = nn.Sequential(drop, nn.Flatten())
        drop.attribution = given_scores(scores)
        with drop_salient(net, features, LABELS[:3]):
            found = drop(features)
        own = [sorted(one.flatten().tolist())[entries - 3 - 1] for one in scores]
        mean = sum(own) / 3
        expected = mean if expected is None else ema * expected + (1 - ema) * mean
        assert drop.threshold.item() == pytest.approx(expected, rel=1e-12)
        for one, score, out in zip(features, scores, found, strict=True):
            kept = [s <= expected for s in score.flatten().tolist()]
            shares.add(sum(kept))
            factor = entries / sum(kept) if rescale == "share" and any(kept) else 1
            want = [x * factor * keep for x, keep in zip(one.flatten().tolist(), kept, strict=True)]
            assert out.flatten().tolist() == pytest.approx(want, rel=1e-12)
    assert len(shares) > 1


def test_what_lies_at_the_moving_threshold_is_kept():
    features = noise(1, 8)
    drop = SGDrop(0.75, ema=0.0, rescale="none").double()
    found = dropped(drop, features, features.abs())
    assert (found == 0).sum() == 2
    silent = torch.zeros(1, 8, dtype=torch.float64)
    assert torch.equal(dropped(drop, features, silent), features)


def test_an_image_of_which_nothing_is_kept():
    scores = torch.tensor([[-1.0, -2.0, -3.0], [9.0, 8.0, 7.0]])
    drop = SGDrop(0.5, ema=0.0, attribution=given_scores(scores))
    drop.threshold.fill_(1.0)
    drop.ema = 1 - 1e-6  # the past counts
    found = dropped(drop, torch.ones(2, 3), scores)
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))


def test_the_threshold_is_saved_with_the_model(images):
    net = conv_net(SGDrop(0.8, ema=0.9))
    step(net, images)
    assert net[2].threshold.isfinite()
    other = conv_net(SGDrop(0.8, ema=0.9))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other[2].threshold, net[2].threshold)
    assert "2.threshold" not in conv_net(SGDrop(0.8)).state_dict()


# --- off in eval mode ----------------------------------------------------------------------------


def test_eval_mode_is_the_same_tensor_and_needs_no_first_pass(images):
    net = conv_net(SGDrop(0.8, ema=0.9)).eval()
    features = noise(2, 4, 3, 3)
    assert net[2](features) is features
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    with drop_salient(net, images, LABELS):
        assert not calls
        assert torch.equal(net(images), conv_net().eval()(images))
    assert net[2].threshold.isnan()


def test_one_of_two_may_be_in_eval_mode(images):
    net = conv_net(SGDrop(0.8), SGDrop(0.7))
    net[2].eval()
    want = slow_step(conv_net(), images, LABELS, (None, 0.7))
    torch.testing.assert_close(step(net, images), want)
    assert [net[2].training, net[5].training] == [False, True]


def test_drop_nothing(images):
    net = conv_net(SGDrop(0.8), SGDrop(0.7))
    net[5].eval()
    with contextlib.suppress(KeyError), drop_nothing(net):
        assert net.training
        assert torch.equal(net(images), conv_net()(images))
        raise KeyError
    assert [net[2].training, net[5].training] == [True, False]


# --- the model is left as it was -----------------------------------------------------------------


def state(net):
    return (
        {name: value.clone() for name, value in net.state_dict().items()},
        {name: p.grad for name, p in net.named_parameters()},
        {name: (m.training, len(m._forward_hooks)) for name, m in net.named_modules()},
        [m.salient for m in net.modules() if isinstance(m, SGDrop)],
    )


def assert_same_state(net, before):
    values, grads, modes, salient = before
    now = state(net)
    assert now[1:] == (grads, modes, salient)
    for name, value in now[0].items():
        torch.testing.assert_close(value, values[name], rtol=0, atol=0, equal_nan=True)


def norm_net(*drops):
    return drawn(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *drops, nn.Flatten(), nn.Linear(4 * 6 * 4, 3)
    )


def test_left_as_it_was_after_the_first_pass(images):
    net = norm_net(SGDrop(0.8), SGDrop(0.7))
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = state(net)
    with drop_salient(net, images, LABELS):
        assert net[2].salient is not None
    assert_same_state(net, before)


@pytest.mark.parametrize("where", ["forward", "attribution", "body"])
def test_left_as_it_was_after_an_exception(where, images):
    def refuse(*_):
        raise KeyError(where)

    def in_first_pass(module, inputs):
        if not module.training:
            refuse()

    drops = SGDrop(0.8, ema=0.9), SGDrop(0.7)
    net = norm_net(*drops)
    if where == "forward":
        drops[1].register_forward_pre_hook(in_first_pass)
    elif where == "attribution":
        drops[1].attribution = refuse
    before = state(net)

    def one_step():
        with drop_salient(net, images, LABELS):
            before[0]["2.threshold"] = drops[0].threshold.clone()  # the step was taken
            refuse()

    with pytest.raises(KeyError, match=where):
        one_step()
    assert_same_state(net, before)


# --- training loops ------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return checkpoint(self.layers, x, use_reentrant=False)


def test_checkpointing_repeats_the_same_choice(images):
    net = conv_net(SGDrop(0.8), SGDrop(0.7, ema=0.5))
    want = step(copy.deepcopy(net), images)
    for part in (slice(0, 4), slice(1, 6), slice(5, 8)):
        parts = [copy.deepcopy(net)[i] for i in range(8)]
        parts[part] = [Checkpointed(nn.Sequential(*parts[part]))]
        torch.testing.assert_close(step(nn.Sequential(*parts), images), want)


def test_checkpointing_with_the_backward_pass_outside(images):
    net = Checkpointed(conv_net(SGDrop(0.8)))
    with drop_salient(net, images, LABELS):
        loss = net(images).sum()
    with pytest.raises(RuntimeError, match="with checkpointing the backward pass, too"):
        loss.backward()


@pytest.mark.parametrize("inplace", ["before", "behind"])
def test_layers_that_work_in_place(inplace, images):
    def net(inplace):
        layers = [nn.Conv2d(2, 4, 3), SGDrop(0.8), nn.Flatten(), nn.Linear(4 * 6 * 4, 3)]
        layers.insert(2 if inplace == "behind" else 1, nn.LeakyReLU(0.3, inplace=inplace != ""))
        return drawn(*layers)

    plain = net(inplace)
    plain[2 if inplace == "behind" else 1].inplace = False
    torch.testing.assert_close(step(net(inplace), images), step(plain, images))


def test_autocast(images):
    images = images.float()
    scores = []

    def attribution(features, gradient):
        scores.append((features.dtype, gradient.dtype))
        return features.float() * gradient.float()

    net = conv_net(SGDrop(0.8, ema=0.9, attribution=attribution)).float()
    with torch.autocast("cpu", torch.bfloat16), drop_salient(net, images, LABELS):
        outputs = []
        net[2].register_forward_hook(lambda module, inputs, output: outputs.append(output))
        loss = F.cross_entropy(net(images).float(), LABELS)
        loss.backward()
    assert scores == [(torch.bfloat16, torch.bfloat16)]
    assert outputs[0].dtype == torch.bfloat16
    assert net[2].threshold.dtype == torch.float32
    want, _ = step(conv_net(SGDrop(0.8, ema=0.9)).float(), images)
    assert loss.item() == pytest.approx(want.item(), rel=0.05)


def test_gradient_times_activation_does_not_vanish_in_half_precision():
    seen = []
    drop = SGDrop(0.5)
    tiny = torch.full((1, 4), 2.0**-14, dtype=torch.float16)
    inner = drop.attribution
    drop.attribution = lambda *pair: seen.append(inner(*pair)) or seen[-1]
    drop.choose(tiny, tiny, None)
    assert seen[0].dtype == torch.float32
    assert (seen[0] > 0).all()


COMPILED = """
import copy, torch, torch._dynamo
from torch import nn
from pilcro.neighbours import SGDrop, drop_salient

net = nn.Sequential(
    nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), SGDrop(0.8), nn.Conv2d(4, 3, 3),
    SGDrop(0.7, ema=0.5), nn.Flatten(), nn.Linear(12, 3),
)
other = copy.deepcopy(net)
other[4] = torch.compile(other[4], backend="eager")
compiled = torch.compile(copy.deepcopy(net), backend="eager", fullgraph=True)
labels = torch.tensor([0, 2, 1])
for number in range(3):
    images = torch.full((3, 2, 6, 6), number + 1.0)
    found = []
    for model in (net, other, compiled):
        with drop_salient(model, images, labels):
            found.append(nn.functional.cross_entropy(model(images), labels))
            found[-1].backward()
        if model is compiled and number == 0:
            torch._dynamo.utils.counters.clear()
    assert found[0] == found[1] == found[2], found
for p, q in zip(net.parameters(), compiled.parameters(), strict=True):
    assert torch.equal(p.grad, q.grad)
assert not torch._dynamo.utils.counters["stats"], "compiled again for each batch"
"""


def test_compiled_models():
    """In a process of its own: the compiler cannot see through the tests' shape checks."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


def test_it_learns_and_needs_more_features():
    """Two features say the same; without SGDrop the network may lean on the louder one."""
    labels = (torch.arange(64) % 2).long()
    sign = (2.0 * labels - 1).view(-1, 1, 1, 1)
    images = sign * torch.tensor([3.0, 1.0]).view(1, 1, 1, 2)

    def trained(drop):
        torch_net = nn.Sequential(drop, nn.Flatten(), nn.Linear(2, 2))
        nn.init.zeros_(torch_net[2].weight)
        optimizer = torch.optim.SGD(torch_net.parameters(), 0.1)
        for _ in range(20):
            optimizer.zero_grad()
            with drop_salient(torch_net, images, labels):
                F.cross_entropy(torch_net(images), labels).backward()
            optimizer.step()
        weight = (torch_net[2].weight[1] - torch_net[2].weight[0]).abs().detach()
        return (weight / weight.sum())[1].item()

    # Its gradient is a third of the other's; dropping one feature keeps the other in demand.
    assert trained(SGDrop(0.999)) == pytest.approx(0.25)
    assert trained(SGDrop(0.5, rescale="none")) > 0.3


# --- together with landscapes and the ¶-objective ------------------------------------------------


def relu_net(middle):
    return drawn(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        middle,
        nn.Conv2d(4, 3, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3 * 3 * 2, 3),
    )


def same_landscape(found, want):
    assert found.exact == want.exact
    torch.testing.assert_close(found.importance, want.importance)


@pytest.mark.parametrize("weights", ["expected", "drawn"])
def test_closed_form(weights):
    options = {"channels": 2, "weights": weights}
    plain = closed_form(relu_net(nn.Identity()), (8, 6), **options)
    same_landscape(closed_form(relu_net(SGDrop(0.8)).eval(), (8, 6), **options), plain)
    for rescale in ("share", "sum"):
        found = closed_form(relu_net(SGDrop(0.8, rescale=rescale)), (8, 6), **options)
        want = closed_form(relu_net(nn.Dropout(0.2)), (8, 6), **options)
        torch.testing.assert_close(found.importance, want.importance)
        assert found.reasons == ("2: what SGDrop drops is taken to be random", *want.reasons)
    found = closed_form(relu_net(SGDrop(0.8, rescale="none")), (8, 6), **options)
    torch.testing.assert_close(found.importance, 0.8**2 * want.importance)
    assert not found.exact


def test_closed_form_that_follows_pairs():
    def net(middle):
        first = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2, 1)
        return drawn(*first, middle, nn.AvgPool2d(2), nn.Conv2d(4, 1, 3))

    found, want = (
        closed_form(net(middle), 8, channels=1, covariances=True)
        for middle in (SGDrop(0.8), nn.Dropout(0.2))
    )
    torch.testing.assert_close(found.importance, want.importance)
    assert {*found.reasons} - {*want.reasons} == {"4: what SGDrop drops is taken to be random"}


def test_on_data(images):
    plain = on_data(relu_net(nn.Identity()), images)
    net = relu_net(SGDrop(0.8))
    same_landscape(on_data(net.eval(), images), plain)
    with drop_nothing(net.train()):
        same_landscape(on_data(net, images), plain)
    with pytest.raises(ValueError, match="an SGDrop in train mode does not know what to drop"):
        on_data(net, images)
    with pytest.raises(ValueError, match="an SGDrop in train mode"):
        monte_carlo(lambda: relu_net(SGDrop(0.8)), (8, 6), channels=2, networks=2)


def test_the_objective_in_the_same_step(images):
    """The penalty is that of the whole network; the task's loss is that of the dropped one."""
    net = relu_net(SGDrop(0.8))
    want = PObjective(0.1, fraction=0.5)(relu_net(nn.Identity()), images)
    with drop_nothing(net):
        penalty = PObjective(0.1, fraction=0.5)(net, images)
    torch.testing.assert_close(penalty, want)
    task, _ = step(net, images)
    with drop_salient(net, images, LABELS):
        loss = F.cross_entropy(net(images), LABELS) + penalty
        loss.backward()
    torch.testing.assert_close(loss.detach(), task + penalty.detach())
    assert PObjective(estimator="twin")(net, images) > 0


# --- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantile": 0.0}, r"quantile must lie in \(0, 1\), got 0.0"),
        ({"quantile": 1.0}, r"quantile must lie in \(0, 1\), got 1.0"),
        ({"quantile": -0.5}, r"quantile must lie in \(0, 1\), got -0.5"),
        ({"quantile": math.nan}, r"quantile must lie in \(0, 1\), got nan"),
        ({"quantile": "a"}, "quantile must be a number, got 'a'"),
        ({"quantile": True}, "quantile must be a number, got True"),
        ({"ema": 1.0}, r"ema must be None or lie in \[0, 1\), got 1.0"),
        ({"ema": -0.1}, r"ema must be None or lie in \[0, 1\), got -0.1"),
        ({"ema": "a"}, "ema must be a number, got 'a'"),
        ({"rescale": "mean"}, "rescale must be one of share, sum, none; got 'mean'"),
    ],
)
def test_settings_out_of_range(options, message, as_a_user):
    with pytest.raises((TypeError, ValueError), match=message):
        SGDrop(**{"quantile": 0.9, **options})


def test_forgotten(images):
    net = conv_net(SGDrop(0.8))
    with pytest.raises(RuntimeError, match=r"inside `with drop_salient\(model, images, labels\)`"):
        net(images)
    step(net, images)
    with pytest.raises(RuntimeError, match="an SGDrop in train mode does not know what to drop"):
        net(images)


@pytest.mark.parametrize("other", [(4, 2, 8, 6), (5, 2, 9, 6)])
def test_another_batch(other, images):
    net = conv_net(SGDrop(0.8))[:3].append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    with (
        drop_salient(net, images, LABELS),
        pytest.raises(RuntimeError, match=r"but drop_salient chose for \(5, 4, 8, 6\): the forwa"),
    ):
        net(noise(*other))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 1, 0], "labels must be a tensor of type int64, got list"),
        (LABELS.float(), r"labels must be a tensor of type int64, got torch.float32"),
        (LABELS[:4], r"labels must have shape \(5,\) for these images, got \(4,\)"),
        (LABELS[:, None], r"labels must have shape \(5,\) for these images, got \(5, 1\)"),
        (LABELS + 1, "labels must lie between 0 and 2"),
        (LABELS - 1, "labels must lie between 0 and 2"),
    ],
)
def test_wrong_labels(labels, message, images, as_a_user):
    net = conv_net(SGDrop(0.8))
    with (
        pytest.raises((TypeError, ValueError), match=message),
        drop_salient(net, images, labels),
    ):
        pass


def twice(x, drop, linear):
    return linear(drop(drop(x)).flatten(1))


def unused(x, drop, linear):
    return linear(x.flatten(1))


def detached(x, drop, linear):
    return linear(drop(x).detach().flatten(1))


def aside(x, drop, linear):
    drop(x)
    return linear(x.flatten(1))


def a_map(x, drop, linear):
    return drop(x)


def a_pair(x, drop, linear):
    return x, drop(x)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (twice, r"module 'layers.0' runs twice in one forward pass"),
        (unused, r"the true logit does not depend on what module 'layers.0' returns"),
        (detached, r"the true logit does not depend on what module 'layers.0' returns"),
        (aside, r"the true logit does not depend on what module 'layers.0' returns"),
        (
            a_map,
            r"must return logits \(batch, classes\) for a batch of 5, got shape \(5, 2, 8, 6\)",
        ),
        (a_pair, "the model must return one tensor, got tuple"),
    ],
)
def test_wrong_models(forward, message, images):
    net = Net(forward, SGDrop(0.8), nn.Linear(96, 3)).double()
    with pytest.raises((TypeError, ValueError), match=message), drop_salient(net, images, LABELS):
        pass
    assert not net.layers[0]._forward_hooks


def test_one_of_two_is_cut_off(images):
    def forward(x, first, second, linear):
        second(x)
        return linear(first(x).flatten(1))

    net = Net(forward, SGDrop(0.8), SGDrop(0.8), nn.Linear(96, 3)).double()
    with (
        pytest.raises(ValueError, match=r"does not depend on what module 'layers.1' returns"),
        drop_salient(net, images, LABELS),
    ):
        pass


def test_no_sgdrop(images):
    with (
        pytest.raises(ValueError, match="model has no SGDrop module"),
        drop_salient(conv_net(), images, LABELS),
    ):
        pass


@pytest.mark.parametrize(
    ("scores", "got"),
    [
        (torch.ones(5, 4, 8, 5), r"got \(5, 4, 8, 5\)"),
        (torch.ones(1, 4, 8, 6), r"got \(1, 4, 8, 6\)"),
        (torch.ones(5, 4), r"got \(5, 4\)"),
        (None, "got NoneType"),
    ],
)
def test_wrong_attributions(scores, got, images, as_a_user):
    net = conv_net(SGDrop(0.8, attribution=given_scores(scores)))
    message = r"attribution must return a tensor of the features' shape \(5, 4, 8, 6\), or .*" + got
    with pytest.raises(ValueError, match=message), drop_salient(net, images, LABELS):
        pass


# --- features and gradients of any layer ---------------------------------------------------------


def test_feature_gradients_of_any_module(images):
    net = conv_net()
    (features, gradient), (late, _) = feature_gradients(
        net, images, LABELS, {"1": net[1], "4": net[4]}
    )
    maps = net[:2](images)
    late_maps = net[2:5](maps)
    logits = net[5:](late_maps)
    (want,) = torch.autograd.grad(logits.gather(1, LABELS[:, None]).sum(), maps)
    torch.testing.assert_close((features, late), (maps.detach(), late_maps.detach()))
    torch.testing.assert_close(gradient, want)
