"""The slow definition: walk every path from an output unit to the image, one kernel cell at a time.

Plain Python on integers; shares no code with pilcro.second_moments.
"""

import math
from dataclasses import dataclass


@dataclass
class Layer:
    """One convolution; ``squared`` is its W^2 as nested lists [out][in per group][row][column]."""

    squared: list
    stride: tuple[int, int]
    padding: tuple[int, int]
    circular: bool
    dilation: tuple[int, int]
    groups: int

    @property
    def kernel(self):
        return len(self.squared[0][0]), len(self.squared[0][0][0])

    def output_size(self, size):
        return tuple(
            math.floor((n + 2 * p - d * (k - 1) - 1) / s) + 1
            for n, p, d, k, s in zip(
                size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )

    def steps_back(self, unit, size):
        """Every (unit of the input, W^2) that an output unit reads; ``size`` is the input's."""
        channel, row, column = unit
        per_group_in = len(self.squared[0])
        group = channel // (len(self.squared) // self.groups)
        for i in range(per_group_in):
            for a in range(self.kernel[0]):
                for b in range(self.kernel[1]):
                    y = row * self.stride[0] + a * self.dilation[0] - self.padding[0]
                    x = column * self.stride[1] + b * self.dilation[1] - self.padding[1]
                    if self.circular:
                        y, x = y % size[0], x % size[1]
                    if 0 <= y < size[0] and 0 <= x < size[1]:
                        yield (group * per_group_in + i, y, x), self.squared[channel][i][a][b]


def importance(layers, size):
    """[row][column]: sum over paths of the product of W^2, over the number of outputs."""
    sizes = [size]
    for layer in layers:
        sizes.append(layer.output_size(sizes[-1]))
    total = [[0.0] * size[1] for _ in range(size[0])]

    def walk(unit, depth, product):
        if depth == 0:
            _, row, column = unit
            total[row][column] += product
            return
        for before, squared in layers[depth - 1].steps_back(unit, sizes[depth - 1]):
            walk(before, depth - 1, product * squared)

    outputs = [
        (c, y, x)
        for c in range(len(layers[-1].squared))
        for y in range(sizes[-1][0])
        for x in range(sizes[-1][1])
    ]
    for unit in outputs:
        walk(unit, len(layers), 1.0)
    return [[value / len(outputs) for value in row] for row in total]


def paths(layers, size):
    """An upper bound on the number of paths that ``importance`` walks."""
    for layer in layers:
        size = layer.output_size(size)
    cells = [len(la.squared[0]) * la.kernel[0] * la.kernel[1] for la in layers]
    return len(layers[-1].squared) * size[0] * size[1] * math.prod(cells)
