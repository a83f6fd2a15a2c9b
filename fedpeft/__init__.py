"""Federated parameter-efficient fine-tuning with compressed updates and merge-aware strategies."""

__version__ = "0.1.0"
