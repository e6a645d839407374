"""Attention: products of tensors that depend on the image, and a softmax between them."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pilcro.rules.activations import through_dropout
from pilcro.rules.layers import linear, through_linear, total
from pilcro.rules.moving import plus_constant, through_move, through_mul
from pilcro.second_moments import SecondMoment, ratio, second_moment_rule, unsupported, written

INDEPENDENT = "matrix product: its factors are taken to be independent"


@second_moment_rule(F.softmax, torch.softmax, torch.Tensor.softmax)
def through_softmax(x, dim=None, _stacklevel=3, dtype=None):
    """Scores are normal around their constants (a mask, a bias), so that their exponentials are
    lognormal; the gradient is that of an exponential over a constant."""
    x.run.approximate("softmax: scores are taken to be normal, the sum over them constant")
    second = x.second()
    average = x.average()
    variance = (second - average.square()).clamp_min(0)
    top = (average + variance).amax(dim, keepdim=True)
    exponential = (average - top + variance / 2).exp()
    sums = total(exponential, dim, x.shape[dim])
    mean = exponential / sums
    square = ((average - top + variance).exp() / sums).square().minimum(mean)
    return SecondMoment(
        square + square * (x.moments - second),
        x.shape,
        x.run,
        x.sources,
        (),
        second=lambda: square,
        correlation=lambda: ratio(mean.square(), square),
        average=lambda: mean,
    )


def contracted(
    product: Callable[[Tensor, Tensor], Tensor],
    x: SecondMoment,
    y: SecondMoment,
    shape: Sequence[int],
) -> SecondMoment:
    """Behind a bilinear ``product``: terms add up as squares do, but for what they share, where the
    entries of one factor are positive, as those of a softmax are."""
    x.run.approximate(INDEPENDENT)
    square = product(x.second(), y.second())
    extra = 0.0
    if x.flips and y.flips:
        xs, ys = x.shared, y.shared

        def together() -> Tensor:
            return product(xs(), ys())

    else:
        # rounding may leave less than nothing
        roots = (factor.shared().clamp_min(0).sqrt() for factor in (x, y))
        sum_of_shared = product(*roots).square()
        extra = sum_of_shared - product(x.shared(), y.shared())
        square = square + extra

        def together() -> Tensor:
            return sum_of_shared

    return SecondMoment(
        product(x.moments, y.moments) + extra,
        shape,
        x.run,
        x.sources | y.sources,
        (),
        second=lambda: square,
        correlation=lambda: ratio(together(), square),
    )


@second_moment_rule(
    torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, joins=True
)
def through_matmul(x, y):
    """Products of entries, added up."""
    if not isinstance(x, SecondMoment) or min(x.ndim, y.ndim) < 2:
        raise unsupported(torch.matmul, (x, y), {}, "with these factors")
    if not isinstance(y, SecondMoment):
        return through_linear(x, y.mT)
    inner, outer = x.shape[-1], (x.shape[-2], y.shape[-1])

    def product(one: Tensor, two: Tensor) -> Tensor:
        if one.shape[-1] == two.shape[-2] == 1:
            return one * two * inner
        one = one.expand(*one.shape[:-1], inner)
        return one @ two.expand(*two.shape[:-2], inner, two.shape[-1])

    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return contracted(product, x, y, (*batch, *outer))


@second_moment_rule(torch.einsum, joins=True)
def through_einsum(equation, *operands):
    """Two factors that depend on the image, as in attention."""
    if len(operands) != 2 or not all(isinstance(operand, SecondMoment) for operand in operands):
        raise unsupported(torch.einsum, operands, {}, "but of two tensors that depend on the image")
    x, y = operands

    def product(one: Tensor, two: Tensor) -> Tensor:
        return torch.einsum(equation, written(one, x.shape), written(two, y.shape))

    shape = product(x.moments.detach().to("meta"), y.moments.detach().to("meta")).shape
    return contracted(product, x, y, shape)


@second_moment_rule(F.scaled_dot_product_attention, joins=True)
def through_scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """softmax(q k' / sqrt(d)) v."""
    factors = (query, key, value)
    if is_causal or enable_gqa or not all(isinstance(x, SecondMoment) for x in factors):
        how = "that is causal, shares heads or has a factor that does not depend on the image"
        raise unsupported(F.scaled_dot_product_attention, (query, key, value), {}, how)
    scores = through_matmul(query, through_move(torch.Tensor.transpose, key, -2, -1))
    scores = through_mul(scores, scale or 1 / math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(
                ~attn_mask, -1e4
            )
        scores = plus_constant(scores, attn_mask)
    weights = through_dropout(through_softmax(scores, -1), dropout_p)
    return through_matmul(weights, value)


@second_moment_rule(F.multi_head_attention_forward, joins=True)
def through_multi_head_attention(
    query,
    key,
    value,
    embed_dim_to_check,
    num_heads,
    in_proj_weight,
    in_proj_bias,
    bias_k,
    bias_v,
    add_zero_attn,
    dropout_p,
    out_proj_weight,
    out_proj_bias,
    training=True,
    key_padding_mask=None,
    need_weights=True,
    attn_mask=None,
    **rest,
):
    """Three projections, attention in each head, one more projection; (tokens, batch, features)."""
    unusual = (bias_k, bias_v, key_padding_mask, *rest.values())
    unusual = [value for value in unusual if value is not None and not isinstance(value, bool)]
    if in_proj_weight is None or unusual or add_zero_attn or need_weights:
        how = "but with one matrix for its three projections, need_weights=False, and no more"
        raise unsupported(F.multi_head_attention_forward, (query,), {}, how)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = ~attn_mask  # here true means hidden
    biases = [None] * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    heads = [
        in_heads(
            x.weighted(linear(x, square), (*x.shape[:-1], len(weight)), weight, bias), num_heads
        )
        for x, square, weight, bias in zip(
            (query, key, value),
            query.run.squared(in_proj_weight).chunk(3),
            in_proj_weight.chunk(3),
            biases,
            strict=True,
        )
    ]
    out = through_scaled_dot_product_attention(
        *heads, attn_mask=attn_mask, dropout_p=dropout_p if training else 0.0
    )
    batch, tokens = query.shape[1], query.shape[0]
    out = through_move(torch.Tensor.permute, out, (2, 0, 1, 3))
    out = through_move(torch.Tensor.reshape, out, (tokens, batch, embed_dim_to_check))
    return through_linear(out, out_proj_weight, out_proj_bias), None


def in_heads(x: SecondMoment, heads: int) -> SecondMoment:
    """(tokens, batch, features) as (batch, heads, tokens, features of one head)."""
    tokens, batch, features = x.shape
    split = through_move(torch.Tensor.reshape, x, (tokens, batch, heads, features // heads))
    return through_move(torch.Tensor.permute, split, (1, 2, 0, 3))
