"""Executors: how the engine's one step runs over many tensors, and how results are stored."""

from filteropt.execute.items import Executor, Item, write
from filteropt.execute.loop import loop
from filteropt.execute.plan import Ahead, Batch, plan, require_prediction
from filteropt.execute.update import update

__all__ = [
    "Ahead",
    "Batch",
    "Executor",
    "Item",
    "loop",
    "plan",
    "require_prediction",
    "update",
    "write",
]
