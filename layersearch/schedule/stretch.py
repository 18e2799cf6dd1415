"""A schedule at another depth and length of text: layers map by relative depth."""

from layersearch.schedule.schedule import Schedule


def stretch(schedule: Schedule, *, depth: int, scale: float = 1.0) -> Schedule:
    """Return a schedule for another number of layers and another length of text.

    Layer j of ``depth`` takes the span of layer floor(j n / depth) of the n given ones, so that at twice the depth each
    layer becomes two neighbors. The cost relative to all-full stays nearly the same if ``scale`` follows the text.

    Args:
        schedule: the one to map.
        depth: number of layers to map it to, at least 1.
        scale: factor of windows and blocks, for example 4 for a text of four times the tokens; rounded, at least
            one token.

    Example:
        >>> from layersearch import Schedule
        >>> from layersearch.schedule import stretch
        >>> str(stretch(Schedule.parse("window:4 full block:16"), depth=6, scale=2))
        'window:8*2 full*2 block:32*2'
    """

    return Schedule(tuple(schedule[layer * len(schedule) // depth].scaled(scale) for layer in range(depth)))
