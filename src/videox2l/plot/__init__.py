"""Pictures of an answer: time line and thumbnails."""
