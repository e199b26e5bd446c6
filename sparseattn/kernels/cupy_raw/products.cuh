// Products of tiles, behind tiles.cuh in every .cu file: mma.sync on 16 rows of a warp.
//
//   scores:     s = x y^T for rows of two tiles
//   accumulate: o += p y, p as `scores` leaves it
//
// A thread's accumulators for 16 rows of a warp and N columns: N / 2 numbers, groups of four for 8 columns j:
// {row r, column 8j + 2c}, {r, 8j + 2c + 1}, {r + 8, 8j + 2c}, {r + 8, 8j + 2c + 1} with r = lane / 4, c = lane % 4.
//
// 16 bits: m16n8k16. Float32 stands for two numbers, high + low, and three products, high x high + high x low + low x high.
// The unit cuts its sums instead of rounding them, so sums of large products are short, and small ones have their own. Among
// few columns errors do not average out, so there low x low counts too, and the bit that high and low lack, the rest.
// HALVES = 1: numbers of float16, m16n8k16, made once for all warps. Each row has a unit, a power of two that its numbers
// are counted in, so that none leaves the range of float16. HALVES = 0: tf32, m16n8k8, which every warp makes for itself.
#if BITS == 32 && !HALVES
#define MMA "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
#elif FP16 || HALVES
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif
__device__ __forceinline__ void mma(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile(MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same on a sum of 0, which takes no instruction to make.
__device__ __forceinline__ void first_mma(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile(MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
}

#if BITS == 16 || HALVES
__device__ __forceinline__ void ldsm(u32 (&r)[4], u32 a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
__device__ __forceinline__ void ldsm_t(u32 (&r)[4], u32 a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
#endif

#if BITS == 16
// What was loaded is multiplied as it is.
template <int N, int THREADS> __device__ __forceinline__ void split_tile(const Tile& tile) {}
// s = x y^T for 16 * M rows of the tile x from `row` on and N rows of the tile y. Rows are read two groups of 16 ahead.
template <int M, int N> __device__ __forceinline__ void scores(float (&s)[M][N / 2], const Tile& x, int row, const Tile& y, int lane) {
  constexpr int GROUPS = N / 16, ALL = D / 16 * GROUPS;
  const u32 first_x = chunk_at(x.at, row + lane % 16, lane / 16), first_y = chunk_at(y.at, lane % 8 + lane / 16 * 8, lane / 8 % 2);
  u32 a[2][M][4], b[3][4];
  auto read_x = [&](int kk) {
#pragma unroll
    for (int m = 0; m < M; m++) ldsm(a[kk % 2][m], chunk_behind(first_x, 2 * kk) + 16 * m * ROW_BYTES);
  };
  auto read_y = [&](int i) { ldsm(b[i % 3], chunk_behind(first_y, 2 * (i / GROUPS)) + 16 * (i % GROUPS) * ROW_BYTES); };
  read_x(0);
  read_y(0);
  if (ALL > 1) read_y(1);
#pragma unroll
  for (int i = 0; i < ALL; i++) {
    const int kk = i / GROUPS, n = i % GROUPS;
    if (n == 0 && kk + 1 < D / 16) read_x(kk + 1);
    if (i + 2 < ALL) read_y(i + 2);
    const u32* w = b[i % 3];
#pragma unroll
    for (int m = 0; m < M; m++) {
      float* const to = s[m] + 8 * n;
      if (kk == 0) { first_mma(to, a[0][m], w[0], w[1]); first_mma(to + 4, a[0][m], w[2], w[3]); }
      else { mma(to, a[kk % 2][m], w[0], w[1]); mma(to + 4, a[kk % 2][m], w[2], w[3]); }
    }
  }
}
// o += p y for the W columns of the tile y (N rows) that begin `column` numbers in; p as `scores` leaves it. make(i) makes the
// numbers of p that meet the i-th 16 rows of y, while the products of those before go on.
template <int M, int N, int W, class Make> __device__ __forceinline__ void accumulate(float (&o)[M][W / 2], const float (&p)[M][N / 2], const Tile& y, int column, int lane, Make make) {
  const u32 first = chunk_at(y.at + column * 2, lane % 16, lane / 16);
  make(0);
#pragma unroll
  for (int kk = 0; kk < N / 16; kk++) {
    u32 a[M][4];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) a[m][i] = pack2(p[m][8 * kk + 2 * i], p[m][8 * kk + 2 * i + 1]);
    if (kk + 1 < N / 16) make(kk + 1);
#pragma unroll
    for (int n = 0; n < W / 16; n++) {
      u32 b[4];
      ldsm_t(b, chunk_behind(first, 2 * n) + 16 * kk * ROW_BYTES);
#pragma unroll
      for (int m = 0; m < M; m++) { mma(o[m] + 8 * n, a[m], b[0], b[1]); mma(o[m] + 8 * n + 4, a[m], b[2], b[3]); }
    }
  }
}
template <int M, int N, int W> __device__ __forceinline__ void accumulate(float (&o)[M][W / 2], const float (&p)[M][N / 2], const Tile& y, int column, int lane) {
  accumulate<M, N, W>(o, p, y, column, lane, [](int) {});
}
#elif HALVES
constexpr float LOW_UNIT = 1.f / 2048.f;   // low numbers are counted in this part of the unit of high ones
constexpr int LOW = D / 8;                 // chunks from a row's high numbers to its low ones
// The power of two that numbers of a row are counted in so that the greatest of them, of absolute value `most`, lies from
// 2^14 to 2^15, and its inverse.
struct Unit {
  float unit, inverse;
  __device__ __forceinline__ Unit(float most) {
    const u32 exponent = max(__float_as_uint(most) >> 23, 15u);
    unit = __uint_as_float((exponent - 14) << 23);
    inverse = __uint_as_float((268 - exponent) << 23);
  }
};
// Two numbers of that unit as high and low ones.
__device__ __forceinline__ void split(float x, float y, float inverse, u32& high, u32& low) {
  x *= inverse; y *= inverse;
  high = pack2(x, y);
  const float2 whole = unpack2(high);
  low = pack2((x - whole.x) * 2048.f, (y - whole.y) * 2048.f);
}
// What both leave of them.
__device__ __forceinline__ u32 rest_of(float x, float y, float inverse, u32 high, u32 low) {
  const float2 whole = unpack2(high), part = unpack2(low);
  return pack2(((x * inverse - whole.x) * 2048.f - part.x) * 2048.f, ((y * inverse - whole.y) * 2048.f - part.y) * 2048.f);
}
// Rows of float32 become their high numbers and behind them their low ones, in place. Each thread does so with what it
// loaded by load_tile<N, THREADS>, so only the threads of a row wait for each other.
template <int N, int THREADS> __device__ __forceinline__ void split_tile(const Tile& tile) {
  constexpr int AT_ONCE = THREADS / LANES, EACH = (N + AT_ONCE - 1) / AT_ONCE, PARTS = CHUNKS / LANES;
  const int c0 = threadIdx.x % LANES, row0 = threadIdx.x / LANES * EACH;
  if (N % AT_ONCE && row0 >= N) return;   // whole warps
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int row = row0 + i;
    float x[PARTS][4], most = 0.f;
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
      asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x[p][0]), "=f"(x[p][1]), "=f"(x[p][2]), "=f"(x[p][3]) : "r"(chunk_at(tile.at, row, c0 + p * LANES)) : "memory");
#pragma unroll
      for (int j = 0; j < 4; j++) most = fmaxf(most, fabsf(x[p][j]));
    }
    if (LANES == 32) most = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(most)));
    else
