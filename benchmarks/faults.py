"""Inputs and small scripts that showed faults, run again: one line for each, ok or what came out instead.

    python benchmarks/faults.py FOLDER        # of scripts and, in FOLDER/media, damaged or unusual videos

What is right stands in `EXPECTED`: texts that a script must print, and texts that it must not. Exit status 1 where
something is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from videox2l.ask.answer import part_thought

EXPECTED: dict[str, tuple[list[str], list[str]]] = {
    "threads": (
        [r"2 threads: Counter\(\{'same': \d+\}\)", r"4 threads: Counter\(\{'same': \d+\}\)", r"ingest \{'same': \d+\}"],
        ["_StopError", "different"],
    ),
    "quantised_fp8": ([r"product check True torch.float32 0.0\d+ relative error", "doctor rc 0"], ["Traceback"]),
    "quantised_awq_bnb": (["pip install gptqmodel", "pip install bitsandbytes"], ["Traceback"]),
    "dynamic_rope": ([r"its RoPE \(dynamic\) changes with the length"], []),
    "chat_template": (["strict text template .* rc 0", "from_model"], ["rc 1", "Traceback"]),
    "nan_weights": ([r"float16 rc 1 error: in layer \d+", "doctor rc 1"], [r"(?m)^float16 rc 0", "Traceback"]),
    "beyond_trained_positions": (["warning: the video reaches position", "note: positions reach"], ["Traceback"]),
    "generation_config": ([r"stop ids, text_config \[191, 5\], no generation_config: \[2, 5, 191\]"], ["Traceback"]),
    "one_bad_item": (
        ["session: all answered", "eval one bad video rc 0", "too narrow for the model rc 0"],
        ["Traceback"],
    ),
    "checkpoint_folders": (
        ["one shard missing | rc 1", "is a LoRA adapter", "git-lfs pointer"],
        [r"adapter beside .* rc 0", "Traceback"],
    ),
}
VIDEOS = {  # sampled at 2 fps: what must be told
    "midbroken.mkv": r"holes: nothing could be read from",
    "discont.ts": r"holes: nothing could be read from|jump",
    "negstart.mkv": "",
    "hflip.mp4": "",
    "transpose.mp4": "",
}


def run(*command: object) -> tuple[int, str]:
    """Run a command in this project's root; return its exit status and all that it printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=env, timeout=600, check=False
    )
    return done.returncode, done.stdout + done.stderr


def judged(name: str, text: str, wanted: list[str], unwanted: list[str]) -> bool:
    """Print what is not as it should be."""
    missing = [pattern for pattern in wanted if not re.search(pattern, text)]
    found = [pattern for pattern in unwanted if re.search(pattern, text)]
    wrong = [f"'{pattern}' is missing" for pattern in missing] + [f"'{pattern}' came" for pattern in found]
    print(f"{name:28} {'ok' if not wrong else 'FAULT: ' + '; '.join(wrong)}", flush=True)
    return not wrong


def main() -> int:
    """Run all; return how many are not as they should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    wrong = 0
    for script in sorted(folder.glob("*.py")):
        if script.stem in EXPECTED:
            wrong += not judged(script.name, run(sys.executable, script)[1], *EXPECTED[script.stem])
        elif script.stem != "common":
            print(f"{script.name:28} not run: it imports modules by names that they no longer have")
    cli = [sys.executable, "-m", "videox2l.cli.app"]
    for video in sorted((folder / "media").glob("*")):
        text = run(*cli, "check", video)[1]
        status_ask, answer = run(*cli, "ask", video, "what happens ?", "--fps", 2)
        told = VIDEOS.get(video.name, "")
        wrong += not judged(video.name, f"{text}{answer}", [told] if told else [], ["Traceback"])
        if status_ask:
            print(f"{'':28} FAULT: it is not read: {answer.strip().splitlines()[-1]}")
            wrong += 1
    said = "So D fits best.\n</think>\n\nC"
    wrong += not judged("a thinking model's reply", json.dumps(part_thought(said)), [r"\"C\"\]"], [])
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
