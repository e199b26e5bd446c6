// delta of each query as its row sums tell it. The one that the walk over queries took, sum(dout * out) - dlse, has the
// rounding of `out`, off by some e; then the row's sum of gradients is off by (share - 1) e, share: that of its sink. So
// (1 - share) delta + sum - dlse is off by nothing. A row that attends nothing stays as it is.
//
// Grid: (tiles of 128 queries, batch * n_heads). Threads: 128.
constexpr int THREADS = 128;

extern "C" __global__ void __launch_bounds__(THREADS)
deltas(const float* lse, const float* dlse, const float* sinks, const i64* row_sums, const double* grain, int batch, int n_heads, int n_queries, int v_dim, float2* stats, int first_place) {
  const int number = first_place + (int)blockIdx.y;   // of the place
  const int query = blockIdx.x * THREADS + threadIdx.x;
  if (query >= n_queries) return;
  const i64 at = (i64)number * n_queries + query;
  const float e = lse[at];
  if (e == NEG_INF) return;
  const float share = sinks ? expf(sinks[number % n_heads] - e) : 0.f, sum = (float)(row_sums[at] / grain[0]);
  stats[at].y = fmaf(1.f - share, stats[at].y, sum) - (dlse ? dlse[at] : 0.f);
}
