"""What PyTorch's `create_block_mask` costs, in a process of its own: prints JSON, [seconds, peak bytes] or a reason.

    python benchmarks/block_mask.py window eager 16384
    python benchmarks/block_mask.py documents compiled 3000 2000 11384     # lengths of the documents

The peak is that of the whole process beyond what a small mask left: Python's tracemalloc does not see tensors. The time
of compiling is left out.
"""

import json
import os
import resource
import sys
from time import process_time

WINDOW, BLOCK = 512, 128


def measure(name, how, lengths):
    """Seconds and bytes of one mask of so many tokens as the documents have, on one thread."""
    try:
        import torch
        from torch.nn.attention.flex_attention import create_block_mask
    except ImportError:
        return "PyTorch with FlexAttention is not installed: pip install 'sparseattn[compare]'"
    torch.set_num_threads(1)
    _leave_others_their_memory()
    build = torch.compile(create_block_mask) if how == "compiled" else create_block_mask
    number, n = torch.repeat_interleave(torch.tensor(lengths)), sum(lengths)
    rule = {"causal": lambda b, h, i, j: j <= i, "window": lambda b, h, i, j: (j <= i) & (i - j < WINDOW),
            "documents": lambda b, h, i, j: (number[i] == number[j]) & (j <= i)}[name]
    try:
        build(rule, None, None, *[n if how == "compiled" else 512] * 2, device="cpu", BLOCK_SIZE=BLOCK)
        before, begin = _peak(), process_time()
        build(rule, None, None, n, n, device="cpu", BLOCK_SIZE=BLOCK)
        return process_time() - begin, _peak() - before
    except Exception as error:  # too little memory is a RuntimeError in PyTorch; its compiler raises whatever it likes
        return f"failed: {str(error).strip().splitlines()[0][:90]}"


def _peak():
    """Most bytes that the process has held. On Linux, ru_maxrss would be that of its parent if that has held more."""
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _leave_others_their_memory():
    """Fail instead of driving the machine out of memory."""
    if sys.platform == "linux":
        page = os.sysconf("SC_PAGE_SIZE")
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * page
        most = used + int(0.8 * os.sysconf("SC_AVPHYS_PAGES") * page)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], [int(n) for n in sys.argv[3:]])))
