"""Recipes and the YAML loader."""
