"""Data in: calibration samples, labelled samples, pictures."""
