"""Conversion: a pre-trained model gets another schedule and is trained on (MASFormer's way, 2310.12442)."""
