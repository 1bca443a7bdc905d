"""Write hf_video_processors.safetensors: what transformers' own video processors make of a small clip.

Needs torchvision, which nothing else here does; run it in an environment of its own. Beside a CPU build of torch the
usual torchvision wheel lacks two operators, which are declared here so that its transforms import.

    python tests/data/make_hf_video_processors.py tests/data/hf_video_processors.safetensors
"""

import sys

import torch

if "+cpu" in torch.__version__:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers
from safetensors.torch import save_file
from transformers import LlavaOnevisionVideoProcessor, Qwen2VLVideoProcessor

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]

torch.manual_seed(5)
smooth = torch.nn.functional.interpolate(torch.rand(5, 3, 6, 8), size=(50, 70), mode="bilinear")
video = ((smooth + 0.1 * torch.rand(5, 3, 50, 70)).clamp(0, 1) * 255).round().byte()
common = {"image_mean": MEAN, "image_std": STD, "do_sample_frames": False}
qwen = Qwen2VLVideoProcessor(
    patch_size=4,
    merge_size=2,
    temporal_patch_size=2,
    size={"shortest_edge": 256, "longest_edge": 1024},
    cap_pixels_per_frame=False,
    **common,
)(videos=[video], return_tensors="pt")
llava = LlavaOnevisionVideoProcessor(size={"height": 24, "width": 24}, **common)(videos=[video], return_tensors="pt")
tensors = {
    "video": video,
    "qwen.pixels": qwen["pixel_values_videos"].contiguous(),
    "qwen.grid": qwen["video_grid_thw"][0],
    "llava.pixels": llava["pixel_values_videos"][0].contiguous(),
}
save_file(tensors, sys.argv[1], metadata={"transformers": transformers.__version__})
