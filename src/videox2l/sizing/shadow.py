"""Running the package's own code on shapes alone, and counting what it would allocate and compute.

Weights and activations stand on torch's meta device, which here plays the device: they have shapes and no values. What
is made in host memory (pictures), and of plain numbers on the way (grids, positions, window indices), keeps its values,
since models look at them. Thus whatever a family does with its frames is counted as it is, without a formula for each.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_META = torch.device("meta")
_COPY = torch.ops.aten._to_copy.default
_NONZERO = torch.ops.aten.nonzero.default
_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
_GROUPED = torch.ops.aten._grouped_mm.default
_LOOKED_AT = 1 << 20
_IF_ALL_HOLD = "videox2l_if_all_hold"
_FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray)


class Shadow:
    """A context in which tensor code runs on shapes. Not to be nested.

    `live` and `peak` bytes of all storages on the device that are made or met inside, each counted once as long as it
    is alive; `flops` of matrix products, convolutions and attention, a multiply-add being two. `one_memory`: the device
    is the CPU, so that what lies in host memory counts too, and going to the device copies nothing.
    """

    def __init__(self, one_memory: bool = False) -> None:
        self.one_memory = one_memory
        self.live = 0
        self.peak = 0
        self.flops = 0
        self._sizes: dict[int, int] = {}
        self._modes = (_Storages(self), _Calls(self))

    def __enter__(self) -> Shadow:
        # transformers 4 turns autocast off for the device of its tensors; torch knows none for meta
        self._autocast, torch.autocast = torch.autocast, _autocast_off  # type: ignore[misc,assignment]
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        torch.autocast = self._autocast  # type: ignore[misc]

    def hold(self, tensors: Sequence[Tensor]) -> int:
        """Count tensors that were there before; return the bytes that they add."""
        before = self.live
        for tensor in tensors:
            self._meet(tensor)
        return self.live - before

    def lap(self) -> int:
        """Return the peak since the last lap, and begin a new one."""
        peak, self.peak = self.peak, self.live
        return peak

    def _meet(self, tensor: Tensor, free: bool = False) -> None:
        if not tensor.is_meta and not self.one_memory:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = 0 if free else storage.nbytes()
        self._sizes[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs each operation on the meta device if one of its tensors is there, and meets what comes out."""

    def __init__(self, shadow: Shadow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shadow = shadow

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        device = options.get("device")
        if _any_meta(args) or _any_meta(options.values()):
            if func is _NONZERO:
                return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.long)
            if func is _GROUPED:  # experts: each row meets one of the matrices
                rows, width = args[0].shape[0], args[1].shape[-1]
                self.shadow.flops += 2 * rows * args[0].shape[-1] * width
                out = args[0].new_empty(rows, width)
                self.shadow._meet(out)
                return out
            if func in _INDEXING:
                args = [args[0], [place for part in args[1] for place in _places(part)], *args[2:]]
            args = [_to_meta(value) for value in args]
            options = {name: _to_meta(value) for name, value in options.items()}
            if device is not None:
                options["device"] = _META
        elif device is not None and torch.device(device).type == "meta":
            if func is _COPY and args[0].is_floating_point():
                return self._arrive(args[0], options.get("dtype") or args[0].dtype)
            if not _without_values(func, args):
                options["device"] = torch.device("cpu")
        out = func(*args, **options)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.shadow.flops += count(*args, **options, out_val=out)
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, Tensor):
                self.shadow._meet(made)
        return out

    def _arrive(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Bring a tensor of host memory to the device."""
        out = torch.empty_strided(tensor.size(), tensor.stride(), dtype=dtype, device=_META)
        self.shadow._meet(out, free=self.shadow.one_memory and dtype == tensor.dtype)
        return out


def _places(index: Tensor | None) -> Sequence[Tensor | None]:
    """Return a mask as the indices it stands for: where its values are not known, all of them."""
    if index is None or index.dtype != torch.bool:
        return (index,)
    if not index.is_meta:
        return index.nonzero(as_tuple=True)
    return [torch.empty(index.numel(), dtype=torch.long, device=_META)] * index.ndim


def _autocast_off(device_type: str, *_: Any, **options: Any) -> AbstractContextManager[Any]:
    """Do nothing where autocast does nothing: nobody turns it on here."""
    del device_type, options
    return nullcontext()


def _without_values(func: Any, args: Sequence[Any]) -> bool:
    """Say whether what a function makes has no values yet, or too many for anything to look at."""
    if func is torch.ops.aten.empty.memory_format:
        return True
    return bool(args) and isinstance(args[0], (list, tuple)) and math.prod(args[0]) > _LOOKED_AT


def _any_meta(values: Iterable[Any]) -> bool:
    return any(
        value.is_meta if isinstance(value, Tensor) else isinstance(value, (list, tuple)) and _any_meta(value)
        for value in values
    )


def _to_meta(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_meta(part) for part in value]
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=_META)


class _Calls(TorchFunctionMode):
    """Keeps numbers off the meta device, and takes attention as a fused kernel does: no matrix of scores.

    How many entries of a mask hold is not known without values. A model that asks is told that all do: it sorts out
    pictures that are padding, and here there are none.
    """

    def __init__(self, shadow: Shadow) -> None:
        super().__init__()
        self.shadow = shadow

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in _FROM_NUMBERS:
            options.pop("device", None)
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **options)
        if func is Tensor.tolist and hasattr(args[0], _IF_ALL_HOLD):
            return getattr(args[0], _IF_ALL_HOLD)
        out = func(*args, **options)
        if func is Tensor.sum and args[0].is_meta and args[0].dtype == torch.bool:
            setattr(out, _IF_ALL_HOLD, torch.full(out.shape, args[0].numel() // max(out.numel(), 1)).tolist())
        return out

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **options: Any
    ) -> Tensor:
        rows, columns = query.shape[-2], key.shape[-2]
        heads = query[..., 0, 0].numel()
        pairs = rows * columns if not options.get("is_causal") else rows * (rows + 1) // 2
        self.shadow.flops += 2 * heads * pairs * (query.shape[-1] + value.shape[-1])
        work = []
        if attn_mask is not None and attn_mask.dtype == torch.bool:  # kernels take it as numbers to be added
            work.append(query.new_empty(attn_mask.shape))
        if self.shadow.one_memory:  # the tile of scores that each thread of the CPU's kernel works on
            high = 256 if rows >= 768 else 64 if rows >= 192 else 32
            tile = high * (min(columns, 512) + query.shape[-1] + 2)
            work.append(query.new_empty(torch.get_num_threads() * tile, dtype=torch.float32))
        del work
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def weight_bytes(*modules: nn.Module) -> int:
    """Return the bytes of weights and buffers, tied ones once."""
    sizes = {id(tensor): tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return sum(sizes.values())
