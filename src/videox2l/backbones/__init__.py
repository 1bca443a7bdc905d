"""One file per family of video LLMs over one shared class; finding and loading checkpoints."""
