"""The word-level tokenizer of the demo model and its chat template."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from videox2l.demo.draw import COLOURS, SHAPES

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video_pad|>",
    "<|image_pad|>",
    "<|unk|>",
)
WORDS = (
    *("user", "assistant", "system"),
    *"0123456789",
    *COLOURS,
    *SHAPES,
    *("what", "digit", "appears", "with", "the", "?", "which", "first", ",", "or", "how", "many", "times"),
    *("does", "appear", "a", "yes", "no", "colour", "shape", "has", "is", "last", "before", "after", "when"),
    *("there", "it", "and", "in", "video", "of", "you", "are", "helpful", "."),
    *("carry", "often", "digits", "do", "quarter", "second", "third", "describe"),
)
VOCABULARY = 96
"""Rows of the embedding; the words in use leave some free for later."""

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'video' %}
{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif part.type == 'image' %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'text' %}
{{- part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def build_tokenizer(more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Make the tokenizer: lower-cased words and punctuation, unknown words to `<|unk|>`, newlines to nothing.

    `more` words get the rows of the embedding behind those of the first world.
    """
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *WORDS, *more))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|unk|>",
        additional_special_tokens=list(SPECIAL[1:7]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )
