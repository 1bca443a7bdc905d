"""Training of the demo model: `python -m training`."""
