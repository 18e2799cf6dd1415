"""llama.cpp: a GGUF file through the C interface of the library that the wheel ``xllamacpp`` carries.

The wheel's own interface is a server, which gives no log-probabilities of a prompt. The structures below are those of
build 11549. The library's default values are checked first, so that another layout is an error and no wrong number.
"""

import ctypes as c
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp
from engine_clock import now, seconds

BATCH = 512
_F32 = 0  # GGML_TYPE_F32


class _ModelParams(c.Structure):
    _fields_ = [
        *[(name, c.c_void_p) for name in ("devices", "tensor_buft_overrides")],
        *[(name, c.c_int32) for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")],
        *[(name, c.c_void_p) for name in ("tensor_split", "progress", "progress_data", "kv_overrides")],
        *[
            (name, c.c_bool)
            for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc", "mtp")
        ],
    ]


class _ContextParams(c.Structure):
    _fields_ = [
        *[(name, c.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")],
        *[(name, c.c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")],
        *[(name, c.c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")],
        *[(name, c.c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")],
        *[(name, c.c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")],
        *[(name, c.c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")],
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        *[(name, c.c_void_p) for name in ("cb_eval", "cb_eval_data")],
        *[(name, c.c_int32) for name in ("type_k", "type_v")],
        ("moe_cache_size", c.c_size_t),
        *[(name, c.c_void_p) for name in ("abort", "abort_data")],
        *[
            (name, c.c_bool)
            for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")
        ],
        ("samplers", c.c_void_p),
        ("n_samplers", c.c_size_t),
        ("ctx_other", c.c_void_p),
    ]


class _Batch(c.Structure):
    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


class _Override(c.Structure):
    """One integer that replaces a key of the file; its union is 128 bytes wide."""

    _fields_ = [("tag", c.c_int32), ("key", c.c_char * 128), ("value", c.c_int64), ("rest", c.c_char * 120)]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_model_default_params": (_ModelParams, []),
    "llama_context_default_params": (_ContextParams, []),
    "llama_model_load_from_file": (c.c_void_p, [c.c_char_p, _ModelParams]),
    "llama_init_from_model": (c.c_void_p, [c.c_void_p, _ContextParams]),
    "llama_model_get_vocab": (c.c_void_p, [c.c_void_p]),
    "llama_vocab_n_tokens": (c.c_int32, [c.c_void_p]),
    "llama_get_memory": (c.c_void_p, [c.c_void_p]),
    "llama_memory_clear": (None, [c.c_void_p, c.c_bool]),
    "llama_batch_init": (_Batch, [c.c_int32, c.c_int32, c.c_int32]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (c.c_int32, [c.c_void_p, _Batch]),
    "llama_get_logits": (c.POINTER(c.c_float), [c.c_void_p]),
    "llama_free": (None, [c.c_void_p]),
    "llama_backend_init": (None, []),
}

_LIBRARY = c.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
for _name, (_result, _arguments) in _SIGNATURES.items():
    getattr(_LIBRARY, _name).restype, getattr(_LIBRARY, _name).argtypes = _result, _arguments
_LOG: list[str] = []


def _log(level: int, text: bytes, data: Any) -> None:
    _LOG.append(text.decode(errors="replace"))


_keep = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(_log)  # a name of its own: the library does not keep it
_LIBRARY.llama_log_set(_keep, None)
_LIBRARY.llama_backend_init()


def version() -> str:
    """Return the releases that ran."""
    return f"llama.cpp b{metadata.version('xllamacpp').rpartition('.')[2]} (xllamacpp {metadata.version('xllamacpp')})"


def _check_layout(params: _ContextParams) -> None:
    """Refuse a library whose structures lie in another way: its defaults would be read from other places."""
    found = (params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max, params.flash_attn_type)
    flags = (params.embeddings, params.offload_kqv, params.op_offload, params.swa_full, params.yarn_beta_fast)
    types = (params.type_k, params.type_v, params.n_samplers, params.ctx_other)
    if (found, flags, types) != ((512, 2048, 512, 1, -1), (False, True, True, True, -1.0), (1, 1, 0, None)):
        raise RuntimeError(f"{version()} has other structures than build 11549: {found} {flags} {types}")


class Model:
    """One loaded file. ``options``: ``threads``, ``half`` for a half-precision cache, ``swa_full``, ``window``."""

    def __init__(self, path: str, longest: int, options: dict[str, Any]) -> None:
        self._options, self._context, self._at = options, None, 0
        params = _LIBRARY.llama_model_default_params()
        params.n_gpu_layers = 0
        if options.get("window"):
            self._overrides = (_Override * 2)()  # an empty key ends the list
            self._overrides[0].key = options["window_key"].encode()
            self._overrides[0].value = options["window"]
            params.kv_overrides = c.cast(self._overrides, c.c_void_p)
        self._model = _LIBRARY.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise RuntimeError(f"the file does not load: {_errors()}")
        self._vocab = _LIBRARY.llama_vocab_n_tokens(_LIBRARY.llama_model_get_vocab(self._model))

    def _open(self, longest: int, *, exact: bool = False) -> None:
        """Make a context, and with it a cache, of so many tokens; ``exact`` computes attention in single precision."""
        if self._context:
            _LIBRARY.llama_free(self._context)
        params = _LIBRARY.llama_context_default_params()
        _check_layout(params)
        threads = self._options.get("threads", 1)
        params.n_ctx, params.n_batch, params.n_ubatch = longest, BATCH, self._options.get("ubatch", BATCH)
        params.n_threads = params.n_threads_batch = threads
        params.swa_full = self._options.get("swa_full", False)
        if exact:
            params.flash_attn_type = 0  # the default, flash attention, rounds to half precision
        if not self._options.get("half"):
            params.type_k = params.type_v = _F32
        _LOG.clear()
        self._context = _LIBRARY.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"no context: {_errors()}")
        self._at = 0

    def _feed(self, ids: list[int], every: bool) -> Any:
        """Return logits (tokens, V) of every token, or of the last."""
        rows = []
        for first in range(0, len(ids), BATCH):
            part = ids[first : first + BATCH]
            batch = _LIBRARY.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            wanted = [every or first + i == len(ids) - 1 for i in range(len(part))]
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, self._at + i, 1
                batch.seq_id[i][0], batch.logits[i] = 0, wanted[i]
            code = _LIBRARY.llama_decode(self._context, batch)
            _LIBRARY.llama_batch_free(batch)
            if code:
                raise RuntimeError(f"llama_decode gave {code}: {_errors()}")
            self._at += len(part)
            if any(wanted):
                found = _LIBRARY.llama_get_logits(self._context)
                rows.append(np.ctypeslib.as_array(found, (sum(wanted), self._vocab)).astype(np.float64))
        logits = np.concatenate(rows)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def logprobs(self, ids: list[int]) -> list[float]:
        """Return the log-probability of each token but the first."""
        self._open(len(ids) + 8, exact=True)
        found = self._feed(ids, every=True)
        return found[np.arange(len(ids) - 1), ids[1:]].tolist()

    def generate(self, ids: list[int], new: int) -> tuple[list[int], list[float]]:
        """Return greedy tokens and their log-probabilities, token by token with the cache."""
        self._open(len(ids) + new + 8)
        best = self._feed(ids, every=False)[-1]
        tokens: list[int] = []
        logprobs: list[float] = []
        for _ in range(new):
            tokens.append(int(best.argmax()))
            logprobs.append(float(best.max()))
            best = self._feed(tokens[-1:], every=False)[-1]
        return tokens, logprobs

    def bench(self, ids: list[int], new: int) -> dict[str, Any]:
        """Return seconds of prefill and decoding, and the bytes of keys and values that the cache holds."""
        self._open(len(ids) + new + 8)
        log = "".join(_LOG)
        marks = [now()]
        best = self._feed(ids, every=False)[-1]
        marks.append(now())
        for _ in range(new):
            best = self._feed([int(best.argmax())], every=False)[-1]
        marks.append(now())
        held = sum(float(mib) for mib in re.findall(r"KV buffer size =\s*([\d.]+) MiB", log))
        cells = [int(count) for count in re.findall(r"(\d+) cells", log)]
        return {
            **seconds(*marks),
            "kv_bytes": round(held * 2**20),
            "kv_value_bytes": 2 if self._options.get("half") else 4,
            "cells": cells,
        }


def _errors() -> str:
    return " ".join("".join(_LOG[-6:]).split())
