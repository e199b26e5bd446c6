"""PyTorch's scaled dot product attention: dense, causal, or with a boolean mask; its gradient by autograd."""

from comparison.contest import Missing
from sparseattn.pool import n_threads


def torch_here():
    """The module, on as many threads as sparseattn uses."""
    try:
        import torch
    except ImportError:
        raise Missing("PyTorch is not installed; pip install 'sparseattn[compare]'") from None
    torch.set_num_threads(n_threads())
    return torch


def forward(q, k, v, *, causal=False, mask=None):
    """A job for (batch, n_heads, n_tokens, head_dim) arrays; `mask` is boolean, (n_queries, n_keys)."""
    torch = torch_here()
    q, k, v = (torch.from_numpy(x) for x in (q, k, v))
    options = _options(torch, q, k, causal, mask)

    def job():
        with torch.no_grad():
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

    return job


def forward_backward(dout, q, k, v, *, causal=False, mask=None):
    """A job that gives dq, dk, dv."""
    torch = torch_here()
    dout, *inputs = (torch.from_numpy(x) for x in (dout, q, k, v))
    inputs = [x.requires_grad_() for x in inputs]
    options = _options(torch, *inputs[:2], causal, mask)

    def job():
        out = torch.nn.functional.scaled_dot_product_attention(*inputs, **options)
        return torch.autograd.grad(out, inputs, dout)

    return job


def _options(torch, q, k, causal, mask):
    return {"is_causal": causal, "attn_mask": None if mask is None else torch.from_numpy(mask),
            "enable_gqa": q.shape[1] != k.shape[1]}