#pragma unroll
      for (int d = 1; d < LANES; d *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    const Unit unit(most);
    __syncwarp();   // all of the row is read
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
      u32 high[2], low[2];
      split(x[p][0], x[p][1], unit.inverse, high[0], low[0]);
      split(x[p][2], x[p][3], unit.inverse, high[1], low[1]);
      const int c = c0 + p * LANES;
      asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(chunk_at(tile.at, row, c / 2) + c % 2 * 8), "r"(high[0]), "r"(high[1]) : "memory");
      asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(chunk_at(tile.at, row, c / 2 + LOW) + c % 2 * 8), "r"(low[0]), "r"(low[1]) : "memory");
      if (FEW) {
        const u32 first = rest_of(x[p][0], x[p][1], unit.inverse, high[0], low[0]), second = rest_of(x[p][2], x[p][3], unit.inverse, high[1], low[1]);
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(tile.rests + row * REST_BYTES + 8 * c), "r"(first), "r"(second) : "memory");
      }
    }
    if (c0 == 0) asm volatile("st.shared.f32 [%0], %1;" ::"r"(tile.units + 4 * row), "f"(unit.unit) : "memory");
  }
}
__device__ __forceinline__ float2 two_units(u32 a) { float2 u; asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(u.x), "=f"(u.y) : "r"(a) : "memory"); return u; }
__device__ __forceinline__ float one_unit(u32 a) { float u; asm volatile("ld.shared.f32 %0, [%1];" : "=f"(u) : "r"(a) : "memory"); return u; }

