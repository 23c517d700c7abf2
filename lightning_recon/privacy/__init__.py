"""Calibration, accounting and limits of differential privacy; knows nothing of training."""
