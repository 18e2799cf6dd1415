"""Encoders of transformers: what their configurations hold of a schedule, written, edited and read."""

from layersearch.export.encoders.edit import edit_encoder
from layersearch.export.encoders.family import ENCODERS, EncoderFamily, default_encoder, find_encoder, is_encoder_file
from layersearch.export.encoders.reading import encoder_schedule, encoder_sizes
from layersearch.export.encoders.writing import encoder_text, usage

__all__ = [
    "ENCODERS",
    "EncoderFamily",
    "default_encoder",
    "edit_encoder",
    "encoder_schedule",
    "encoder_sizes",
    "encoder_text",
    "find_encoder",
    "is_encoder_file",
    "usage",
]
