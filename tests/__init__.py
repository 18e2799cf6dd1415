"""The tests; `tests/README.md` says how they are laid out."""
