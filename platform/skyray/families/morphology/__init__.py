"""Morphology of galaxies: spiral or elliptical, by transfer learning (Khan et al. 2019)."""
