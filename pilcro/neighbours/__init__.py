"""Four other answers to the question which places, colours and features a network may use."""

from pilcro.neighbours import position_rules  # noqa: F401 - the closed form knows the layers
from pilcro.neighbours.breadth import attribution_spread, neuron_coverage
from pilcro.neighbours.controls import CoordinateChannels, wide_filters
from pilcro.neighbours.edge_filters import FILTERS, EdgeFilterConv2d
from pilcro.neighbours.locally_connected import LocallyConnected2d, locally_connected2d
from pilcro.neighbours.loco import centre_edge_ratio, loco_decay, loco_penalty
from pilcro.neighbours.low_rank import LowRankLocallyConnected2d, low_rank_conv2d
from pilcro.neighbours.relevance import ClassSummary, Explanation, explain, summarise
from pilcro.neighbours.sgdrop import SGDrop, drop_nothing, drop_salient

__all__ = [
    "FILTERS",
    "ClassSummary",
    "CoordinateChannels",
    "EdgeFilterConv2d",
    "Explanation",
    "LocallyConnected2d",
    "LowRankLocallyConnected2d",
    "SGDrop",
    "attribution_spread",
    "centre_edge_ratio",
    "drop_nothing",
    "drop_salient",
    "explain",
    "locally_connected2d",
    "loco_decay",
    "loco_penalty",
    "low_rank_conv2d",
    "neuron_coverage",
    "summarise",
    "wide_filters",
]
