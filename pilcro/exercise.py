"""The answer to an exercise against the expected one: says how they differ, never stops a run."""

import torch
from torch import Tensor

READABLE = 40  # numbers in a line


def not_yet(reason: str) -> bool:
    """Say why an answer does not count yet; returns False, as ``check`` does.

    >>> not_yet("your net uses circular padding")
    not yet: your net uses circular padding
    False
    """
    print(f"not yet: {reason}")
    return False


def check(got: object, expected: Tensor | float, *, rtol: float = 1e-4) -> bool:
    """Print "right", or "not yet" with expected and got; maps are also drawn.

    Args:
        got: the answer, None as long as there is none.
        expected: a number or a tensor.
        rtol: allowed difference, relative to the largest expected value.

    >>> check(None, 3.0)
    not yet: the answer is still None
    False
    >>> check(torch.tensor(3.0), 3.0)
    right
    True
    """
    if got is None:
        return not_yet("the answer is still None")
    want = torch.as_tensor(expected).detach().double().cpu()
    try:
        have = torch.as_tensor(got).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError):
        return not_yet(f"expected numbers, got {got!r}")
    if have.shape != want.shape:
        return not_yet(f"expected shape {tuple(want.shape)}, got {tuple(have.shape)}")
    if torch.allclose(have, want, rtol=0, atol=rtol * float(want.abs().max())):
        print("right")
        return True
    if want.ndim == 2:
        means = f"mean {rounded(want.mean())}", f"mean {rounded(have.mean())}"
        not_yet(f"here is what was expected ({means[0]}) and what you got ({means[1]})")
        side_by_side(want, have)
        return False
    if want.numel() <= READABLE:
        return not_yet(f"expected {rounded(want)}, got {rounded(have)}")
    worst = int((have - want).abs().argmax())
    pair = [rounded(values.flatten()[worst]) for values in (want, have)]
    return not_yet(f"of {want.numel()} numbers number {worst} is furthest off: "
                   f"expected {pair[0]}, got {pair[1]}")  # fmt: skip


def rounded(values: Tensor) -> object:
    if values.ndim == 0:
        return float(f"{float(values):.5g}")
    return [rounded(value) for value in values]


def side_by_side(expected: Tensor, got: Tensor) -> None:
    import matplotlib.pyplot as plt

    from pilcro.plot import COLOURS

    figure, axes = plt.subplots(1, 2, figsize=(6, 2.6), layout="constrained")
    low, high = float(expected.min()), float(expected.max())
    for ax, title, values in zip(axes, ("expected", "got"), (expected, got), strict=True):
        image = ax.imshow(values.numpy(), cmap=COLOURS, vmin=min(low, 0), vmax=high)
        ax.set(title=title, xlabel="column (pixels)", ylabel="row (pixels)")
    figure.colorbar(image, ax=axes, label="importance")
    plt.show()
