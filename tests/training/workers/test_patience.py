"""How long a silent worker is waited for: an hour at its first start, then a multiple of what took longest so far."""

from layersearch.config.recipe import load_recipe
from layersearch.training.workers.patience import Patience


def test_patience_of_a_start_is_a_multiple_of_the_longest_one_and_at_most_an_hour() -> None:
    training = load_recipe("smoke", ["training.hang_seconds=20", "training.hang_factor=10"]).training
    found = Patience(training)
    assert found.seconds == 3600
    for longest, wanted in ((0.0, 3600), (0.5, 20), (5.0, 50), (1000.0, 3600)):
        found.start(longest)
        assert found.seconds == wanted
    assert "its slowest step or start took 1e+03 s" in found.reason("logs")
    found.beat(4.0)
    assert found.seconds == 41
    found.start(0.0)  # nothing is known: the limit stays
    assert found.seconds == 41
