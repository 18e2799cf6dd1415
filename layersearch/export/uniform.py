"""Stock families that have one span for all layers: a window in every layer, or in none."""

from dataclasses import dataclass

from layersearch.export.capabilities import Capabilities
from layersearch.export.families import Family


@dataclass(frozen=True, kw_only=True)
class UniformFamily(Family):
    """A family whose ``sliding_window`` holds in every layer. Its model ignores ``layer_types``, its cache does not."""

    @property
    def capabilities(self) -> Capabilities:
        """Which spans the configuration supports."""
        return Capabilities(name=f"family {self.name}", uniform=True)


_FAMILIES = (
    UniformFamily(model_type="mistral"),
    UniformFamily(model_type="mixtral"),
    UniformFamily(model_type="phi3"),
    UniformFamily(model_type="starcoder2"),
    UniformFamily(model_type="qwen3_moe", sparse_flags={"use_sliding_window": True}),
)
UNIFORM = {family.model_type: family for family in _FAMILIES}  # by model type
