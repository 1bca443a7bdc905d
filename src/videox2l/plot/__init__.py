"""Pictures of an answer: time line and thumbnails (needs the extra `plot`)."""

from videox2l.plot.timeline import check_plot, draw

__all__ = ["check_plot", "draw"]
