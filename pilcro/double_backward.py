"""Operations that are cheap to differentiate twice, or can be at all.

The penalty of :mod:`pilcro.objective` is a function of gradients, so training goes backwards
through a backward pass. PyTorch does that for convolutions by convolving with kernels as large as
the map, and for batch norm by some forty passes over memory; ``hardsigmoid`` it does not do. Inside
:class:`CheapDoubleBackward` the same functions are computed with second derivatives written out:
values and gradients are PyTorch's. Chapter 9 says what it saves.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from pilcro.rules.normalisation import as_affine
from pilcro.rules.pooling import pair

aten = torch.ops.aten


class CheapDoubleBackward(TorchFunctionMode):
    """While it is on, some functions are replaced; all others stay what they are.

    ``inner`` says that the gradient with respect to the image is being taken, and that nobody wants
    those of the weights yet: a custom function cannot tell, PyTorch's own do.
    """

    inner = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        replacement = REPLACED.get(function)
        if replacement is None or checkpointed():
            return function(*args, **(kwargs or {}))
        return replacement(self, *args, **(kwargs or {}))

    def input_gradient(
        self, output: Tensor, x: Tensor, vector: Tensor, *, create_graph: bool
    ) -> Tensor:
        """d <vector, output> / dx, which can be differentiated if ``create_graph``."""
        self.inner = True
        try:
            (gradient,) = torch.autograd.grad(
                output, x, vector, retain_graph=True, create_graph=create_graph, allow_unused=True
            )
        finally:
            self.inner = False
        return x.new_zeros(x.shape) if gradient is None else gradient


def checkpointed() -> bool:
    """A checkpoint runs its forward once more during the backward pass, when nothing is replaced,
    and wants to meet the same operations."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


# --- convolution: linear in the image and in the weight -----------------------------------------


def through_conv2d(
    mode, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
) -> Tensor:
    rare = isinstance(padding, str) or input.ndim != 4  # "same" may pad one side only
    if rare or computed(weight):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    x, weight, bias = cast_as_autocast_would(input, weight, bias)
    setting = (pair(stride), pair(padding), pair(dilation), False, [0, 0], groups)
    out = Convolution.apply(x, weight, setting, mode)
    return out if bias is None else out + bias[:, None, None]


class Convolution(Function):
    @staticmethod
    def forward(ctx, x, weight, setting, mode):
        ctx.save_for_backward(x, weight)
        ctx.setting, ctx.mode = setting, mode
        return torch.convolution(x, weight, None, *setting)

    @staticmethod
    def backward(ctx, out):
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, *_ = ctx.needs_input_grad
        to_x = ConvolutionInput.apply(out, weight, x.shape, ctx.setting) if wants_x else None
        if not wants_weight or ctx.mode.inner:
            return to_x, None, None, None
        return to_x, weight_gradient(out, x, weight, ctx.setting), None, None


class ConvolutionInput(Function):
    """Gradient of a convolution with respect to its input: linear in ``out`` and in the weight."""

    @staticmethod
    def forward(ctx, out, weight, shape, setting):
        ctx.save_for_backward(out, weight)
        ctx.setting = setting
        like = out.new_empty(1).expand(shape)  # only its shape is looked at
        return aten.convolution_backward(out, like, weight, None, *setting, [True, False, False])[0]

    @staticmethod
    def backward(ctx, x):
        out, weight = ctx.saved_tensors
        wants_out, wants_weight, *_ = ctx.needs_input_grad
        to_out = torch.convolution(x, weight, None, *ctx.setting) if wants_out else None
        to_weight = weight_gradient(out, x, weight, ctx.setting) if wants_weight else None
        return to_out, to_weight, None, None


def weight_gradient(out: Tensor, x: Tensor, weight: Tensor, setting: tuple) -> Tensor:
    return aten.convolution_backward(out, x, weight, None, *setting, [False, True, False])[1]


def computed(*weights: Tensor | None) -> bool:
    """A weight that the forward computes may depend on the image: its gradient is wanted too."""
    return any(weight is not None and weight.grad_fn is not None for weight in weights)


