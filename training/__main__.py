"""Train the demo model: `python -m training --run runs/demo --export src/videox2l/demo/model`."""

from training.command import run_command
from training.recipe import newest, train

if __name__ == "__main__":
    run_command("demo", "config.toml", train, newest)
