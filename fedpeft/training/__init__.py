"""Local training on one resident base model."""

from fedpeft.training.base import Encoded, Job, Measuring, Settings, Trained, Trainer

__all__ = ["Encoded", "Job", "Measuring", "Settings", "Trained", "Trainer"]
