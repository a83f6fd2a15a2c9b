"""YAML files: an experiment, and a site."""

from fedpeft.config.experiment import DataSection, Experiment, TrainingSection
from fedpeft.config.reading import load, load_site, validate
from fedpeft.config.section import ModelSection
from fedpeft.config.site import PolicySection, SiteConfig, SiteData

__all__ = [
    "DataSection",
    "Experiment",
    "ModelSection",
    "PolicySection",
    "SiteConfig",
    "SiteData",
    "TrainingSection",
    "load",
    "load_site",
    "validate",
]
