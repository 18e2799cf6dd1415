"""Conversion: a pre-trained model gets another schedule and is trained further (as MASFormer, 2310.12442)."""
