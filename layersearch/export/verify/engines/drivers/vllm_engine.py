"""vLLM on a CPU: the folder as ``vllm.LLM`` serves it, with the overrides of an exported ``vllm.yaml``."""

import os
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the engine stays in this process, where its cache can be asked
    VLLM_HOST_IP="127.0.0.1",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
)
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import torch
import vllm
from engine_clock import now, seconds


def version() -> str:
    """Return the releases that ran."""
    return f"vllm {vllm.__version__} (torch {torch.__version__})"


class Model:
    """One served folder. ``options``: ``overrides`` of config.json, ``impl``, ``room`` for new tokens, ``chunk``."""

    def __init__(self, path: str, longest: int, options: dict[str, Any]) -> None:
        self._chunk = options.get("chunk", 512)
        self._llm = vllm.LLM(
            model=path,
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=longest + options["room"],
            enforce_eager=True,
            hf_overrides=options.get("overrides", {}),
            model_impl=options.get("impl") or "auto",
            enable_prefix_caching=False,
            max_num_seqs=2,
            max_num_batched_tokens=self._chunk,
            disable_log_stats=True,
        )

    def _run(self, ids: list[int], new: int, **wanted: Any) -> Any:
        sampling = vllm.SamplingParams(max_tokens=new, temperature=0, detokenize=False, ignore_eos=True, **wanted)
        return self._llm.generate([{"prompt_token_ids": ids}], sampling, use_tqdm=False)[0]

    def logprobs(self, ids: list[int]) -> list[float]:
        """Return the log-probability of each token but the first."""
        rows = self._run(ids, 1, prompt_logprobs=0).prompt_logprobs[1:]
        return [float(row[token].logprob) for token, row in zip(ids[1:], rows, strict=True)]

    def generate(self, ids: list[int], new: int) -> tuple[list[int], list[float]]:
        """Return greedy tokens and their log-probabilities."""
        out = self._run(ids, new, logprobs=0).outputs[0]
        tokens = [int(token) for token in out.token_ids]
        return tokens, [float(row[token].logprob) for token, row in zip(tokens, out.logprobs, strict=True)]

    def bench(self, ids: list[int], new: int) -> dict[str, Any]:
        """Return seconds of prefill and decoding, and the bytes of the cache blocks that the text holds at its end."""
        engine = self._llm.llm_engine
        core = engine.engine_core.engine_core
        pool, config = core.scheduler.kv_cache_manager.block_pool, core.scheduler.kv_cache_config
        # All groups of layers take blocks of one pool; a block holds as many layers as the largest group.
        block = max(len(group.layer_names) * group.kv_cache_spec.page_size_bytes for group in config.kv_cache_groups)
        free = pool.get_num_free_blocks()
        sampling = vllm.SamplingParams(max_tokens=new + 1, temperature=0, detokenize=False, ignore_eos=True)
        start = now()
        engine.add_request(f"bench-{start[0]}", {"prompt_token_ids": ids}, sampling)
        made, first, held = 0, start, 0
        while engine.has_unfinished_requests():
            held = max(free - pool.get_num_free_blocks(), 0) or held
            for out in engine.step():
                made = len(out.outputs[0].token_ids)
                if made == 1:
                    first = now()
        end = now()
        return {
            **seconds(start, first, end),
            "kv_bytes": held * block,
            "kv_value_bytes": 4,
            "groups": [len(group.layer_names) for group in config.kv_cache_groups],
        }
