"""One adapter per way of counting positions; the attention function; loading."""

from videox2l.engine.torchvision import hide_broken_torchvision

hide_broken_torchvision()  # before anything below imports transformers