template <int M, int N> __device__ __forceinline__ void scores(float (&s)[M][N / 2], const Tile& x, int row, const Tile& y, int lane) {
  const u32 first_x = chunk_at(x.at, row + lane % 16, lane / 16), first_y = chunk_at(y.at, lane % 8 + lane / 16 * 8, lane / 8 % 2);
  float low[M][N / 2], least[M][FEW ? N / 2 : 8];
#pragma unroll
  for (int kk = 0; kk < D / 16; kk++) {
    u32 high_a[M][4], low_a[M][4], high_b[4], low_b[4], rest_a[M][4], rest_b[4];
#pragma unroll
    for (int m = 0; m < M; m++) {
      if (FEW) ldsm(rest_a[m], x.rests + (row + 16 * m + lane % 16) * REST_BYTES + (2 * kk + lane / 16) * 16);
      ldsm(high_a[m], chunk_behind(first_x, 2 * kk) + 16 * m * ROW_BYTES);
      ldsm(low_a[m], chunk_behind(first_x, 2 * kk + LOW) + 16 * m * ROW_BYTES);
    }
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      ldsm(high_b, chunk_behind(first_y, 2 * kk) + 16 * n * ROW_BYTES);
      ldsm(low_b, chunk_behind(first_y, 2 * kk + LOW) + 16 * n * ROW_BYTES);
      if (FEW) ldsm(rest_b, y.rests + (16 * n + lane % 8 + lane / 16 * 8) * REST_BYTES + (2 * kk + lane / 8 % 2) * 16);
#pragma unroll
      for (int m = 0; m < M; m++) {
        float high[8], *own = s[m] + 8 * n, *small = low[m] + 8 * n;
#pragma unroll
        for (int g = 0; g < 2; g++) first_mma(high + 4 * g, high_a[m], high_b[2 * g], high_b[2 * g + 1]);
#pragma unroll
        for (int g = 0; g < 2; g++) kk ? mma(small + 4 * g, low_a[m], high_b[2 * g], high_b[2 * g + 1]) : first_mma(small + 4 * g, low_a[m], high_b[2 * g], high_b[2 * g + 1]);
#pragma unroll
        for (int g = 0; g < 2; g++) mma(small + 4 * g, high_a[m], low_b[2 * g], low_b[2 * g + 1]);
        if (FEW)
#pragma unroll
          for (int g = 0; g < 2; g++) {
            float* to = least[m] + 8 * n + 4 * g;
            kk ? mma(to, low_a[m], low_b[2 * g], low_b[2 * g + 1]) : first_mma(to, low_a[m], low_b[2 * g], low_b[2 * g + 1]);
            mma(to, rest_a[m], high_b[2 * g], high_b[2 * g + 1]);
            mma(to, high_a[m], rest_b[2 * g], rest_b[2 * g + 1]);
          }
#pragma unroll
        for (int i = 0; i < 8; i++) own[i] = kk ? own[i] + high[i] : high[i];
      }
    }
  }
#pragma unroll
  for (int m = 0; m < M; m++) {
    const float own[2] = {one_unit(x.units + 4 * (row + 16 * m + lane / 4)), one_unit(x.units + 4 * (row + 16 * m + 8 + lane / 4))};
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
      const float2 u = two_units(y.units + 4 * (8 * j + 2 * (lane & 3)));
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int at = 4 * j + i;
        const float small = FEW ? fmaf(least[m][at], LOW_UNIT, low[m][at]) : low[m][at], a = own[i / 2], b = i % 2 ? u.y : u.x;
        // the smaller unit first: what comes between leaves the range of float32 only where the product does
        s[m][at] = fmaf(small, LOW_UNIT, s[m][at]) * fminf(a, b) * fmaxf(a, b);
      }
    }
  }
}
// Rows of p, taken times the units of the rows of y, get units of their own. Of products below 2^-98 low parts are lost, those
// below 2^-112 are 0.
template <int M, int N, int W> __device__ __forceinline__ void accumulate(float (&o)[M][W / 2], const float (&p)[M][N / 2], const Tile& y, int column, int lane) {
  const u32 first = chunk_at(y.at, lane % 16, lane / 16);
  u32 high_a[M][N / 4], low_a[M][N / 4];
  float unit[M][2];
#pragma unroll
  for (int m = 0; m < M; m++) {
    float x[N / 2], most[2] = {0.f, 0.f};
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
      const float2 u = two_units(y.units + 4 * (8 * j + 2 * (lane & 3)));
#pragma unroll
      for (int i = 0; i < 4; i++) {
        x[4 * j + i] = p[m][4 * j + i] * (i % 2 ? u.y : u.x);
        most[i / 2] = fmaxf(most[i / 2], fabsf(x[4 * j + i]));
      }
    }
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 1));
      most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 2));
      const Unit found(most[h]);
      unit[m][h] = found.unit;
      inverse[h] = found.inverse;
    }
#pragma unroll
    for (int i = 0; i < N / 4; i++) split(x[2 * i], x[2 * i + 1], inverse[i % 2], high_a[m][i], low_a[m][i]);
  }
#pragma unroll
  for (int n = 0; n < W / 16; n++) {
    float high[M][8], low[M][8], least[M][8];
#pragma unroll
    for (int kk = 0; kk < N / 16; kk++) {
      u32 high_b[4], low_b[4], rest_b[4];
      if (FEW) ldsm_t(rest_b, y.rests + (16 * kk + lane % 16) * REST_BYTES + (column / 8 + 2 * n + lane / 16) * 16);
      ldsm_t(high_b, chunk_behind(first, column / 8 + 2 * n) + 16 * kk * ROW_BYTES);
      ldsm_t(low_b, chunk_behind(first, column / 8 + 2 * n + LOW) + 16 * kk * ROW_BYTES);
#pragma unroll
      for (int m = 0; m < M; m++) {
        const u32 *ah = high_a[m] + 4 * kk, *al = low_a[m] + 4 * kk;
#pragma unroll
        for (int g = 0; g < 2; g++) kk % 2 ? mma(high[m] + 4 * g, ah, high_b[2 * g], high_b[2 * g + 1]) : first_mma(high[m] + 4 * g, ah, high_b[2 * g], high_b[2 * g + 1]);
#pragma unroll
        for (int g = 0; g < 2; g++) kk ? mma(low[m] + 4 * g, al, high_b[2 * g], high_b[2 * g + 1]) : first_mma(low[m] + 4 * g, al, high_b[2 * g], high_b[2 * g + 1]);
#pragma unroll
        for (int g = 0; g < 2; g++) mma(low[m] + 4 * g, ah, low_b[2 * g], low_b[2 * g + 1]);
        if (FEW)
#pragma unroll
          for (int g = 0; g < 2; g++) kk ? mma(least[m] + 4 * g, ah, rest_b[2 * g], rest_b[2 * g + 1]) : first_mma(least[m] + 4 * g, ah, rest_b[2 * g], rest_b[2 * g + 1]);
        const bool last = kk + 1 == N / 16;
        if (FEW && last)
#pragma unroll
          for (int i = 0; i < 8; i++) low[m][i] = fmaf(least[m][i], LOW_UNIT, low[m][i]);
        if (kk % 2 || last)   // sums of 32 numbers
#pragma unroll
          for (int i = 0; i < 8; i++) o[m][8 * n + i] = fmaf(last ? fmaf(low[m][i], LOW_UNIT, high[m][i]) : high[m][i], unit[m][i / 2 % 2], o[m][8 * n + i]);
      }
    }
  }
}
#else
__device__ __forceinline__ float word(u32 a) { float x; asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(a) : "memory"); return x; }
// high: the 11 leading bits, rounded; low: what is left, rounded too, since the unit cuts off all further bits; rest: what both
// leave, where it counts
__device__ __forceinline__ void split(float x, u32& high, u32& low, u32& rest) {
  high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
  const float left = x - __uint_as_float(high);
  low = __float_as_uint(left) + 0x1000u;
  rest = FEW ? __float_as_uint(left - __uint_as_float(low & 0xffffe000u)) : 0u;
}

