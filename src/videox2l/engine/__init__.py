"""What runs on the device: the attention function, caches, rotary positions and decoding steps."""

from videox2l.engine.torchvision import hide_broken_torchvision

hide_broken_torchvision()  # before anything below imports transformers
