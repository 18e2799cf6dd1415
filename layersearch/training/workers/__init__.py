"""Processes that train trials, on this machine or on Ray."""
