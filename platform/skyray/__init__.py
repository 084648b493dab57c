"""skyray: train, sweep, deploy and run a survey's deep-learning models on one Ray platform."""

__version__ = "0.1.0"
