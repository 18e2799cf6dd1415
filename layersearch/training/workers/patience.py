"""How long a worker may be silent before it counts as hung."""

from layersearch.config.training import TrainingConfig
from layersearch.training.record import HUNG
from layersearch.training.workers.channel import BEAT_SECONDS

START_SECONDS = 3600.0  # Seconds up to the first step of all: text is prepared, a model is read and compiled


class Patience:
    """How long a worker may be silent: an hour at first, then what its recipe says.

    ``seconds`` is the limit, ``slowest`` the seconds of the slowest step so far.
    """

    def __init__(self, training: TrainingConfig) -> None:
        self._floor, self._factor = training.hang_seconds, training.hang_factor
        self.slowest, self._steps_end = 0.0, False
        self.seconds = max(START_SECONDS, training.hang_seconds)

    def start(self, longest: float) -> None:
        """Wait for a start, the longest of which took so many seconds so far; 0: none was made, so an hour."""
        if longest:
            self.slowest, self.seconds = longest, max(self._floor, min(START_SECONDS, self._factor * longest))

    def beat(self, slowest: float) -> None:
        """Take notice of progress."""
        self.slowest = slowest
        if not self._steps_end:
            self.seconds = max(self._floor, self._factor * slowest) + BEAT_SECONDS

    def rest(self) -> None:
        """Allow an hour again: the last step is done, what follows has no steps."""
        self._steps_end, self.seconds = True, max(START_SECONDS, self._floor)

    def reason(self, log: str) -> str:
        """Return the error of a worker that was silent for longer."""
        return (
            f"{HUNG} for {self.seconds:.0f} s and was killed (its slowest step or start took {self.slowest:.2g} s; see "
            f"training.hang_factor): see {log}"
        )
