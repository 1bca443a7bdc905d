"""Ways of making the KVs of a video small enough, one file per family."""

from collections.abc import Callable

from videox2l.evaluate.base import Method
from videox2l.evaluate.methods.evict import EvictMethod
from videox2l.evaluate.methods.expected import expected_scores
from videox2l.evaluate.methods.infinipot import InfiniPotMethod
from videox2l.evaluate.methods.plain import FullMethod, LevelMethod, NoVideoMethod
from videox2l.evaluate.methods.press import press_method
from videox2l.evaluate.methods.rekv import RekvMethod
from videox2l.evaluate.methods.retrieval import retrieval_method
from videox2l.evaluate.methods.simple import UniformFrames, keydiff_scores, streaming_scores, stride_scores
from videox2l.evaluate.methods.snapkv import PyramidMethod, QuestionSnapMethod, window_scores
from videox2l.evaluate.methods.two_levels import x2l_method, xl2_method

METHODS: dict[str, Callable[[], Method]] = {
    "full": FullMethod,
    "none": NoVideoMethod,
    "L": lambda: LevelMethod("L", "all chunks at L (1/2), whatever the budget", ratio=2.0),
    "H": lambda: LevelMethod("H", "all chunks at one ratio, chosen at ingest"),
    "x2l": x2l_method,
    "xl2": xl2_method,
    "retrieval": retrieval_method,
    "rekv": RekvMethod,
    "uniform": UniformFrames,
    "stride": lambda: EvictMethod("stride", "every r-th token", stride_scores),
    "streaming": lambda: EvictMethod("streaming", "StreamingLLM, arXiv 2309.17453", streaming_scores),
    "infinipot": InfiniPotMethod,
    "snapkv": lambda: EvictMethod("snapkv", "SnapKV without the question, arXiv 2404.14469", window_scores),
    "snapkv+q": QuestionSnapMethod,
    "pyramid": PyramidMethod,
    "keydiff": lambda: EvictMethod("keydiff", "KeyDiff over the whole video, arXiv 2504.15364", keydiff_scores),
    "expected": lambda: EvictMethod("expected", "ExpectedAttention, arXiv 2510.00636", expected_scores),
}
"""Name -> a function that makes the method."""

FAMILIES: dict[str, Callable[[str], Method]] = {
    "x2l": x2l_method,
    "retrieval": retrieval_method,
    "xl2": xl2_method,
    "kvpress": press_method,
}
"""Name before a colon -> a function of what stands behind it: `x2l:random`, `kvpress:Knorm`."""

STANDARD = (*METHODS, "x2l:none", "x2l:attention", "x2l:random", "x2l:oracle")
"""What `--methods all` stands for."""

__all__ = ["FAMILIES", "METHODS", "STANDARD"]
