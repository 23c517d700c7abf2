"""The one place that plays a round of the federation."""
