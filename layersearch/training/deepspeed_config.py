"""DeepSpeed's configuration of a trial: the recipe's JSON file, checked and completed."""

import warnings
from pathlib import Path
from typing import Any

from layersearch.config.training import TrainingConfig
from layersearch.errors import ConfigError, one_line, require
from layersearch.files import parse_json


def _read(path: Path) -> dict[str, Any]:
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a DeepSpeed JSON ({error}); correct it") from None
    require(isinstance(config, dict), f"{path}: a DeepSpeed JSON holds a mapping; correct it")
    zero = config.get("zero_optimization", {})
    require(isinstance(zero, dict), f"{path}: zero_optimization must be a mapping, not {zero!r}; correct it")
    stage = zero.get("stage", 0)
    known = type(stage) is int and stage in (0, 1, 2, 3)
    require(known, f"{path}: zero_optimization.stage must be 0, 1, 2 or 3, not {stage!r}")
    return config


def _is_auto(given: Any) -> bool:
    """Return whether a value leaves everything to the recipe, as files for transformers do; a type is only a name."""
    if isinstance(given, dict):
        return "auto" in str(given) and all(_is_auto(value) for name, value in given.items() if name != "type")
    return given == "auto"


def _parts(config: dict[str, Any]) -> int:
    """Return into how many parts a step cuts a rank's sequences; 0: the file says none that can be."""
    given = config.get("gradient_accumulation_steps", "auto")
    return 1 if _is_auto(given) else given if type(given) is int else 0


def _check_recomputation(config: dict[str, Any], path: Path) -> None:
    """Refuse parts of DeepSpeed's activation checkpointing that are not done here."""
    given = config.get("activation_checkpointing")
    require(
        given is None or isinstance(given, dict),
        f"{path}: activation_checkpointing must be a mapping, not {given!r}; correct it",
    )
    wanted = sorted(key for key, value in (given or {}).items() if value and key != "profile")
    require(
        not wanted,
        f"{path}: activation_checkpointing.{''.join(wanted[:1])} is not done here: layers are recomputed in the "
        "backward pass, and nothing else; remove the key",
    )


def deepspeed_config(training: TrainingConfig, path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON and add the recipe's settings.

    Raises:
        ConfigError: if the file is not JSON, or contradicts the recipe; names the key.
    """
    config = _read(path)
    rows, parts = training.batch_size // training.ranks, _parts(config)
    require(
        parts > 0 and rows % parts == 0,
        f"{path}: gradient_accumulation_steps {parts} must divide the {rows} sequences that a rank has in each step "
        "(training.batch_size / training.ranks)",
    )
    _check_recomputation(config, path)
    owned: dict[str, Any] = {
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": rows // parts,
        "gradient_accumulation_steps": parts,
        "gradient_clipping": training.grad_clip,
    }
    if training.precision == "bf16":
        owned["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    # A DeepSpeed file may omit the recipe's keys, or give "auto" (inside them too) or the same value.
    theirs = []
    for key in (*owned, "torch_autocast", "bf16", "fp16", "optimizer", "scheduler"):
        given = config.pop(key, "auto")
        if not _is_auto(given) and given != owned.get(key):
            theirs.append(key)
    if theirs:
        belong, them = ("belongs", "it") if len(theirs) == 1 else ("belong", "them")
        raise ConfigError(
            f'{path}: {", ".join(theirs)} {belong} to the recipe (training.*); remove {them} or write "auto"'
        )
    if config.get("zero_optimization", {}).get("stage", 0):
        require(
            training.optimizer != "muon",
            f"training.optimizer muon needs whole matrices, but training.deepspeed {training.deepspeed} shards "
            "them: use a file of ZeRO stage 0, or set training.optimizer=adamw",
        )
        config["zero_allow_untested_optimizer"] = True  # torch's AdamW; DeepSpeed's would compile C++
        if config["zero_optimization"].get("offload_optimizer"):
            config.setdefault("zero_force_ds_cpu_optimizer", False)  # the same, where the moments lie on the CPU
    return config | owned | {"steps_per_print": 2**31}


def check_with_deepspeed(config: dict[str, Any], training: TrainingConfig) -> None:
    """Let DeepSpeed check its configuration first, so that an error there does not count as a failed trial.

    Raises:
        ConfigError: if DeepSpeed refuses it.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            DeepSpeedConfig(config)
    except Exception as error:  # pydantic's and several of DeepSpeed's
        refused = f"training.deepspeed {training.deepspeed}: DeepSpeed refuses it ({one_line(error)}); correct it"
        raise ConfigError(refused) from None


def zero_stage(path: Path) -> int:
    """Return the ZeRO stage of a DeepSpeed JSON; raises ConfigError if it is not JSON or the stage does not exist."""
    return int(_read(path).get("zero_optimization", {}).get("stage", 0))
