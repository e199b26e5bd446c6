"""PyTorch on the GPU: arrays shared with CuPy, timing, FlexAttention by Triton, scaled dot product attention."""

from __future__ import annotations

import cupy
import ml_dtypes
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from triton.testing import do_bench

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SDPA = {"SDPA cuDNN": SDPBackend.CUDNN_ATTENTION, "SDPA flash": SDPBackend.FLASH_ATTENTION,
        "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION}
# tiles of Flex's kernels that fit blocks of 64
SMALL = {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "bwd_BLOCK_M1": 64, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64,
         "bwd_BLOCK_N2": 64}

torch._dynamo.config.cache_size_limit = torch._dynamo.config.recompile_limit = 1000
_compiled = torch.compile(flex_attention, dynamic=False)


def milliseconds(job, rep=80):
    """Median by events, the L2 cache cleared before each call."""
    return do_bench(job, warmup=20, rep=rep, return_mode="median")


def random(*shape, dtype):
    return torch.randn(shape, device="cuda", dtype=torch.float32).to(DTYPES[dtype])


def shared(x):
    """The memory of a tensor as a CuPy array."""
    x = x.detach()
    if x.dtype == torch.bfloat16:  # dlpack of NumPy's kind does not know it
        return cupy.from_dlpack(x.view(torch.int16)).view(ml_dtypes.bfloat16)
    return cupy.from_dlpack(x)


def tensor(x):
    """The memory of a CuPy array as a tensor."""
    if x.dtype.name == "bfloat16":
        return torch.from_dlpack(x.view("int16")).view(torch.bfloat16)
    return torch.from_dlpack(x)


def difference(ours, theirs):
    """The largest difference of CuPy arrays and tensors, over the largest entry."""
    largest = 0.0
    for a, b in zip(ours, theirs):
        a, b = tensor(a).float(), b.float()
        largest = max(largest, float((a - b).abs().max() / b.abs().max()))
    return largest


def table(x):
    return torch.from_numpy(x).cuda()


def flex(q, k, v, mod, size, per_head):
    """FlexAttention as a function of q, k, v; compiled on the first call of each kind."""
    mask = None
    if mod is not None:
        mask = create_block_mask(mod(table), None, q.shape[1] if per_head else None, q.shape[2], k.shape[2],
                                 device="cuda", BLOCK_SIZE=size)
    options = SMALL if size == 64 else None
    return lambda q, k, v: _compiled(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1],
                                     kernel_options=options)


def sdpa(name, causal):
    """One kernel of scaled dot product attention as a function of q, k, v."""
    def run(q, k, v):
        with sdpa_kernel(SDPA[name]):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal,
                                                                    enable_gqa=q.shape[1] != k.shape[1])
    return run


def forward(attend, q, k, v):
    """(job, its results)."""
    def job():
        with torch.no_grad():
            return attend(q, k, v)
    return job, [job()]


def backward(attend, q, k, v, dout):
    inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = attend(*inputs)

    def job():
        return torch.autograd.grad(out, inputs, dout, retain_graph=True)

    return job, job()


def free_memory():
    """Give back what the pools of both libraries keep."""
    torch.cuda.empty_cache()
    cupy.get_default_memory_pool().free_all_blocks()


def machine():
    return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CuPy {cupy.__version__}"
