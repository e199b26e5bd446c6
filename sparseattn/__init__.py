"""Sparse attention for array libraries: patterns as index structures, attention over them, and its gradient."""

from sparseattn import bias, patterns, variants
from sparseattn.attention import Gradients, attend, attend_backward, merge, vjp
from sparseattn.dispatch import backends
from sparseattn.explain import explain
from sparseattn.kernels.numba_cpu import warm
from sparseattn.pool import set_threads, threads
from sparseattn.pattern import Pattern
from sparseattn.profiling.profile import profile
from sparseattn.profiling.reach import Reach, reach
from sparseattn.profiling.recommend import recommend
from sparseattn.profiling.record import Profile
from sparseattn.profiling.recommendation import Recommendation
from sparseattn.structure import BlockCSR

__version__ = "0.1.0"

__all__ = ["BlockCSR", "Gradients", "Pattern", "Profile", "Reach", "Recommendation", "__version__", "attend",
           "attend_backward", "backends", "bias", "explain", "merge", "patterns", "profile", "reach", "recommend",
           "set_threads", "threads", "variants", "vjp", "warm"]
