"""What several families share: calibration, the in-domain gate."""
