"""Attention: products, softmax and masks against sums written out and against normal samples.

Where a rule is an approximation, the bounds are those that we measured, and the test says so.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import Net, moment
from torch import nn

import pilcro
from pilcro.second_moments import Run, UnsupportedOperation, white_noise

DOUBLE = torch.float64


def random_values(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=random, dtype=DOUBLE) + 0.5).requires_grad_()


def tokens(x):
    """Pixels as tokens, (batch, pixels, channels)."""
    return x.flatten(2).transpose(1, 2)


# --- products of two factors ---------------------------------------------------------------------

PRODUCTS = {
    "matmul": (torch.matmul, "bij,bjk->bik"),
    "operator": (lambda x, y: x @ y, "bij,bjk->bik"),
    "bmm": (torch.bmm, "bij,bjk->bik"),
    "einsum": (lambda x, y: torch.einsum("bij,bjk->kib", x, y), "bij,bjk->kib"),
    "einsum, transposed": (
        lambda x, y: torch.einsum("bij,bkj->bik", x, y.transpose(1, 2)),
        "bij,bjk->bik",
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_sums_products_of_second_moments(name):
    function, written_out = PRODUCTS[name]
    x, y = random_values(2, 3, 4), random_values(2, 4, 5, seed=1)
    out = function(moment(x), moment(y))
    want = torch.einsum(written_out, x, y)
    assert out.shape == want.shape
    torch.testing.assert_close(out.full(), want)
    gradients = (torch.autograd.grad(each.square().sum(), (x, y)) for each in (out.full(), want))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)
    assert len(out.run.reasons) == 1
    assert "independent" in out.run.reasons[0]


def test_a_product_with_a_constant_squares_it():
    x, weight = random_values(1, 3, 4), random_values(4, 5, seed=1).detach()
    out = torch.matmul(moment(x), weight)
    torch.testing.assert_close(out.full(), x @ weight.square())


@pytest.mark.parametrize("inner", [1, 6])
def test_entries_that_are_stored_once_count_as_often_as_they_stand_there(inner):
    shapes = ((1, 3, inner), (1, inner, 5))
    run = Run(nn.Identity(), expected=True)
    for stored in (((1, 1, 1), (1, 1, 1)), ((1, 3, 1), (1, 1, 5)), ((1, 3, inner), (1, 1, 1))):
        one, other = (
            white_noise(torch.full(small, 2.0, dtype=DOUBLE), shape, run)
            for small, shape in zip(stored, shapes, strict=True)
        )
        out = one @ other
        assert out.shape == (1, 3, 5)
        torch.testing.assert_close(out.full(), torch.full((1, 3, 5), 4.0 * inner).double())


def test_what_values_share_does_not_average_out():
    """Positive weights of mean 1/n: of independent values 1/n is left, of shared ones all."""
    n, shared = 50, 0.7
    scores = moment(torch.full((1, 1, n), 1e-9, dtype=DOUBLE))
    bias = torch.tensor(shared, dtype=DOUBLE).sqrt()
    noise = moment(torch.ones(1, n, 1, dtype=DOUBLE))
    out = F.softmax(scores, -1) @ (noise + bias)
    torch.testing.assert_close(float(out.full()), 1 / n + shared, rtol=1e-6, atol=0)
    torch.testing.assert_close(float(out.shared()), shared, rtol=1e-6, atol=0)


# --- softmax -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "variance", "value", "slope"),
    [(4, 0.1, 0.04, 1.2), (16, 0.1, 0.02, 0.25), (64, 0.1, 0.01, 0.06), (64, 1.0, 0.12, 0.4)],
)
def test_softmax_of_normal_scores(entries, variance, value, slope):
    """An approximation that is good for many entries and small scores: too high by at most the
    bounds given here (at a variance of 4 by factors of 5 and 11)."""
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(400_000 // entries, entries, generator=random, dtype=DOUBLE)
    scores = (scores * math.sqrt(variance)).requires_grad_()
    weights = scores.softmax(-1)
    (gradient,) = torch.autograd.grad(weights[:, 0].sum(), scores)

    q = torch.full((1, entries), variance, dtype=DOUBLE, requires_grad=True)
    out = F.softmax(moment(q), -1)
    (got,) = torch.autograd.grad(out.full()[0, 0], q)
    assert -0.01 < float(out.second()[0, 0] / weights.detach().square().mean()) - 1 < value
    assert -0.01 < float(got[0, 0] / gradient[:, 0].square().mean()) - 1 < slope
    torch.testing.assert_close(out.average(), torch.full((1, entries), 1 / entries).double())
    torch.testing.assert_close(out.shared(), torch.full((1, entries), entries**-2.0).double())


def test_softmax_around_constant_scores():
    """Scores that hardly vary: the softmax of their means, over whichever dimension."""
    mean = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    for dim in (0, 1):
        scores = moment(torch.full((3, 5), 1e-9, dtype=DOUBLE)) + mean
        out = scores.softmax(dim)
        close = {"rtol": 1e-6, "atol": 0}
        torch.testing.assert_close(out.average(), mean.softmax(dim), **close)
        torch.testing.assert_close(out.full(), mean.softmax(dim).square(), **close)


# --- scaled dot product attention ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "features", "scale", "value", "through_scores"),
    [(4, 4, 0.1, 0.03, 0.5), (16, 8, 0.1, 0.03, 0.15), (32, 16, None, 0.22, 0.55)],
)
def test_attention_of_independent_normal_tokens(count, features, scale, value, through_scores):
    """Value and gradient through v, then the gradients through q and k: too high by at most the
    bounds given here, which we measured. Per entry of v within the sampling error and the bound."""
    draws, shape = 3000, (1, count, features)
    random = torch.Generator().manual_seed(0)
    drawn = [
        torch.randn(draws, *shape[1:], generator=random, dtype=DOUBLE).requires_grad_()
        for _ in range(3)
    ]
    out = F.scaled_dot_product_attention(*drawn, scale=scale)
    sampled = [g.square() for g in torch.autograd.grad(out[:, 0, 0].sum(), drawn)]

    ones = [torch.ones(shape, dtype=DOUBLE, requires_grad=True) for _ in range(3)]
    closed = F.scaled_dot_product_attention(*map(moment, ones), scale=scale)
    found = torch.autograd.grad(closed.full()[0, 0, 0], ones)

    square = out[:, 0, 0].detach().square()
    error = square.std() / draws**0.5
    assert -4 * error < closed.second()[0, 0, 0] - square.mean()
    assert closed.second()[0, 0, 0] < (1 + value) * (square.mean() + 4 * error)
    error = sampled[2].std(0) / draws**0.5
    assert (found[2][0] >= sampled[2].mean(0) - 4.5 * error).all()
    assert (found[2][0] <= (1 + value) * (sampled[2].mean(0) + 4.5 * error)).all()
    assert not found[2][0, :, 1:].any()
    for i in (0, 1):
        ratio = found[i].sum() / sampled[i].mean(0).sum()
        assert 0.95 < ratio < 1 + through_scores


def attention(mask=None):
    """Pixels attend to each other; the factors share the image, their layers are their own."""

    def forward(x, *layers):
        return F.scaled_dot_product_attention(*(a(tokens(x)) for a in layers), attn_mask=mask)

    return forward


def projections(width=8):
    return [nn.Linear(width, width) for _ in range(3)]


def masks(hidden, n=9):
    """Nobody looks at the hidden token: truth values, numbers far below, minus infinity."""
    shown = torch.ones(n, n, dtype=torch.bool)
    shown[:, hidden] = False
    far = torch.zeros(n, n)
    return {
        "bool": shown,
        "-100": far.masked_fill(~shown, -100.0),
        "-inf": far.masked_fill(~shown, -math.inf),
    }


@pytest.mark.parametrize("kind", ["bool", "-100", "-inf"])
@pytest.mark.parametrize("weights", ["expected", "drawn"])
def test_a_masked_token_gets_nothing_through_its_value(kind, weights):
    """It is still a query of its own, so only rows that differ from it are looked at."""

    def forward(x, *layers):
        out = attention(masks(hidden=4)[kind])(x, *layers)
        return torch.cat([out[:, :4], out[:, 5:]], 1)

    net = Net(forward, *projections())
    found = pilcro.closed_form(net, 3, channels=8, weights=weights).importance.flatten()
    assert found[4] < 1e-12 * found.mean()
    assert (found[[0, 1, 2, 3, 5, 6, 7, 8]] > 0).all()

    def without(x, *layers):
        t = tokens(x)
        t = torch.cat([t[:, :4], t[:, 5:]], 1)
        return F.scaled_dot_product_attention(*(a(t) for a in layers))

    alone = pilcro.closed_form(Net(without, *net.layers), 3, channels=8, weights=weights)
    torch.testing.assert_close(found, alone.importance.flatten(), rtol=1e-4, atol=1e-12)


def by_module(t, layer, mask):
    return layer(t, t, t, attn_mask=mask, need_weights=False)[0]


def by_function(t, layer, mask):
    t = t.transpose(0, 1)
    weights = layer.in_proj_weight, layer.in_proj_bias, None, None, False, 0.0
    out = layer.out_proj.weight, layer.out_proj.bias
    out, _ = F.multi_head_attention_forward(
        t, t, t, 8, 2, *weights, *out, attn_mask=mask, need_weights=False
    )
    return out.transpose(0, 1)


@pytest.mark.parametrize("kind", ["bool", "-100", "-inf"])
@pytest.mark.parametrize("call", [by_module, by_function])
def test_masks_of_multi_head_attention(call, kind):
    """Here true means hidden."""
    mask = masks(hidden=4)[kind]
    mask = ~mask if kind == "bool" else mask

    def forward(x, attend):
        out = call(tokens(x), attend, mask)
        return torch.cat([out[:, :4], out[:, 5:]], 1)

    net = Net(forward, nn.MultiheadAttention(8, 2, batch_first=True))
    found = pilcro.closed_form(net, 3, channels=8).importance.flatten()
    assert found[4] < 1e-12 * found.mean()


# --- whole blocks --------------------------------------------------------------------------------


def block(x, norm, attend, first, second):
    """A transformer block on the pixels."""
    t = tokens(x)
    n = norm(t)
    t = t + attend(n, n, n, need_weights=False)[0]
    return t + second(F.gelu(first(t)))


def block_layers(width=8):
    return [
        nn.LayerNorm(width),
        nn.MultiheadAttention(width, 2, batch_first=True),
        nn.Linear(width, 2 * width),
        nn.Linear(2 * width, width),
    ]


class WithClassToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.layers = nn.ModuleList([*projections(), nn.LayerNorm(8)])

    def forward(self, x):
        *layers, norm = self.layers
        t = torch.cat([self.token.expand(len(x), -1, -1), norm(tokens(x))], 1)
        return F.scaled_dot_product_attention(*(layer(t) for layer in layers))[:, 0]


MODELS = {
    "attention": lambda: Net(attention(), *projections()),
    "block": lambda: Net(block, *block_layers()),
    "class token": WithClassToken,
}


@pytest.mark.parametrize("name", MODELS)
def test_equal_entries_stored_once_or_written_out(name):
    """expected weights store equal features once, drawn weights of one size write them out."""
    net = MODELS[name]().double()
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.4)
    expected, drawn = (
        pilcro.closed_form(net, 3, channels=8, weights=w) for w in ("expected", "drawn")
    )
    torch.testing.assert_close(expected.importance, drawn.importance, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weights", ["expected", "drawn"])
def test_without_positions_all_tokens_are_alike(name, weights):
    net = pilcro.draw_network(MODELS[name])
    found = pilcro.closed_form(net, (2, 5), channels=8, weights=weights).importance
    torch.testing.assert_close(found, found.mean().expand_as(found), rtol=1e-5, atol=0)
    assert found.mean() > 0


def test_a_class_token_keeps_its_length_through_a_layer_norm():
    """Its features differ: their mean over the token goes, not each of them."""
    token = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    x = moment(torch.ones(1, 3, 8, dtype=DOUBLE))
    out = F.layer_norm(torch.cat([token, x], 1), [8])
    torch.testing.assert_close(out.full()[0, 0], F.layer_norm(token, [8])[0, 0].square())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("expected", [True, False])
def test_no_rounding_makes_a_moment_nan(seed, expected):
    """A shared moment that is zero may come out a little below."""
    layers = pilcro.draw_network(
        lambda: nn.ModuleList(
            [
                nn.Conv2d(8, 8, 3, padding=1, bias=False),
                nn.LayerNorm(8, bias=False),
                *(nn.Linear(8, 8, bias=False) for _ in range(3)),
            ]
        ),
        torch.Generator().manual_seed(seed),
    )
    ones = torch.ones(1, 1 if expected else 8, 5, 5, dtype=DOUBLE if expected else torch.float32)
    conv, norm, *linear = layers
    t = norm(tokens(F.relu(conv(white_noise(ones, (1, 8, 5, 5), Run(layers, expected))))))
    out = F.scaled_dot_product_attention(*(layer(t) for layer in linear))
    assert out.second().isfinite().all()
    assert out.shared().isfinite().all()


def test_multi_head_attention_against_fresh_networks():
    """E[z^2] and E[z z'] of two images, within 4 standard errors and the 5 % of the softmax."""
    n, width = 16, 8

    def build():
        layer = nn.MultiheadAttention(width, 2, batch_first=True)
        nn.init.normal_(layer.in_proj_weight, std=0.5 * width**-0.5)
        nn.init.normal_(layer.in_proj_bias, std=0.4)
        nn.init.normal_(layer.out_proj.weight, std=width**-0.5)
        nn.init.normal_(layer.out_proj.bias, std=0.3)
        return layer

    random = torch.Generator().manual_seed(0)
    squares, products = [], []
    for _ in range(600):
        layer = pilcro.draw_network(build, random)
        x = torch.randn(2, n, width, generator=random)
        out = layer(x, x, x, need_weights=False)[0].detach()
        squares.append(out.square().mean())
        products.append((out[0] * out[1]).mean())

    layer = build()
    constants = (0.5 * width**-0.5, 0.4, width**-0.5, 0.3)
    names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    for name, value in zip(names, constants, strict=True):
        nn.init.constant_(layer.get_parameter(name), value)
    run = Run(layer, expected=True)
    noise = white_noise(torch.ones(1, 1, 1, dtype=DOUBLE), (1, n, width), run)
    out, _ = layer(noise, noise, noise, need_weights=False)
    for got, sample in ((out.second(), squares), (out.shared(), products)):
        sample = torch.stack(sample)
        error = sample.std() / len(sample) ** 0.5
        assert (got.mean() - sample.mean()).abs() < 4 * error + 0.05 * sample.mean()


# --- what is refused -----------------------------------------------------------------------------


def attend_with(**options):
    def forward(x, layer):
        t = tokens(x)
        return layer(t, t, t, **{"need_weights": False, **options})[0]

    return forward


def sdpa(make, **options):
    def forward(x):
        t = tokens(x)
        return F.scaled_dot_product_attention(*make(t), **options)

    return forward


CONSTANT = torch.ones(1, 9, 8)
REFUSED = {
    "causal": (sdpa(lambda t: (t, t, t), is_causal=True),),
    "shared heads": (sdpa(lambda t: (t, t, t), enable_gqa=True),),
    "constant query": (sdpa(lambda t: (CONSTANT, t, t)),),
    "constant key": (sdpa(lambda t: (t, CONSTANT, t)),),
    "constant value": (sdpa(lambda t: (t, t, CONSTANT)),),
    "weights wanted": (attend_with(need_weights=True), {}),
    "padding": (attend_with(key_padding_mask=torch.zeros(1, 9, dtype=torch.bool)), {}),
    "zero attention": (attend_with(), {"add_zero_attn": True}),
    "bias of keys": (attend_with(), {"add_bias_kv": True}),
    "three matrices": (
        lambda x, a: a(tokens(x), tokens(x)[..., :4], tokens(x), need_weights=False)[0],
        {"kdim": 4},
    ),
    "constant times image": (lambda x: torch.ones(1, 3, 9) @ tokens(x),),
    "vector": (lambda x: tokens(x)[0, 0] @ tokens(x)[0, 0],),
    "einsum of three": (lambda x: torch.einsum("bij,bij,bij->bi", *[tokens(x)] * 3),),
    "einsum of one": (lambda x: torch.einsum("bij->bi", tokens(x)),),
    "einsum with a constant": (lambda x: torch.einsum("bij,bij->bi", tokens(x), CONSTANT),),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused(name):
    function, *options = REFUSED[name]
    layers = [nn.MultiheadAttention(8, 2, batch_first=True, **given) for given in options]
    with pytest.raises(UnsupportedOperation, match="no second-moment rule for"):
        pilcro.closed_form(Net(function, *layers), 3, channels=8)


# --- torchvision's families, small ---------------------------------------------------------------


def small_vit():
    models = pytest.importorskip("torchvision.models")
    return models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=10,
    ).eval()


def with_head():
    model = small_vit()
    nn.init.normal_(model.heads.head.weight, std=0.25)
    return model


def small_swin():
    models = pytest.importorskip("torchvision.models")
    sizes = {"patch_size": [2, 2], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2]}
    return models.SwinTransformer(
        **sizes, window_size=[4, 4], num_classes=10, stochastic_depth_prob=0.0
    ).eval()