def cast_as_autocast_would(*tensors: Tensor | None) -> list[Tensor | None]:
    """Autocast does not look into custom functions; it leaves float64 alone."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind) or tensors[0].dtype == torch.float64:
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


# --- batch norm ---------------------------------------------------------------------------------


ONCE = "the penalty can be differentiated once, not with create_graph=True"


def through_batch_norm(
    mode,
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
) -> Tensor:
    single = input.numel() == input.shape[1]  # PyTorch refuses one value a channel
    if training and (single or computed(weight, bias)):
        return F.batch_norm(input, None, None, weight, bias, True, momentum, eps)
    if training:
        return BatchNorm.apply(input, weight, bias, eps, mode)
    trailing = [1] * (input.ndim - 2)
    scale, shift = as_affine(running_mean, running_var, weight, bias, eps)
    return (input * scale.view(-1, *trailing) + shift.view(-1, *trailing)).to(input.dtype)


class BatchNorm(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, mode):
        out, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps, ctx.mode = eps, mode
        return out

    @staticmethod
    def backward(ctx, out):
        x, weight, mean, scale = ctx.saved_tensors
        if not torch.is_grad_enabled():
            wanted = list(ctx.needs_input_grad[:3])
            gradients = norm_backward(out, x, weight, mean, scale, ctx.eps, wanted)
            return *gradients, None, None
        to_x = BatchNormInput.apply(out, x, weight, mean, scale, ctx.eps)
        if ctx.mode.inner:
            return to_x, None, None, None, None
        raise RuntimeError(ONCE)


class BatchNormInput(Function):
    """Gradient of batch norm with respect to its input."""

    @staticmethod
    def forward(ctx, out, x, weight, mean, scale, eps):
        ctx.save_for_backward(out, x, weight, mean, scale)
        ctx.eps = eps
        return norm_backward(out, x, weight, mean, scale, eps, [True, False, False])[0]

    @staticmethod
    def backward(ctx, v):
        """With u = ``out``, z = (x - mean) scale, g the weight and <.> the mean over batch and
        positions, the forward is g scale (u - <u> - z <u z>); it is linear in u, its matrix is
        symmetric, and the rest is the product rule."""
        if torch.is_grad_enabled():
            raise RuntimeError(ONCE)
        u, x, weight, mean, scale = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        to_u, vz, v_sum = norm_backward(v, x, weight, mean, scale, ctx.eps, [True] * 3)
        _, uz, u_sum = norm_backward(u, x, weight, mean, scale, ctx.eps, [False, True, True])
        zero, one = torch.zeros_like(mean), torch.ones_like(scale)
        _, uv, _ = norm_backward(u, v, None, zero, one, 0.0, [False, True, False])
        vz, uz, uv, v_mean, u_mean = (total / count for total in (vz, uz, uv, v_sum, u_sum))
        covariance = uv - u_mean * v_mean - uz * vz
        factor = -scale.square() if weight is None else -scale.square() * weight
        of_x = factor * scale * (covariance - 2 * uz * vz)
        constant = -factor * (vz * u_mean + uz * v_mean) - of_x * mean
        to_x = sum_of_multiples(constant, (factor * vz, u), (factor * uz, v), (of_x, x))
        to_weight = None if weight is None else (scale * covariance * count).to(weight.dtype)
        return to_u, to_x, to_weight, None, None, None


def norm_backward(out, x, weight, mean, scale, eps, mask) -> tuple[Tensor | None, ...]:
    return aten.native_batch_norm_backward(out, x, weight, None, None, mean, scale, True, eps, mask)


def sum_of_multiples(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """constant + sum of a * x, with numbers of channels and maps."""
    trailing = [1] * (terms[0][1].ndim - 2)
    total = constant.view(-1, *trailing)
    for a, x in terms:
        total = torch.addcmul(total, a.view(-1, *trailing), x)
    return total.to(terms[0][1].dtype)


# --- elementwise --------------------------------------------------------------------------------


def through_relu(mode, input, inplace=False) -> Tensor:
    """A gate that is known to be constant: PyTorch sends back zeros through the forward pass."""
    return Gated.apply(input, inplace)


def through_relu_(mode, input) -> Tensor:
    return Gated.apply(input, True)


class Gated(Function):
    @staticmethod
    def forward(ctx, x, inplace):
        if inplace:
            ctx.mark_dirty(x)
        out = x.relu_() if inplace else x.relu()
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, out):
        return Gate.apply(out, ctx.saved_tensors[0].detach()), None


class Gate(Function):
    @staticmethod
    def forward(ctx, x, opens):
        ctx.save_for_backward(opens)
        return aten.threshold_backward(x, opens, 0.0)

    @staticmethod
    def backward(ctx, out):
        return Gate.apply(out, *ctx.saved_tensors), None


def through_hardsigmoid(mode, input, inplace=False) -> Tensor:
    """PyTorch's own cannot be differentiated twice."""
    out = F.relu6(input + 3) / 6
    return input.copy_(out) if inplace else out


REPLACED = {
    F.conv2d: through_conv2d,
    F.batch_norm: through_batch_norm,
    F.relu: through_relu,
    torch.relu: through_relu,
    torch.Tensor.relu: through_relu,
    torch.relu_: through_relu_,
    torch.Tensor.relu_: through_relu_,
    F.hardsigmoid: through_hardsigmoid,
}
