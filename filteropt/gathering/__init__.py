"""Gathering what a filter needs beside the gradient: who does it, and how.

A part's ``source`` names one of ``sources.SOURCES``, which :class:`Gathering` asks at every
step. What is gathered in backward passes is kept in a :class:`Ledger`, which follows the gradient
in everything that is done to it.
"""

from filteropt.gathering.example_squares import ExampleSquares
from filteropt.gathering.layer_watch import LayerWatch
from filteropt.gathering.ledger import Ledger
from filteropt.gathering.recorder import Recorder
from filteropt.gathering.sources import Gathering

__all__ = ["ExampleSquares", "Gathering", "LayerWatch", "Ledger", "Recorder"]
