"""The table of rules: what each operation does to second moments. One small function each.

A rule takes what the torch function takes, with a :class:`SecondMoment` in place of the tensor that
depends on the image. Chapter 2 derives those for convolutions and padding.
"""

from pilcro.rules import activations, attention, layers, moving, normalisation, pooling  # noqa: F401
