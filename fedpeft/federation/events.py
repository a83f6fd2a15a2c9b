"""What happens in a run, as it happens: told to whoever watches, and decides nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from fedpeft.federation.transport import NodeId


class Happening(StrEnum):
    """Kinds of event; in brackets the facts that come with each."""

    CONNECTED = "connected"  # a node can be asked [version]
    DISCONNECTED = "disconnected"  # [why]
    REJECTED = "rejected"  # a node may not take part [why]
    WORKING = "working"  # what a node does now [state: "downloading" | "training" | "uploading" | "idle"]
    WAITING = "waiting"  # a round needs more nodes [connected needed]
    OPENED = "opened"  # a round begins [cohort]
    ASKED = "asked"  # a node is sent its task [down_bytes]
    COUNTED = "counted"  # its update counts [up_bytes weight loss train_s]
    REFUSED = "refused"  # its reply does not [up_bytes why]
    ALARM = "alarm"  # something that no honest node does [why]
    FAILED = "failed"  # a round ended below quorum and will be taken up again [why]
    COMMITTED = "committed"  # a round is done [a row of metrics.jsonl]
    FINISHED = "finished"  # the last round is


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Args:
        kind: what.
        node: to or by whom; "" for the server.
        round: in which round; 0 outside of rounds.
        facts: more, as numbers and short texts; never data, never a secret.
    """

    kind: Happening
    node: NodeId = ""
    round: int = 0
    facts: Mapping[str, object] = field(default_factory=dict)


Watch: TypeAlias = Callable[[Event], None]


def unwatched(event: Event) -> None:
    """Tell nobody."""


def everyone(*watchers: Watch) -> Watch:
    """One watch that tells several, in order."""

    def tell(event: Event) -> None:
        for watch in watchers:
            watch(event)

    return tell
