"""What dishonest sites send: each attack as what it makes of a site's data, and of what the site should have sent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.random import Stream
from fedpeft.training import Encoded


@dataclass(frozen=True, eq=False)
class Scene:
    """What a dishonest site knows of a round.

    Args:
        own: the delta that honest training of its data gives, shape (d,).
        others: deltas of the honest sites in this round, before they are encoded.
        moved: what the last round did to the global adapter, shape (d,).
        dishonest: how many sites are.
        stream: its own randomness.
    """

    own: Float[Tensor, " d"]
    others: Sequence[Float[Tensor, " d"]]
    moved: Float[Tensor, " d"]
    dishonest: int
    stream: Stream

    def normal(self) -> Float[Tensor, " d"]:
        """Standard normal numbers."""
        return torch.from_numpy(self.stream.normal(len(self.own))).float()


@dataclass(frozen=True)
class Attack:
    """An honest site: the base of those that are not.

    `keeps`: what the codec loses is carried over to the next round, as at an honest site; a forged delta is sent for
    what it is.
    """

    keeps: ClassVar[bool] = False

    def data(self, data: Encoded, classes: int) -> Encoded:
        """The examples that the site trains on."""
        return data

    def delta(self, scene: Scene) -> Float[Tensor, " d"]:
        """What the site has its client encode and send."""
        return scene.own


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Class c of L is called L - 1 - c, and the site trains on that (Fang et al., 2020, arXiv 1911.11815)."""

    keeps: ClassVar[bool] = True

    def data(self, data: Encoded, classes: int) -> Encoded:
        """The same texts under other labels."""
        targets = tuple(classes - 1 - target for target in data.targets if isinstance(target, int))
        return replace(data, targets=targets, labels=tuple(sorted(set(targets))))


@dataclass(frozen=True)
class SignFlip(Attack):
    """The site's honest delta, backwards and longer."""

    factor: float = 4.0

    def delta(self, scene: Scene) -> Float[Tensor, " d"]:
        """- factor x."""
        return -self.factor * scene.own


@dataclass(frozen=True)
class Noise(Attack):
    """Normal noise, `factor` times as long as the honest delta."""

    factor: float = 10.0

    def delta(self, scene: Scene) -> Float[Tensor, " d"]:
        """A random direction."""
        noise = scene.normal()
        return noise.mul(self.factor * scene.own.norm() / noise.norm())


@dataclass(frozen=True)
class ALIE(Attack):
    """A little is enough: the honest mean, less z standard deviations in every coordinate.

    Baruch, Baruch and Goldberg, 2019, arXiv 1902.06156, whose experiments take z = 1.5. `z` 0 is their
    z_max, the quantile of (n - f - s) / (n - f) with s = floor(n / 2 + 1) - f supporters, which is not positive for
    f / n as small as here.
    """

    z: float = 1.5

    def delta(self, scene: Scene) -> Float[Tensor, " d"]:
        """The mean shifted, all dishonest sites alike."""
        honest = torch.stack(list(scene.others))
        z = self.z or most_hidden(len(honest) + scene.dishonest, scene.dishonest)
        return honest.mean(dim=0) - z * honest.std(dim=0, correction=0)


def most_hidden(sites: int, dishonest: int) -> float:
    """The z_max of ALIE: the largest shift that leaves enough honest sites farther out."""
    supporters = sites // 2 + 1 - dishonest
    return NormalDist().inv_cdf((sites - dishonest - supporters) / (sites - dishonest))


@dataclass(frozen=True)
class MinMax(Attack):
    """The honest mean, shifted against its standard deviation as far as no honest site is from another.

    Shejwalkar and Houmansadr, NDSS 2021, "Manipulating the Byzantine", AGR-agnostic: the largest gamma for which
    mean - gamma std is at most max ||x_i - x_j|| from every x_i. They halve an interval; it is a quadratic equation
    for each i, and here it is solved.
    """

    def delta(self, scene: Scene) -> Float[Tensor, " d"]:
        """The mean shifted, all dishonest sites alike."""
        honest = torch.stack(list(scene.others)).double()
        mean, away = honest.mean(dim=0), -honest.std(dim=0, correction=0)
        reach = float(torch.pdist(honest).max()) if len(honest) > 1 else 0.0
        a = float(away @ away)
        if a == 0:
            return mean.float()
        gamma = math.inf
        for x in honest:
            b, c = float((mean - x) @ away), float((mean - x).square().sum()) - reach**2
            gamma = min(gamma, (-b + math.sqrt(max(0.0, b * b - a * c))) / a)
        return (mean + gamma * away).float()


@dataclass(frozen=True)
class RangeCheat(Attack):
    """An honest delta but for a few coordinates, which are `factor` times beyond what any honest site has anywhere."""

    share: float = 0.01
    factor: float = 100.0

    def delta(self, scene: Scene) -> Float[Tensor, " d"]:
        """The site's largest coordinates turned around and blown up."""
        forged = scene.own.clone()
        where = forged.abs().topk(max(1, round(self.share * len(forged)))).indices
        most = max(float(x.abs().max()) for x in (scene.own, *scene.others))
        forged[where] = -self.factor * most * forged[where].sign()
        return forged


@dataclass(frozen=True)
class FreeRider(Attack):
    """No training: what the last round did to the global adapter, with a little noise so that nobody sees it.

    Lin, Du and Liu, 2019, arXiv 1911.12560, "delta weights". In the first round it is nothing but noise of no size.
    """

    noise: float = 0.1

    def delta(self, scene: Scene) -> Float[Tensor, " d"]:
        """The old movement, with noise of `noise` times its norm."""
        noise = scene.normal()
        return noise.mul(self.noise * scene.moved.norm() / noise.norm()).add(scene.moved)


ATTACKS: dict[str, Attack] = {
    "label-flip": LabelFlip(),
    "sign-flip": SignFlip(),
    "noise": Noise(),
    "alie": ALIE(),
    "min-max": MinMax(),
    "range-cheat": RangeCheat(),
    "free-rider": FreeRider(),
}
