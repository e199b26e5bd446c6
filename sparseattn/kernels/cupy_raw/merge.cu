// Rows that several work items computed in pieces: out = sum of exp(lse_i - lse) out_i with lse = log sum exp(lse_i),
// in the order of the pieces, so that results have equal bits every run. A group is one stationary tile:
// {row, first slot, number of slots, 0}.
//
// Grid: (most groups of a place, places, thread blocks that share the rows of a tile). Threads: 128, a warp a row, two
// columns a thread at a time. BY_HEADS = 1: row r of a tile is head x_head + r of the token at slot `row`; 0: the token at
// slot row * rows + r of head x_head.
// shared: 0
extern "C" __global__ void __launch_bounds__(128)
merge(const int4* groups, const int2* group_at, const int* places, const int* x_order, int v_dim, int n_heads, int n_x, int rows,
      int resumes, int keeps, int n_slots, Rows<element> out, Rows<float> carry, float* lse, const float* part_out, const float* part_lse, int first_place) {
  const int number = first_place + (int)blockIdx.y;   // of the place
  const int2 own = group_at[number];
  if ((int)blockIdx.x >= own.y) return;
  const int4 group = groups[own.x + blockIdx.x];   // row, first slot, slots
  const int* place = places + 8 * number;
  const i64 first = ((i64)number * n_slots + group.y) * rows;
  const int used = BY_HEADS ? place[3] : rows, lane = threadIdx.x % 32;
  for (int r = blockIdx.z * 4 + threadIdx.x / 32; r < used; r += 4 * gridDim.z) {   // a warp takes a row
    const int token = token_at(x_order, place[6], BY_HEADS ? group.x : group.x * rows + r, n_x), head = place[1] + (BY_HEADS ? r : 0);
    if (token < 0) continue;
    float top = NEG_INF, total = 0.f;
    for (int s = 0; s < group.z; s++) top = fmaxf(top, part_lse[first + (i64)s * rows + r]);
    const float shift = top == NEG_INF ? 0.f : top;
    for (int s = 0; s < group.z; s++) total += ex2((part_lse[first + (i64)s * rows + r] - shift) * LOG2E);
    float f = total == 0.f ? 0.f : 1.f / total, found = total == 0.f ? NEG_INF : shift + logf(total), old = 0.f;
    const i64 at = ((i64)place[0] * n_heads + head) * n_x + token;
    const float before = resumes ? lse[at] : NEG_INF;
    __syncwarp();
    join(before, found, f, old);
    if (lane == 0) lse[at] = found;
    element* to = out.at(place[0], head) + token * out.token;
    float* kept_row = carry.at(place[0], head) + token * carry.token;
    for (int col = 2 * lane; col < v_dim; col += 64) {
      float2 x = make_float2(0.f, 0.f);
      for (int s = 0; s < group.z; s++) {
        const i64 p = first + (i64)s * rows + r;
        const float weight = ex2((part_lse[p] - shift) * LOG2E);
        const float2 y = read_pair_f32(part_out + p * v_dim, col, v_dim);
        x.x = fmaf(weight, y.x, x.x);
        x.y = fmaf(weight, y.y, x.y);
      }
      x.x *= f;
      x.y *= f;
      if (resumes == 1 && old != 0.f) { const float2 y = read_pair_f32(kept_row, col, v_dim); x.x = fmaf(old, y.x, x.x); x.y = fmaf(old, y.y, x.y); }
      if (keeps != ONLY_KEPT) write_pair(to, col, v_dim, x.x, x.y);
      if (keeps) write_pair_f32(kept_row, col, v_dim, x.x, x.y);
    }
  }
}
