"""Wilson's interval of a share, in plain Python, and the fewest differing clips that allow a conclusion."""

import math


Z = 1.959963984540054  # two-sided 95 % of the normal distribution
Interval = tuple[float, float]
# If fewer clips differ, p stays above 0.05 even if all differ in one direction (2 / 2**5 = 0.0625), and they are
# too few for a bootstrap: with none, its interval would be [0, 0].
FEWEST_DIFFERING = 6


def wilson(right: int, n: int) -> Interval:
    """
    Wilson's score interval (Wilson 1927) for `right` of `n`; it stays within 0 and 1, and is not empty at either.

    Raises:
        `ValueError`: unless 0 <= right <= n and n >= 1.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"got {right} right of {n}; expected 0 <= right <= n and n >= 1.")
    share, scale = right / n, 1 + Z * Z / n
    center = (share + Z * Z / (2 * n)) / scale
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)) / scale
    # At 0 and n the formula gives 0 and 1 up to rounding.
    return (0.0 if right == 0 else center - half), (1.0 if right == n else center + half)
