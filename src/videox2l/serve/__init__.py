"""An HTTP server of memories: OpenAI's chat completions, files, memories, and a page."""
