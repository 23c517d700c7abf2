"""Calibration and accounting of differential privacy; knows nothing of training."""
