"""Training of the demo model: `python -m videox2l.demo.training`."""
