"""The answer to an exercise against the expected one: says how they differ, never stops a run."""

import torch
from torch import Tensor


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
        print("not yet: the answer is still None")
        return False
    want = torch.as_tensor(expected).detach().double().cpu()
    try:
        have = torch.as_tensor(got).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError):
        print(f"not yet: expected numbers, got {got!r}")
        return False
    if have.shape != want.shape:
        print(f"not yet: expected shape {tuple(want.shape)}, got {tuple(have.shape)}")
        return False
    if torch.allclose(have, want, rtol=0, atol=rtol * float(want.abs().max())):
        print("right")
        return True
    if want.ndim == 2:
        print("not yet: here is what was expected and what you got")
        side_by_side(want, have)
    else:
        print(f"not yet: expected {rounded(want)}, got {rounded(have)}")
    return False


def rounded(values: Tensor) -> object:
    if values.ndim == 0:
        return float(f"{float(values):.5g}")
    return [rounded(value) for value in values]


def side_by_side(expected: Tensor, got: Tensor) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(6, 2.6), layout="constrained")
    low, high = float(expected.min()), float(expected.max())
    for ax, title, values in zip(axes, ("expected", "got"), (expected, got), strict=True):
        image = ax.imshow(values.numpy(), cmap="cividis", vmin=min(low, 0), vmax=high)
        ax.set(title=title, xlabel="column (pixels)", ylabel="row (pixels)")
    figure.colorbar(image, ax=axes, label="importance")
    plt.show()
