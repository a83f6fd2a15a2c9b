"""What a server tells of a run of two rounds with three sites, and names and texts that mean harm."""

from collections.abc import Mapping
from typing import Any

from fedpeft.federation import Event, Happening

SITES = ("ann", "bob", "cat")
HOSTILE = (
    'x"}\n{"event": "finished"}',
    "\x1b[2J\x1b]0;owned\x07",
    "[red]on fire[/] [link=http://evil]",
    "\u202egnp.exe \u2028 \x85 \x00",
    "line\r\nTraceback (most recent call last):\n  the patient's name",
    "\ud800 lone",
    "z" * 5000,
    'fedpeft_up_bytes_total{site="ann"} 1e9\n',
    "",
)


def row(number: int, **more: object) -> dict[str, Any]:
    return {
        "round": number,
        "loss": 1 / number,
        "accuracy": 0.25 * number,
        "train_loss": 2 / number,
        "learning_rate": 0.01,
        "up_bytes": 300,
        "down_bytes": 3000,
        "up_bytes_fp32": 9000,
        "down_bytes_fp32": 9000,
        "counted": 2,
        "refused": 1,
        "train_s": 4.0,
        "encode_s": 0.1,
        "fold_s": 0.01,
        "evaluate_s": 0.5,
        "round_s": 7.0,
        "sites": {
            "ann": {"up_bytes": 100, "down_bytes": 1000, "weight": 10.0},
            "bob": {"up_bytes": 150, "down_bytes": 1000, "weight": 20.0},
        },
    } | more


def story(texts: Mapping[str, str] | None = None) -> list[Event]:
    """Every kind of event, in an order in which they come."""
    say = {"connected": "0.1.0", "refused": "bad payload: norm: expected at most 1, got 2"} | dict(texts or {})
    events = [Event(Happening.CONNECTED, site, facts={"version": say["connected"]}) for site in SITES]
    events.append(Event(Happening.WAITING, facts={"connected": 1, "needed": 3}))
    events.append(Event(Happening.REJECTED, facts={"why": say.get("rejected", "a certificate of nobody here")}))
    for number in (1, 2):
        events.append(Event(Happening.OPENED, round=number, facts={"cohort": 3}))
        for site in SITES:
            events.append(Event(Happening.ASKED, site, number, {"down_bytes": 1000}))
            events.append(Event(Happening.WORKING, site, facts={"state": "downloading"}))
            events.append(Event(Happening.WORKING, site, facts={"state": "training"}))
        events.append(Event(Happening.WORKING, "ann", facts={"state": "uploading"}))
        events.append(_counted("ann", number, up_bytes=100, weight=10.0, loss=1.5, train_s=2.0))
        events.append(Event(Happening.REFUSED, "cat", number, {"up_bytes": 50, "why": say["refused"]}))
        if number == 1:
            events.append(Event(Happening.ALARM, "cat", facts={"why": say.get("alarm", "two different replies")}))
            events.append(Event(Happening.FAILED, round=1, facts={"why": say.get("failed", "round 1: 1 of 3 counted")}))
        events.append(_counted("bob", number, up_bytes=150, weight=20.0, loss=2.5, train_s=2.0))
        events.append(Event(Happening.COMMITTED, round=number, facts=row(number)))
    events.append(
        Event(Happening.DISCONNECTED, "cat", facts={"why": say.get("disconnected", "the connection was lost")})
    )
    events.append(Event(Happening.FINISHED, round=2))
    return events


def _counted(site: str, number: int, **facts: object) -> Event:
    return Event(Happening.COUNTED, site, number, facts)


def hostile() -> list[Event]:
    """Each text that means harm in each place that holds a text, and as the name of a node that nobody knows."""
    kinds = ("connected", "rejected", "refused", "alarm", "failed", "disconnected")
    events = [event for text in HOSTILE for event in story(dict.fromkeys(kinds, text))]
    events += [
        Event(kind, text, 1, {"why": text}) for text in HOSTILE for kind in (Happening.REJECTED, Happening.ALARM)
    ]
    events += [Event(Happening.WORKING, text, 1, {"state": text}) for text in HOSTILE]
    return events


assert {event.kind for event in story()} == set(Happening)
