# The map of public names: `layersearch/__init__.py` reads it, and loads each name when it is first used.
from .config.recipe import Recipe as Recipe
from .config.recipe import load_recipe as load_recipe
from .errors import (
    ConfigError as ConfigError,
)
from .errors import (
    DataError as DataError,
)
from .errors import (
    ExportError as ExportError,
)
from .errors import (
    LayersearchError as LayersearchError,
)
from .errors import (
    RunFolderError as RunFolderError,
)
from .errors import (
    UserError as UserError,
)
from .model.attention import (
    attend as attend,
)
from .model.attention import (
    reference_attention as reference_attention,
)
from .model.attention import (
    span_mask as span_mask,
)
from .results.analyze import analyse as analyse
from .results.analyze import analyze as analyze
from .results.result import Result as Result
from .schedule import Schedule as Schedule
from .schedule import Span as Span
from .schedule import presets as presets
from .schedule.bound_space import BoundSpace as BoundSpace
from .schedule.cost import (
    attention_flops as attention_flops,
)
from .schedule.cost import (
    budget_ratio as budget_ratio,
)
from .schedule.cost import (
    kv_cache_bytes as kv_cache_bytes,
)
from .schedule.space import Space as Space
from .schedule.space import load_space as load_space
from .study.benchmark import load_bench as load_bench
from .study.search import search as search
from .surrogate.sampler import ScheduleSampler as ScheduleSampler
from .version import __version__ as __version__
