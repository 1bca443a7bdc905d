"""Write hf_processors.safetensors: what transformers' own processors make of a chat with a small clip, by family.

The processor_config.json that each of them saves goes into the metadata.

Needs torchvision (and num2words), which nothing else here does; run it in an environment of its own, from the root of
the repository. Beside a CPU build of torch the usual torchvision wheel lacks two operators, which are declared here so
that its transforms import.

    python -m tests.data.make_hf_processors tests/data/hf_processors.safetensors [family ...]

With transformers 4.57, for the one family whose prompt differs there:

    python -m tests.data.make_hf_processors tests/data/hf_processors_4_57.safetensors qwen3_vl
"""

import inspect
import sys
import tempfile
from pathlib import Path

import torch

if "+cpu" in torch.__version__:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers
from safetensors.torch import save_file

from tests.families.models import MAKERS
from tests.families.processors import PROCESSORS, chat, clip

FPS = 2.0
OLD = transformers.__version__.startswith("4.")
files: dict[str, str] = {}
tensors = {} if OLD else {"video": clip()}
for family in sys.argv[2:] or PROCESSORS:
    model, parts = MAKERS[family]()
    tokenizer, names = parts.tokenizer, PROCESSORS[family]
    if OLD:  # its processors take nothing but the family's own class
        settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": tokenizer.chat_template}
        tokenizer = transformers.Qwen2TokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **settings)
    for name, token in names.tokens.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    video_class = getattr(transformers, names.video)
    known = {**parts.video_processor, **names.more, "do_sample_frames": False}
    options = {"cap_pixels_per_frame": False} if "Qwen" in names.video else {}
    processor_class = getattr(transformers, names.processor)
    wanted = inspect.signature(processor_class.__init__).parameters
    image_class = getattr(transformers, names.image)
    given = {name: value for name, value in names.settings.items() if name in wanted}
    processor = processor_class(
        image_processor=image_class(), tokenizer=tokenizer, video_processor=video_class(**known, **options), **given
    )
    text = chat(tokenizer, names.template)
    metadata = [{"fps": FPS, "frames_indices": list(range(5)), "total_num_frames": 5, "duration": 5 / FPS}]
    out = processor(text=[text], videos=[clip()], video_metadata=metadata, return_tensors="pt")
    for name in ("input_ids", *(() if OLD else names.tensors)):
        tensors[f"{family}.{name}"] = out[name].contiguous()
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        written = Path(folder) / "processor_config.json"
        files[family] = written.read_text() if written.exists() else ""
save_file(tensors, sys.argv[1], metadata={"transformers": transformers.__version__, **files})
