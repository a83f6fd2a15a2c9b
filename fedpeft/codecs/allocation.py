"""Rate and error of a vector at many settings of one quantiser, and the choice among them for many vectors."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_LEVEL = 127
ROUND_UP = 0.4  # of a step: levels begin at 0.6, 1.6, 2.6 ... steps, so that zero is wider and cheaper than the rest

_DENSITIES = 2.0 ** (-np.arange(2, 25) / 2)  # 1/2, 1/2.8, 1/4 ... 1/4096
_MOST_STEPS, _FINEST = 80, 2.0**-6  # how many, and the least in mean magnitudes
_FINER = 0.8408964152537145  # 2^(-1/4)


class Offer(NamedTuple):
    """A vector at one setting.

    Args:
        coded: entropy in bits of which coordinates are kept, and a sign for each.
        plain: entropy in bits of the kept coordinates' levels.
        error: squared, at the scale that makes it least.
        least: magnitude from which a coordinate is kept; of a step of 0 alone.
        step: between levels; 0 where all that is kept is of level 1, infinite where nothing is.
    """

    coded: float
    plain: float
    error: float
    least: float
    step: float


NOTHING = float("inf")


def levels(x: NDArray[np.float32], offer: Offer) -> NDArray[np.int8]:
    """The level of each coordinate, with its sign."""
    magnitude = np.abs(x)
    if offer.step == NOTHING:
        return np.zeros(x.size, np.int8)
    if not offer.step:
        return np.where(magnitude >= offer.least, np.sign(x), 0).astype(np.int8)
    level = np.minimum(np.floor(magnitude / np.float32(offer.step) + np.float32(ROUND_UP)), MOST_LEVEL)
    return np.copysign(level, x).astype(np.int8)


def offers(x: NDArray[np.float32]) -> list[Offer]:
    """Nothing, one level at two dozen densities, and many levels at as many steps."""
    rising = np.sort(np.abs(x)).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(rising[::-1])])  # of the n largest
    square, some = float(np.square(rising).sum()), int(np.count_nonzero(rising))
    found = [Offer(0.0, 0.0, square, NOTHING, NOTHING)]
    if not some:
        return found
    counts = np.unique(np.clip(np.round(_DENSITIES * x.size).astype(np.int64), 1, some))
    kept = x.size - np.searchsorted(rising, rising[x.size - counts])  # ties are kept too
    for least, n in zip(rising[x.size - counts], kept.tolist(), strict=True):
        found.append(Offer(_mask(n, x.size), 0.0, square - float(sums[n]) ** 2 / n, float(least), 0.0))
    step, finest = float(rising[-1]), _FINEST * float(rising.mean())
    for _ in range(_MOST_STEPS):
        if step < finest:
            break
        highest = min(int(rising[-1] / step + ROUND_UP), MOST_LEVEL)
        above = x.size - np.searchsorted(rising, (np.arange(highest) + (1 - ROUND_UP)) * step)
        # A coordinate of level l adds l times to sums over the levels that it reaches, and l^2 = 1 + 3 + ... (2 l - 1).
        inner, quantised = float(sums[above].sum()), float((above * (2 * np.arange(highest) + 1)).sum())
        n = int(above[0])
        plain = n * _entropy((above - np.append(above[1:], 0)) / n)
        found.append(Offer(_mask(n, x.size), plain, square - inner**2 / quantised, 0.0, step))
        step *= _FINER
    return found


def hull(found: Sequence[Offer], share: float) -> list[Offer]:
    """The offers that are worth their bits: the lower convex hull of error over bits, nothing sent first.

    Args:
        found: what to choose from.
        share: of the bits of masks and signs that their code takes.
    """
    kept: list[Offer] = []
    for offer in sorted(found, key=lambda offer: (price(offer, share), offer.error)):
        if kept and offer.error >= kept[-1].error:
            continue
        while kept and (
            price(offer, share) <= price(kept[-1], share)
            or (len(kept) > 1 and _slope(kept[-2], offer, share) >= _slope(kept[-2], kept[-1], share))
        ):
            kept.pop()
        kept.append(offer)
    return kept


def price(offer: Offer, share: float) -> float:
    """Its bits."""
    return share * offer.coded + offer.plain


def allocate(found: Sequence[Sequence[Offer]], weights: Sequence[float], most_bits: float, share: float) -> list[Offer]:
    """One offer for each slot, so that the weighted error is least for so many bits.

    Everett, 1963; Shoham and Gersho, 1988: one slope for all. Step by step the slot takes its next offer whose bits
    lessen the error most. What is left in the end goes to any offer that it pays for, on a hull or not.
    """
    hulls = [hull(offered, share) for offered in found]
    taken, left = [0] * len(hulls), most_bits
    queue: list[tuple[float, int]] = []

    def enqueue(i: int) -> None:
        if taken[i] + 1 < len(hulls[i]):
            heapq.heappush(queue, (-weights[i] * _slope(hulls[i][taken[i]], hulls[i][taken[i] + 1], share), i))

    for i in range(len(hulls)):
        enqueue(i)
    while queue:
        _, i = heapq.heappop(queue)
        more = price(hulls[i][taken[i] + 1], share) - price(hulls[i][taken[i]], share)
        if more <= left:
            left -= more
            taken[i] += 1
            enqueue(i)
    chosen = [offered[place] for offered, place in zip(hulls, taken, strict=True)]
    for i, offered in enumerate(found):
        within = [offer for offer in offered if price(offer, share) <= price(chosen[i], share) + left]
        best = min(within, key=lambda offer: (offer.error, price(offer, share)), default=chosen[i])
        left -= price(best, share) - price(chosen[i], share)
        chosen[i] = best
    return chosen


def _mask(kept: int, n: int) -> float:
    """Bits of a mask that keeps so many of n, and their signs."""
    return n * _entropy(np.array([kept, n - kept]) / n) + kept


def _entropy(shares: NDArray[np.float64]) -> float:
    shares = shares[shares > 0]
    return max(0.0, -float(shares @ np.log2(shares)))


def _slope(a: Offer, b: Offer, share: float) -> float:
    """By how much a bit lessens the error, from one offer to another."""
    return (a.error - b.error) / (price(b, share) - price(a, share))
