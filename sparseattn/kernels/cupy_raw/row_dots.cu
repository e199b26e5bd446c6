// What the backward needs of each query row: {lse LOG_UNIT, delta}. The first is as rounded as the factor unit * LOG_UNIT
// that scores are multiplied with there (unit: the scale, or 1 where scores are shaped before). delta =
// sum(dout * out) - dlse, the derivative of the loss by a row's common factor (Dao, "FlashAttention-2", 2023,
// arXiv:2307.08691, section 3.1). A row that attends nothing (lse = -inf) gets {+inf, 0}, so that its weights are 0 in the
// backward.
//
// The sums are the diagonals of products of tiles, since dP is added up in just that way: where a query attends one key,
// delta equals dP, and its gradient is 0 as it should be.
//
// Grid: (tiles of ROWS queries, batch * n_heads). Threads: 2 * ROWS, a warp for 16 rows.
// shared: 2 * ROWS * (HEAD_DIM * BITS / 8 + 16), in float32 of 32 columns 64 more a row
constexpr int THREADS = 2 * ROWS;

// Whether a row of a tile holds zeros alone, of either sign.
__device__ __forceinline__ bool is_zero(const Tile& tile, int row) {
  u32 any = 0;
  for (int c = 0; c < CHUNKS; c++) {
    u32 w[4];
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "r"(chunk_at(tile.at, row, c)) : "memory");
    any |= w[0] | w[1] | w[2] | w[3];
  }
  return !(any & 0x7fff7fffu);
}

extern "C" __global__ void __launch_bounds__(THREADS)
row_dots(Rows<const element> dout, Rows<const element> out, const float* lse, const float* dlse, int batch, int n_heads, int n_queries, int v_dim,
         float unit, float2* stats, int first_place) {
  const int number = first_place + (int)blockIdx.y;   // of the place
  extern __shared__ __align__(128) unsigned char tiles[];
  const Tile x = tile_at(shared_address(tiles), ROWS), y = tile_at(x.at + TILE_BYTES<ROWS>, ROWS);
  const int b = number / n_heads, h = number % n_heads, first = blockIdx.x * ROWS;
  auto token = [&](int r) { return first + r < n_queries ? first + r : -1; };
  load_tile<ROWS, THREADS>(x.at, dout.at(b, h), dout.token, v_dim, token);
  load_tile<ROWS, THREADS>(y.at, out.at(b, h), out.token, v_dim, token);
  commit();
  wait_for<0>();
  split_tile<ROWS, THREADS>(x);
  split_tile<ROWS, THREADS>(y);
  __syncthreads();

  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16, r = lane / 4;
  float s[1][8];
  scores<1, 16>(s, x, row, y.from(row), lane);
  if (lane % 4 != r / 2) return;   // the thread has pairs {r, r} and {r + 8, r + 8}
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int own = row + r + 8 * i;
    if (token(own) < 0) continue;
    float sum = r % 2 ? s[0][6 * i + 1] : s[0][6 * i];
    if (sum != sum && is_zero(y, own)) sum = 0.f;   // the out of a query without keys is 0, whatever its dout holds
    const i64 at = (i64)number * n_queries + token(own);
    const float e = lse[at];
    const float counted = (float)(e * ((double)(unit * LOG_UNIT) / unit));
    stats[at] = e == NEG_INF ? make_float2(POS_INF, 0.f) : make_float2(counted, dlse ? sum - dlse[at] : sum);
  }
}
