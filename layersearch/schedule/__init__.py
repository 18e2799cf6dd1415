"""Schedules: one span per layer, their exact cost, and the spaces they are searched in. Pure Python."""

from layersearch.schedule import presets
from layersearch.schedule.schedule import MOST_LAYERS, Schedule
from layersearch.schedule.span import Span, SpanKind
from layersearch.schedule.span_text import GRAMMAR, KINDS
from layersearch.schedule.stretch import stretch

__all__ = ["GRAMMAR", "KINDS", "MOST_LAYERS", "Schedule", "Span", "SpanKind", "presets", "stretch"]
