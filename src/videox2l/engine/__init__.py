"""What runs on the device: the attention function, caches, rotary positions and decoding steps."""
