"""layersearch: find which layers need full attention, and the cheapest span the others can live with."""

__version__ = "0.1.0"
