"""Mock surveys: seeded simulators that yield the same records as the readers."""
