"""Where a capture comes from: one framework of federated learning each.

What captures runs inside of someone's server: it imports neither Lightning nor matplotlib.
"""