// 16 rows and 8 columns of a left factor.
struct Split {
  u32 high[4], low[4], rest[4];
  __device__ __forceinline__ void set(float a, float b, float c, float d) {
    split(a, high[0], low[0], rest[0]); split(b, high[1], low[1], rest[1]); split(c, high[2], low[2], rest[2]); split(d, high[3], low[3], rest[3]);
  }
};
// sum += the left factor x, 8 * K columns wide, times GROUPS groups of 8 columns; read(k, g, high, low, rest) gives the
// thread's two numbers of group g and the k-th 8 rows. The small products have sums of their own, so that the large ones are cut K
// times only; several groups at once, since a product waits for the one before it in its sum.
template <int K, int GROUPS, class Read> __device__ __forceinline__ void add_products(float* sum, const Split (&x)[K], Read read) {
  float high[GROUPS][4], low[GROUPS][4];
#pragma unroll
  for (int k = 0; k < K; k++) {
    u32 h[GROUPS][2], l[GROUPS][2], rest[GROUPS][2];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) read(k, g, h[g], l[g], rest[g]);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) k ? mma(low[g], x[k].low, h[g][0], h[g][1]) : first_mma(low[g], x[k].low, h[g][0], h[g][1]);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) k ? mma(high[g], x[k].high, h[g][0], h[g][1]) : first_mma(high[g], x[k].high, h[g][0], h[g][1]);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) mma(low[g], x[k].high, l[g][0], l[g][1]);
    if (FEW)
#pragma unroll
      for (int g = 0; g < GROUPS; g++) {
        mma(low[g], x[k].low, l[g][0], l[g][1]);
        mma(low[g], x[k].rest, h[g][0], h[g][1]);
        mma(low[g], x[k].high, rest[g][0], rest[g][1]);
      }
  }
#pragma unroll
  for (int g = 0; g < GROUPS; g++)
#pragma unroll
    for (int i = 0; i < 4; i++) sum[4 * g + i] += high[g][i] + low[g][i];
}
// Groups of columns whose products are made at once.
template <int COLUMNS> constexpr int GROUPS_OF = COLUMNS % 32 == 0 ? 4 : COLUMNS % 24 == 0 ? 3 : 2;

template <int M, int N> __device__ __forceinline__ void scores(float (&s)[M][N / 2], const Tile& x, int row, const Tile& y, int lane) {
  static_assert(M == 1, "16 rows a warp");
  const int t = lane & 3, r = lane >> 2;
#pragma unroll
  for (int i = 0; i < N / 2; i++) s[0][i] = 0.f;
#pragma unroll 1
  for (int part = 0; part < D; part += 32) {
    Split left[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const u32 a = x.at + (row + r) * ROW_BYTES + (part + 8 * k + t) * 4, b = a + 8 * ROW_BYTES;
      left[k].set(word(a), word(b), word(a + 16), word(b + 16));
    }
    constexpr int GROUPS = GROUPS_OF<N>;
#pragma unroll
    for (int n = 0; n < N / 8; n += GROUPS)
      add_products<4, GROUPS>(s[0] + 4 * n, left, [&](int k, int g, u32 (&h)[2], u32 (&l)[2], u32 (&rest)[2]) {
        const u32 at = y.at + (8 * (n + g) + r) * ROW_BYTES + (part + 8 * k + t) * 4;
        split(word(at), h[0], l[0], rest[0]); split(word(at + 16), h[1], l[1], rest[1]);
      });
  }
}
// The sum over rows of y takes them in the order in which accumulators hold them.
template <int M, int N, int W> __device__ __forceinline__ void accumulate(float (&o)[M][W / 2], const float (&p)[M][N / 2], const Tile& y, int column, int lane) {
  constexpr int K = N >= 32 ? 4 : N / 8, GROUPS = GROUPS_OF<W>;
  const int t = lane & 3, r = lane >> 2;
#pragma unroll
  for (int j = 0; j < N / 8; j += K) {
    Split left[K];
#pragma unroll
    for (int k = 0; k < K; k++) left[k].set(p[0][4 * (j + k)], p[0][4 * (j + k) + 2], p[0][4 * (j + k) + 1], p[0][4 * (j + k) + 3]);
#pragma unroll
    for (int n = 0; n < W / 8; n += GROUPS)
      add_products<K, GROUPS>(o[0] + 4 * n, left, [&](int k, int g, u32 (&h)[2], u32 (&l)[2], u32 (&rest)[2]) {
        const u32 at = y.at + (8 * (j + k) + 2 * t) * ROW_BYTES + (column + 8 * (n + g) + r) * 4;
        split(word(at), h[0], l[0], rest[0]); split(word(at + ROW_BYTES), h[1], l[1], rest[1]);
      });
  }
}
#endif
#if BITS == 32   // nothing goes on beside products
template <int M, int N, int W, class Make> __device__ __forceinline__ void accumulate(float (&o)[M][W / 2], const float (&p)[M][N / 2], const Tile& y, int column, int lane, Make make) {
#pragma unroll
  for (int i = 0; i < N / 16; i++) make(i);
  accumulate<M, N, W>(o, p, y, column, lane);
}
#endif
