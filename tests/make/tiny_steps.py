"""Repeats a training step as one CUDA graph: networks this small leave a GPU idle between their kernels' launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def new_optimizer(weights: Sequence[torch.Tensor], rate: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW whose learning rate is a tensor, so that a captured step sees it change."""
    device = weights[0].device
    lr = torch.tensor(rate, device=device)
    return torch.optim.AdamW(
        weights, lr=lr, betas=betas, weight_decay=0.01, fused=True, capturable=device.type == "cuda"
    )


def descend(
    loss: torch.Tensor,
    optimizer: torch.optim.AdamW,
    averages: Sequence[torch.Tensor],
    follow: float,
) -> None:
    """One clipped step of the optimizer; the averages follow its weights by a share of the way."""
    weights = optimizer.param_groups[0]["params"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(list(averages), list(weights), follow)


def repeatable(step: Callable[[], None], device: torch.device, warm: int = 3) -> Callable[[], None]:
    """The step as a captured graph, after a few plain runs; on a CPU the step itself. It must not look at results."""
    if device.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        print("no graph:", error, flush=True)
        return step
    return graph.replay
