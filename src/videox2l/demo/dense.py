"""Videos of the synthetic world in which every chunk holds several facts that can be asked for."""

from __future__ import annotations

import numpy as np

from videox2l.demo.cast import SPLITS, Thing, all_things, digits_of
from videox2l.demo.world import Event, WorldVideo, draw_event, make_scenes
from videox2l.errors import SettingsError

CHUNK = 8
"""Frames of the stretch in which density is counted."""
GRID = 2
"""Frames whose patches the demo model's vision tower joins into one grid of visual tokens."""
DENSITIES = (1, 2, 4, 8)


def make_dense_video(seed: int, frames: int, split: str, density: int, redundancy: int = 1) -> WorldVideo:
    """Write the script of a video with `density` needles in every 8 frames.

    Up to 4 needles per 8 frames have whole grids of two frames to themselves, `redundancy` of them one after the other;
    with 8 every frame has its own. Needles are clear, and there are no decoys. Each shows another thing until all 36
    have been shown; then they come again, with the digits that they had. Raises SettingsError for what does not fit.
    """
    if density not in DENSITIES:
        raise SettingsError(f"density must be one of {', '.join(map(str, DENSITIES))}, got {density}")
    if redundancy < 1:
        raise SettingsError(f"redundancy must be 1 or more, got {redundancy}")
    grids = CHUNK // GRID
    if redundancy > 1 and density * redundancy > grids:
        raise SettingsError(
            f"redundancy must be at most {max(1, grids // density)} at density {density}, got {redundancy}: a chunk of "
            f"{CHUNK} frames has {grids} grids"
        )
    if frames % CHUNK:
        raise SettingsError(f"frames must be a multiple of {CHUNK} where density is set, got {frames}")
    rng = np.random.default_rng([SPLITS[split], seed, frames, density, redundancy])
    scenes = make_scenes(rng, frames, split)
    length = max(1, GRID * redundancy) if density <= grids else CHUNK // density
    places = CHUNK // length
    digits = {thing: int(rng.choice(allowed)) for thing, allowed in digits_of(split).items()}
    waiting: list[Thing] = []
    events: list[Event] = []
    for chunk in range(0, frames, CHUNK):
        for place in sorted(rng.permutation(places)[:density].tolist()):
            if not waiting:
                things, here = all_things(), {event.thing for event in events if event.start >= chunk}
                waiting = sorted((things[i] for i in rng.permutation(len(things))), key=lambda thing: thing not in here)
            thing = waiting.pop()
            start = chunk + place * length
            style = str(rng.choice(["overlay", "insert"]))
            events.append(draw_event(rng, thing, digits[thing], start, start + length, style, "clear"))
    return WorldVideo(seed, split, frames, scenes, tuple(events))
