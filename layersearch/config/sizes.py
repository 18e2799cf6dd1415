"""Ranges of the numbers in a recipe."""

from typing import Annotated

from pydantic import Field

AtLeast2 = Annotated[int, Field(ge=2)]
# Larger sizes are a typing error, and would be found out only after minutes, when the memory is full.
Layers = Annotated[int, Field(ge=1, le=10_000)]
Width = Annotated[int, Field(ge=1, le=10_000_000)]
Tokens = Annotated[int, Field(ge=2, le=100_000_000)]
Vocabulary = Annotated[int, Field(ge=2, le=100_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Processes = Annotated[int, Field(ge=1, le=10_000)]
MOST_TOKENS = 10_000_000_000
"""Most tokens of a batch or of the validation set."""
Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
