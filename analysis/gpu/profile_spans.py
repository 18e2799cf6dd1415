"""Where FlexAttention's time goes on CUDA: kernels on the device against the whole call, by batch size and block size."""

import sys

import torch

sys.path.insert(0, "analysis/gpu")
from speed import milliseconds
from torch.nn.attention.flex_attention import create_block_mask

from layersearch.model.attention import flex
from layersearch.model.attention.dispatch import attend
from layersearch.schedule import Span

d = "cuda:0"


def inputs(b, t=8192, h=12, w=64):
    xs = [torch.randn(b, t, h, w, device=d, dtype=torch.bfloat16).transpose(1, 2) for _ in range(4)]
    return [x.requires_grad_() for x in xs[:3]], xs[3]


def device_ms(call, n=5):
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        for _ in range(n):
            call()
        torch.cuda.synchronize()
    ev = sorted(
        ((e.self_device_time_total / n / 1e3, e.count // n, e.key[:60]) for e in p.key_averages()), reverse=True
    )
    return round(sum(e[0] for e in ev), 3), [(round(a, 3), c, k) for a, c, k in ev[:5]]


out = []
for b in (4, 16):
    leaves, g = inputs(b)
    for text, kernel in (
        ("full", "flash"),
        ("full", "flex"),
        ("window:256", "flex"),
        ("window:512", "flex"),
        ("window:1024", "flex"),
    ):
        s = Span.parse(text)
        call = lambda: torch.autograd.grad(attend(*leaves, s, kernel=kernel), leaves, g)
        ms = milliseconds(call, d, 10)
        dev, top = device_ms(call)
        out.append((b, text, kernel, round(ms, 3), dev))
        print(out[-1], top, flush=True)
    s = Span.parse("window:256")
    for size in ((64, 64), (128, 64), (64, 128)):
        try:
            mask = create_block_mask(
                flex.mask_mod(s), B=None, H=None, Q_LEN=8192, KV_LEN=8192, device=d, BLOCK_SIZE=size
            )
            call = lambda: torch.autograd.grad(flex._compiled()(*leaves, block_mask=mask), leaves, g)
            ms = milliseconds(call, d, 10)
            dev, top = device_ms(call)
            print(b, "window:256 blocks", size, round(ms, 3), dev, top[:3], flush=True)
        except Exception as e:
            print(size, type(e).__name__, str(e)[:200], flush=True)
