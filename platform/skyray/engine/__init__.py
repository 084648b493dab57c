"""Ingest, train, evaluate, predict on Ray, tracked in MLflow. Knows no particular family."""
