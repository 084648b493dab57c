"""What several families share: scores, calibration, the in-domain gate, figures."""
