"""The model as lm-eval asks it: sums of log-likelihoods are those of its own logits under the schedule."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from layersearch.errors import ConfigError
from layersearch.schedule import Schedule
from layersearch.study.lm_eval_tasks import language_model
from tests.helpers.selections import layerwise, small_tokenizer, token_ids

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'layersearch[lm-eval]'")
SPARSE, END, MOST = Schedule.parse("full window:4 window:9+sink:2 block:8"), 0, 12


def test_rolling_log_likelihood_scores_each_token_once_in_windows_of_the_given_length() -> None:
    layers, ids = layerwise(), token_ids(0, 2 * MOST + 5)
    asked = language_model(layers, SPARSE, small_tokenizer(), END, MOST)
    asked.tok_encode = lambda string: ids.tolist()
    (found,) = asked.loglikelihood_rolling([SimpleNamespace(args=("any text",))])
    layers.decoder.set_schedule(SPARSE)
    whole, wanted = torch.cat([torch.tensor([END]), ids]), 0.0
    for start in range(0, len(ids), MOST):
        stop = min(start + MOST, len(ids))
        first = max(0, stop - MOST)  # the last window sees tokens before it
        with torch.no_grad():
            logits = layers.decoder.logits(whole[None, first:stop])[0, start - first :]
        wanted -= float(F.cross_entropy(logits, whole[start + 1 : stop + 1], reduction="sum"))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_task_that_generates_text_is_refused() -> None:
    asked = language_model(layerwise(), SPARSE, small_tokenizer(), END, MOST)
    with pytest.raises(ConfigError, match="generates text"):
        asked.generate_until([])
