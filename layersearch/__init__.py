"""Find which layers need full attention, and the cheapest span the others can live with.

Public names load what they need when they are first used: ``import layersearch`` itself imports nothing heavy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
