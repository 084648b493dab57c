"""The outliers family: SPENDER autoencoder and normalizing flow; the strangest spectra first."""
