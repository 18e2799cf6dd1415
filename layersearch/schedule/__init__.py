"""Schedules: one span per layer, their exact cost, and the spaces they are searched in. Pure Python."""

from layersearch.schedule import presets
from layersearch.schedule.schedule import GRAMMAR, KINDS, MOST_LAYERS, Schedule, Span, SpanKind
from layersearch.schedule.stretch import stretch

__all__ = ["GRAMMAR", "KINDS", "MOST_LAYERS", "Schedule", "Span", "SpanKind", "presets", "stretch"]
