"""What a video and questions about it will need, before any weights are loaded."""
