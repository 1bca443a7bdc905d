"""The memory on disk: format, writing that survives a crash, reading what is wanted (docs/memory-format.md)."""
