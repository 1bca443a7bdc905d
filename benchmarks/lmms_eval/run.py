"""Run lmms-eval's own command line with the model `videox2l` on a local task, and check what comes out.

Renders videos that nobody trained on, asks about them through lmms-eval in an order that jumps between the videos, and
compares every answer with what the package itself answers. Run by `make lmms-eval` in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

from transformers.utils import logging

from videox2l import VideoX2L
from videox2l.demo.render import render_video

HERE = Path(__file__).parent
SETTINGS = {"pretrained": "demo", "fps": 1, "ratios": "2:32", "reload": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/lmms-eval"), help="where videos and results go")
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=1.0)
    args = parser.parse_args()
    if args.folder.exists():
        shutil.rmtree(args.folder)
    args.folder.mkdir(parents=True)

    docs = []
    for seed in range(args.videos):
        video = (args.folder / f"video-{seed}.mp4").resolve()
        docs += [{"video": str(video), **question} for question in render_video(video, seed, args.minutes)]
    random.Random(0).shuffle(docs)
    with (args.folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(doc) + "\n" for doc in docs)
    print(f"{len(docs)} questions about {args.videos} videos of {60 * args.minutes:g} s, in mixed order", flush=True)

    runs = [lmms_eval(args.folder, "plain")]
    runs += [lmms_eval(args.folder, name, store="memories") for name in ("kept", "again")]

    logging.disable_progress_bar()
    x2l = VideoX2L.from_pretrained("demo")
    memories = {path: x2l.ingest(path) for path in sorted({doc["video"] for doc in docs})}
    own = [x2l.ask(memories[doc["video"]], doc["question"], max_new_tokens=8).text for doc in docs]
    right = sum(answer == doc["answer"] for answer, doc in zip(own, docs, strict=True))
    same = [sum(a == b for a, b in zip(own, run, strict=True)) for run in runs]
    print(f"\nthe package itself: {right} of {len(docs)} right ({100 * right / len(docs):.2f} %)")
    print(f"answers of the {len(runs)} runs that equal its own: {', '.join(map(str, same))} of {len(docs)}")
    if any(number != len(docs) for number in same):
        sys.exit("lmms-eval and the package do not agree")


def lmms_eval(folder: Path, name: str, **more: str) -> list[str]:
    """Run lmms-eval, print what it says of accuracy and ingests, and return its answers in the order of the file."""
    settings = ",".join(f"{key}={value}" for key, value in {**SETTINGS, **more}.items())
    options = ["--model", "videox2l", "--model_args", settings, "--tasks", "videox2l_demo", "--batch_size", "1"]
    options += ["--include_path", os.path.relpath(HERE, folder), "--output_path", f"results-{name}", "--log_samples"]
    print(f"\n$ lmms-eval {' '.join(options)}", flush=True)
    command = [sys.executable, "-m", "lmms_eval", *options]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    if done.returncode:
        sys.exit(said)
    for line in said.splitlines():
        if re.search(r"videox2l: \d+ questions|\| *accuracy *\||\|Metric", line):
            print(line[max(0, line.find("videox2l: ")) :])
    rows = [
        json.loads(line)
        for path in (folder / f"results-{name}").rglob("*_samples_*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]


if __name__ == "__main__":
    main()
