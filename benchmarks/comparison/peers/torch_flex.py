"""PyTorch's FlexAttention, compiled for the CPU, where it has a forward but no backward. Compiling takes many seconds
a shape."""

from comparison.contest import Missing
from comparison.peers.torch_sdpa import torch_here


def window(q, k, v, *, width):
    """A job for a causal window of `width` keys, self included."""
    n = q.shape[2]
    return _job(q, k, v, lambda flex: flex.create_block_mask(lambda b, h, i, j: (j <= i) & (i - j < width), None, None,
                                                             n, n, device="cpu"))


def blocks(q, k, v, *, layout, block_size):
    """A job for the whole blocks of a boolean layout (rows, cols)."""
    n, chosen = q.shape[2], torch_here().from_numpy(layout)
    return _job(q, k, v, lambda flex: flex.create_block_mask(
        lambda b, h, i, j: chosen[i // block_size, j // block_size], None, None, n, n, device="cpu",
        BLOCK_SIZE=block_size))


def _job(q, k, v, make_mask):
    torch = torch_here()
    try:
        from torch.nn.attention import flex_attention as flex
    except ImportError:
        raise Missing(f"PyTorch {torch.__version__} has no FlexAttention; it came with 2.5") from None
    compiled, mask = torch.compile(flex.flex_attention), make_mask(flex)
    q, k, v = (torch.from_numpy(x) for x in (q, k, v))

    def job():
        with torch.no_grad():
            return compiled(q, k, v, block_mask=mask)

    try:
        job()
    except Exception as error:  # whatever its compiler raises, a missing C++ compiler included
        raise Missing(f"FlexAttention did not compile: {str(error).strip().splitlines()[0]}") from None
    return job
