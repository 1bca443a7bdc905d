"""Ask long videos many questions."""
