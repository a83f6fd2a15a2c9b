"""A site: where it dials, what it holds, and what it lets a server ask of it."""

import math
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from fedpeft import adapters, codecs, data
from fedpeft.config.section import ModelSection, Section, expression
from fedpeft.federation import Policy


class PolicySection(Section):
    """What a task may ask for: `fedpeft.federation.Policy`; what is left out is allowed, but for statistics."""

    base_sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    codecs: tuple[str, ...] = ("*",)
    broadcasts: tuple[str, ...] = ("*",)
    strategies: tuple[str, ...] = ("*",)
    statistics: tuple[str, ...] = ()
    least_examples: int = Field(5, ge=1)
    most_examples: int = Field(4096, ge=1)
    settings: tuple[str, ...] = ("*",)
    most_local_steps: int = Field(10_000, ge=1)
    largest_batch_size: int = Field(1024, ge=1)
    largest_learning_rate: float = Field(math.inf, gt=0)
    min_cohort: int = Field(1, ge=1)
    privacy: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_a_policy(self) -> "PolicySection":
        self.policy()
        return self

    def policy(self) -> Policy:
        """The policy that it describes."""
        return Policy(**self.model_dump())


class SiteData(Section):
    """The site's own examples.

    Args:
        source: expression of a `fedpeft.data` source.
        labels: names of the classes in the run's order, where the site's own data does not have them all.
        seed: of what is drawn from the source; the data itself never depends on it.
    """

    source: Annotated[str, expression(lambda text: data.parse_source(text, imports=True))]
    labels: tuple[str, ...] = ()
    seed: int = Field(0, ge=-(1 << 63), lt=1 << 63)


class SiteConfig(Section):
    """One site's installation.

    Args:
        server: "host:port" to dial.
        server_name: the name in the server's certificate, where it is not the host.
        keys: folder with ca.crt, site.crt and site.key.
        folder: where the site keeps what it must not lose: its state, tasks on their way, its log.
        model: the base model and where it runs.
        peft: expression of a config of Hugging Face PEFT, the one that the run was begun with.
        data: the site's examples.
        codecs: codecs of one's own that a task may name, as expressions with dotted paths.
        policy: what a task may ask for.
        rank: components of each LoRA product that the site trains, the first ones; 0 for all.
        first_wait_s: seconds before the second attempt to connect; each further wait is up to twice as long.
        longest_wait_s: seconds that a wait never exceeds.
        keepalive_s: seconds of silence after which the server is asked whether it lives.
    """

    server: str = Field(pattern=r"^[^:\s]+:\d+$|^\[[0-9a-fA-F:]+\]:\d+$")
    server_name: str = ""
    keys: Path = Path("keys")
    folder: Path = Path("site")
    model: ModelSection = ModelSection()
    peft: Annotated[str, expression(adapters.parse_config)]
    data: SiteData
    codecs: tuple[Annotated[str, expression(lambda text: codecs.parse(text, imports=True))], ...] = ()
    policy: PolicySection = PolicySection()
    rank: int = Field(0, ge=0)
    first_wait_s: float = Field(1.0, gt=0)
    longest_wait_s: float = Field(60.0, gt=0)
    keepalive_s: float = Field(20.0, ge=1)
