"""Local training on one resident base model."""

from fedpeft.training.base import Encoded, Evaluating, Job, Measuring, Settings, Trained, Trainer

__all__ = ["Encoded", "Evaluating", "Job", "Measuring", "Settings", "Trained", "Trainer"]
