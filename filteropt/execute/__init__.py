"""Executors: how the engine's one step runs over many tensors, and how results are stored."""

from filteropt.execute.bucketed import bucketed
from filteropt.execute.choice import capture_objection, choose, is_elementwise, objection
from filteropt.execute.chunked import chunked
from filteropt.execute.fused import captured, fused, replayed
from filteropt.execute.inductor import compiler_options
from filteropt.execute.items import Ahead, Item, write
from filteropt.execute.loop import loop
from filteropt.execute.plan import Batch, plan, require_prediction
from filteropt.execute.rows import side_by_side
from filteropt.execute.standing import Standing, Standings
from filteropt.execute.update import update

__all__ = [
    "Ahead",
    "Batch",
    "Item",
    "Standing",
    "Standings",
    "bucketed",
    "capture_objection",
    "captured",
    "choose",
    "chunked",
    "compiler_options",
    "fused",
    "is_elementwise",
    "loop",
    "objection",
    "plan",
    "replayed",
    "require_prediction",
    "side_by_side",
    "update",
    "write",
]
