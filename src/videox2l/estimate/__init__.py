"""What a video and questions about it will need, in closed form: from config.json and a video's header alone."""
