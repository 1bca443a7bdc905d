"""Several processes that train one model: each works on its own batch, the gradients are averaged.

On a few shared CPU cores this beats several threads in one process, which wait for each other in every
operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes


def rank() -> int:
    """Return the number of this process; 0 writes logs and checkpoints."""
    return dist.get_rank() if dist.is_initialized() else 0


def launch(work: Callable[..., None], count: int, arguments: tuple[Any, ...]) -> None:
    """Run `work(*arguments)` in `count` processes at once, and wait for them."""
    if count == 1:
        work(*arguments)
    else:
        store = _store(0, master=True)
        start: Any = start_processes
        start(_join, nprocs=count, args=(work, count, store.port, arguments))


def average(parameters: Sequence[nn.Parameter], spent: float) -> float:
    """Average the gradients of all processes in place; returns how long process 0 has spent."""
    if not dist.is_initialized():
        return spent
    shared = [p for p in parameters if p.grad is not None]
    clock = torch.tensor([spent if rank() == 0 else 0.0])
    flat = torch.cat([clock, *(p.grad.flatten() for p in shared if p.grad is not None)])
    dist.all_reduce(flat)
    at = 1
    for parameter in shared:
        n = parameter.numel()
        parameter.grad = (flat[at : at + n] / dist.get_world_size()).view_as(parameter)
        at += n
    return float(flat[0])


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def _join(number: int, work: Callable[..., None], count: int, port: int, arguments: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", store=_store(port, master=False), rank=number, world_size=count)
    work(*arguments)
    dist.destroy_process_group()


def _store(port: int, *, master: bool) -> Any:
    """Return the place where the processes find each other; port 0 takes any free one."""
    return dist.TCPStore("localhost", port, is_master=master, wait_for_workers=False)  # type: ignore[attr-defined]
