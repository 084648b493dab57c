"""Bundles at work: predict, evaluate, follow, serve; catalogues and reports."""
