"""Put exported files through the engines' own code, as far as that runs without a GPU.

    pip install --no-deps --target ENGINES litgpt==0.5.13 torchtitan==0.3.0 \
        lightning lightning-utilities torchmetrics spmd_types tyro docstring_parser typeguard
    # unpack, not install, into ENGINES too (336 MB, 39 MB and 2 MB): the wheels of vllm==0.33.0, sglang==0.5.23 and
    # megatron-core==0.19.2, which is for Python 3.12 and newer
    python analysis/engines/check.py ENGINES        # about a minute; writes record.json beside this file

Each engine must make of each file the schedule's own mask, pair by pair. What was run is said in the record.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import random
import runpy
import shlex
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from layersearch.config.model import ModelConfig
from layersearch.export import export
from layersearch.export.engines import ENGINES
from layersearch.schedule import Schedule, Span

TOKENS, SCHEDULES, N_LAYERS = 29, 20, 4
SIZE = ModelConfig(n_layers=N_LAYERS, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48)


def alone(name: str, folder: Path) -> None:
    """Let a package's modules be imported without running its ``__init__``, which wants much that they do not."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder / name)]
    sys.modules[name] = package


def without_triton() -> None:
    """Replace the compiler of GPU kernels, which a configuration does not need."""
    torch.compile(torch.sin)  # torch's own compiler must see that there is none
    for name in ("triton", "triton.language"):
        sys.modules[name] = mock.MagicMock(__spec__=None, __version__="3.4.0")


def litgpt(folder: Path) -> tuple[str, Callable[[Path], list[Tensor]]]:
    alone("litgpt", folder)
    config_module, model_module = importlib.import_module("litgpt.config"), importlib.import_module("litgpt.model")

    def masks(path: Path) -> list[Tensor]:
        torch.manual_seed(0)
        model = model_module.GPT(config_module.Config.from_file(path)).double()
        seen: list[Tensor] = []
        for block in model.transformer.h:
            x = torch.randn(1, TOKENS, SIZE.d_model, dtype=torch.float64)
            moved = x.repeat(TOKENS, 1, 1)
            moved[range(TOKENS), range(TOKENS)] += torch.randn(TOKENS, SIZE.d_model, dtype=torch.float64)
            cos, sin = model.cos[None, :TOKENS].double(), model.sin[None, :TOKENS].double()
            with torch.no_grad():
                change = block.attn(moved, cos, sin, None, None) - block.attn(x, cos, sin, None, None)
            seen.append(change.abs().amax(-1).T > 1e-12)
        return seen

    return "Config.from_file; each layer's attention of the GPT it builds, by changing one key at a time", masks


def megatron(folder: Path) -> tuple[str, Callable[[Path], list[Tensor]]]:
    without_triton()
    utils = importlib.import_module("megatron.core.transformer.utils")
    config_module = importlib.import_module("megatron.core.transformer.transformer_config")
    ones = torch.ones

    def masks(path: Path) -> list[Tensor]:
        words = shlex.split(path.read_text(), comments=True)
        given = dict(zip(words[::2], words[1::2], strict=True))
        size, pattern = given.get("--window-size"), given.get("--window-attn-skip-freq")
        config = config_module.TransformerConfig(
            num_layers=N_LAYERS,
            hidden_size=32,
            num_attention_heads=4,
            window_size=size and tuple(int(part) for part in size.split(",")),
            window_attn_skip_freq=pattern and json.loads(pattern),
        )
        found = []
        for number in range(1, N_LAYERS + 1):
            windowed = utils.is_layer_window_attention(config.window_size, config.window_attn_skip_freq, number)
            with mock.patch.object(torch, "ones", lambda *s, device, **k: ones(*s, **k)):  # its device is "cuda"
                hidden = (
                    utils.get_sliding_window_causal_mask(TOKENS, TOKENS, config.window_size)
                    if windowed
                    else ones(TOKENS, TOKENS).triu(1).bool()
                )
            found.append(~hidden)
        return found

    return "TransformerConfig, is_layer_window_attention and get_sliding_window_causal_mask", masks


