"""The proxy decoder, pre-trained models under a schedule, and their FLOPs."""
