"""Tokens dealt into one row per residue, as a dilated window or a stride sees them.

Shape legend: B batch, H heads, T tokens, D head width, R residues.
"""

import torch.nn.functional as F
from torch import Tensor


def deal(x: Tensor, residues: int) -> Tensor:
    """Deal tokens into one row per residue, zeros at the end: (B, H, T, D) -> (B*H*R, ceil(T/R), D), contiguous."""
    batch, heads, tokens, width = x.shape
    length = -(-tokens // residues)
    if length * residues != tokens:
        x = F.pad(x, (0, 0, 0, length * residues - tokens))
    dealt = x.reshape(batch, heads, length, residues, width).transpose(2, 3)
    return dealt.reshape(batch * heads * residues, length, width).contiguous()


def gather(x: Tensor, batch: int, residues: int, tokens: int) -> Tensor:
    """Undo `deal`: (B*H*R, ceil(T/R), D) -> (B, H, T, D)."""
    _, length, width = x.shape
    dealt = x.reshape(batch, -1, residues, length, width).transpose(2, 3)
    return dealt.reshape(batch, -1, length * residues, width)[:, :, :tokens]