def torchtitan(folder: Path) -> tuple[str, Callable[[Path], list[Tensor]]]:
    without_triton()
    llama3 = importlib.import_module("torchtitan.models.llama3")

    def masks(path: Path) -> list[Tensor]:
        built = llama3.llama3_configs["debugmodel"]("varlen")
        config = importlib.import_module("dataclasses").replace(built, layers=built.layers[:N_LAYERS])
        found = runpy.run_path(str(path))["with_windows"](config)
        distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)[None, :]
        windows = [layer.attention.inner_attention.window_size for layer in found.layers]
        return [(distance >= -right) & ((distance <= left) | (left < 0)) for left, right in windows]

    return "with_windows on the configuration of its llama3 debug model; the kernel itself needs a GPU", masks


def serving(path: Path, overrides: dict[str, Any]) -> list[Tensor]:
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)[None, :]
    window = overrides.get("sliding_window", TOKENS)
    near = {"full_attention": distance >= 0, "sliding_attention": (distance >= 0) & (distance < window)}
    return [near[kind] for kind in overrides["layer_types"]]


def vllm(folder: Path) -> tuple[str, Callable[[Path], list[Tensor]]]:
    parser = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
    parser.add_argument("--hf-overrides", type=json.loads)
    parser.add_argument("--model-impl")

    def masks(path: Path) -> list[Tensor]:
        return serving(path, parser.parse_args(["serve", "--config", str(path)][1:]).hf_overrides)

    return "its parser of --config files; the attention needs a GPU", masks


def sglang(folder: Path) -> tuple[str, Callable[[Path], list[Tensor]]]:
    file = folder / "sglang/srt/utils/server_args_config_parser.py"
    spec = importlib.util.spec_from_file_location("sglang_config_parser", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parser = argparse.ArgumentParser()
    parser.add_argument("--json-model-override-args", type=json.loads)
    parser.add_argument("--config")

    def masks(path: Path) -> list[Tensor]:
        words = module.ConfigArgumentMerger(parser).merge_config_with_args(["--config", str(path)])
        return serving(path, parser.parse_args(words).json_model_override_args)

    return "its parser of --config files; the attention needs a GPU", masks


CHECKS = {"litgpt": litgpt, "megatron": megatron, "torchtitan": torchtitan, "vllm": vllm, "sglang": sglang}
FAMILY = {"vllm": "llama", "sglang": "gemma3"}


def drawn(target: str, chance: random.Random) -> Schedule:
    """Return a random schedule that the engine supports."""
    engine = ENGINES[target]
    one = chance.randint(engine.min_window, TOKENS)
    sizes = [chance.randint(engine.min_window, TOKENS) if engine.size_per_layer else one for _ in range(N_LAYERS)]
    return Schedule(tuple(Span(kind="window", size=n) if chance.random() < 0.6 else Span(kind="full") for n in sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path, help="the folder that holds the engines' packages")
    folder = parser.parse_args().engines
    sys.path.insert(0, str(folder))
    at = torch.arange(TOKENS)
    record: dict[str, Any] = {}
    for target, check in CHECKS.items():
        chance = random.Random(target)
        ran, masks = check(folder)
        agreed = 0
        for _ in range(SCHEDULES):
            schedule = drawn(target, chance)
            with tempfile.TemporaryDirectory() as out:
                path, _ = export(
                    schedule,
                    target,
                    model=SIZE,
                    vocab_size=61,
                    seq_len=TOKENS,
                    out=Path(out),
                    family=FAMILY.get(target),
                )
                found = masks(path)
            wanted = [span.visible(at[:, None], at[None, :]) for span in schedule]
            agreed += all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        record[target] = {"release": ENGINES[target].release, "schedules": SCHEDULES, "agreed": agreed, "ran": ran}
        print(f"{ENGINES[target].name}: {agreed} of {SCHEDULES} schedules agree in every pair. Ran: {ran}")
    Path(__file__).with_name("record.json").write_text(json.dumps(record, indent=1) + "\n")
    if any(one["agreed"] != one["schedules"] for one in record.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
