"""Importance landscapes of convolutional networks."""

from pilcro.curvature import curvature
from pilcro.landscape import Landscape, closed_form, monte_carlo, on_data
from pilcro.objective import PObjective
from pilcro.second_moments import UnsupportedOperation, second_moment_rule
from pilcro.untouched import draw_network

__all__ = [
    "Landscape",
    "PObjective",
    "UnsupportedOperation",
    "closed_form",
    "curvature",
    "draw_network",
    "monte_carlo",
    "on_data",
    "second_moment_rule",
]
