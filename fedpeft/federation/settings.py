"""Local training's settings on the wire, and back."""

from dataclasses import replace
from typing import Any

from fedpeft._proto import federation_pb2 as pb
from fedpeft.federation.plan import Plan
from fedpeft.training import Settings


def of_round(plan: Plan, number: int) -> pb.Settings:
    """What a task of a round says of training."""
    settings = replace(
        plan.settings,
        local_steps=plan.settings.local_steps if plan.strategy.trains(number) else 0,
        learning_rate=plan.learning_rate(number),
    )
    return pb.Settings(
        local_steps=settings.local_steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        labels=settings.labels,
        calibration=settings.calibration,
        start=settings.start,
        supermask=settings.supermask,
        optimizer=settings.optimizer,
        proximal=settings.proximal,
        slots=settings.slots,
    )


def read(came: pb.Settings) -> Settings:
    """What a task said; what an older server leaves out is as it was then.

    Raises:
        ValueError: a number is out of range, or a word is unknown.
    """
    words: dict[str, Any] = {
        "labels": came.labels,
        "start": came.start or "global",
        "optimizer": came.optimizer or "adamw",
        "slots": came.slots or "all",
    }
    return Settings(
        local_steps=came.local_steps,
        batch_size=came.batch_size,
        learning_rate=came.learning_rate,
        weight_decay=came.weight_decay,
        clip_norm=came.clip_norm,
        calibration=came.calibration,
        supermask=came.supermask,
        proximal=came.proximal,
        **words,
    )
