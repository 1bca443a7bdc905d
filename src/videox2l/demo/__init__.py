"""The shipped model, the synthetic world it was trained on, and its training."""
