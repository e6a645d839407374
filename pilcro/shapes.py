"""Array shapes for signatures: jaxtyping where it is installed, plain tensors where it is not.

Shapes are documentation first. The tests install jaxtyping and beartype and check them at run time;
a reader's machine (Colab, say) needs neither.
"""

from torch import Tensor

try:
    from jaxtyping import Float
except ModuleNotFoundError:

    class Float:  # type: ignore[no-redef]
        """Stands in for ``jaxtyping.Float``: ``Float[Tensor, "h w"]`` is ``Tensor``."""

        def __class_getitem__(cls, item: tuple[type, str]) -> type:
            return item[0]


Map = Float[Tensor, "height width"]
Images = Float[Tensor, "batch channels height width"]
