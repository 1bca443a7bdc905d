"""One question: options, plan, reload, decode, answer."""
