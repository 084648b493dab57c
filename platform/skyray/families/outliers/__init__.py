"""Outlier search: SPENDER autoencoder and normalizing flow on spectra with redshifts."""
