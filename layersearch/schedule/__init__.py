"""Schedules: one span per layer, their exact cost, and the spaces they are searched in. Pure Python."""

from layersearch.schedule.schedule import GRAMMAR, KINDS, MOST_LAYERS, Schedule, Span, SpanKind  # isort: skip
from layersearch.schedule import presets  # after the names it imports from here

__all__ = ["GRAMMAR", "KINDS", "MOST_LAYERS", "Schedule", "Span", "SpanKind", "presets"]