def small_maxvit():
    models = pytest.importorskip("torchvision.models")
    return models.MaxVit(
        input_size=(32, 32),
        stem_channels=8,
        partition_size=2,
        block_channels=[16, 16],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.0,
        num_classes=10,
    ).eval()


@pytest.mark.parametrize("weights", ["expected", "drawn"])
@pytest.mark.parametrize("build", [with_head, small_swin])
def test_levels_of_transformers(build, weights, generator):
    """Their maps are flat (of one drawn network, nearly); the level was 0.7 to 0.9 of sampled."""
    found = pilcro.closed_form(pilcro.draw_network(build), 32, weights=weights)
    sampled = pilcro.monte_carlo(build, 32, networks=24, inputs=2, generator=generator)
    ratio = found.importance.mean() / sampled.importance.mean()
    assert 0.5 < ratio < 1.6
    spread = found.importance.std() / found.importance.mean()
    assert spread < 0.25
    assert not found.exact


def test_the_shape_agrees_with_sampled_maxvits(generator):
    sampled = pilcro.monte_carlo(small_maxvit, 32, networks=24, inputs=2, generator=generator)
    for weights in ("expected", "drawn"):
        closed = pilcro.closed_form(pilcro.draw_network(small_maxvit), 32, weights=weights)
        maps = [F.avg_pool2d(x.importance[None, None], 4).flatten() for x in (sampled, closed)]
        assert torch.corrcoef(torch.stack(maps))[0, 1] > 0.95


def test_a_head_of_zeros_has_no_landscape():
    """torchvision starts the head of a ViT at zero: nothing depends on the image, and says so."""
    found = pilcro.closed_form(pilcro.draw_network(small_vit), 32)
    assert not found.importance.any()
    with pytest.raises(ValueError, match="importance is zero at every pixel"):
        _ = found.normalised
