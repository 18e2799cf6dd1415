"""A worker that trains nothing: it answers each trial at once, in the messages of layersearch's own worker."""

import dataclasses

from layersearch.config.loader import build
from layersearch.config.recipe import Recipe
from layersearch.training.record import Trial, blank_record
from layersearch.training.workers.channel import Channel

channel = Channel()
recipe = build(Recipe, channel.receive()["recipe"], "recipe")
channel.send(event="opened")
channel.send(event="ready")
while True:
    trial = build(Trial, channel.receive()["trial"], "trial")
    steps = recipe.training.steps
    made = {"state": "complete", "steps": steps, "loss": 2.5, "curve": ((steps, 2.5),)}
    channel.send(event="record", record=dataclasses.replace(blank_record(trial, recipe), **made).to_json())
