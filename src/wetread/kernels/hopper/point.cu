// Products over channels alone, with a norm on load: the head (1x1x1 to a few classes, UP 0) and the transposed
// convolution 2x2x2 with stride 2 (UP 1), in float16.
//
// A warp takes 32 voxels. Each thread loads 16 bytes, eight neighbouring channels, of four voxels for every 32 channels:
// as the order of K is free, they are operand registers as they come, once normalised. Weights lie in shared memory in
// the order in which lanes take them. The transposed convolution uses a voxel's operands for all eight of its outputs,
// and stores eight neighbouring channels a thread.
//
// Set from outside, besides what common.cu needs: UP, CHUNKS (of 32 channels), NORM, THREADS; for the head TILES (of 8
// classes), SOFTMAX, WIDE (float32 results).

constexpr int WARPS = THREADS / 32;

__device__ __forceinline__ void product16(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint4 shared16(u32 at) {
  uint4 r;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(at));
  return r;
}
// voxel of a thread's row: neighbours along W for the head, whose classes lie in planes
__device__ __forceinline__ int voxel(int g, int m, int r) { return UP ? m * 16 + r * 8 + g : 4 * g + 2 * m + r; }

extern "C" __global__ void __launch_bounds__(THREADS, UP || CHUNKS > 1 ? 2 : 4)
point(const unsigned short* __restrict__ x, const uint4* __restrict__ packed, int D, int H, int W, i64 xn, i64 xv, int items,
      int classes, const __grid_constant__ Output to, const __grid_constant__ Source source) {
  extern __shared__ unsigned char raw[];
  const u32 held = ((u32)__cvta_generic_to_shared(raw) + 15) & ~15u, table = held + items * 16;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, quad = lane % 4, n = blockIdx.y;
  for (int i = threadIdx.x; i < items; i += THREADS) {
    const uint4 v = packed[i];
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(held + i * 16), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w));
  }
  const int voxels = D * H * W;
  after_previous();
  if (NORM) norm_table(source, table, CHUNKS * 32, n, (double)voxels);
  __syncthreads();
  for (int tile = blockIdx.x * WARPS + warp; tile * 32 < voxels; tile += gridDim.x * WARPS) {
    u32 a[2][CHUNKS * 2][4];
    uint4 in[CHUNKS][2][2];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int v = min(tile * 32 + voxel(g, m, r), voxels - 1);
          in[c][m][r] = load4(x + n * xn + v * xv + c * 32 + quad * 8);
        }
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      float ab[16];
      if (NORM) {
#pragma unroll
        for (int i = 0; i < 4; i++)
          asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(ab[4 * i]), "=f"(ab[4 * i + 1]), "=f"(ab[4 * i + 2]), "=f"(ab[4 * i + 3])
                       : "r"(table + 8 * (c * 32 + quad * 8) + 16 * i));
      }
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          uint4 w = in[c][m][r];
          if (NORM) {
            float f[8];
            normalise(w, ab, source.slope, f);
            w = make_uint4(half2(f[0], f[1]), half2(f[2], f[3]), half2(f[4], f[5]), half2(f[6], f[7]));
          }
          a[m][2 * c][r] = w.x; a[m][2 * c][r + 2] = w.y;
          a[m][2 * c + 1][r] = w.z; a[m][2 * c + 1][r + 2] = w.w;
        }
    }
#if UP
    i64 at[2][2];
    bool inside[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int v = tile * 32 + voxel(g, m, r), w = v % W, h = v / W % H, d = v / (W * H);
        inside[m][r] = v < voxels;
        at[m][r] = n * to.yn + 2 * (d * to.yd + h * to.yh + w * to.yw);
      }
    const int groups = items / (8 * 4 * CHUNKS * 32);         // of 32 output channels
#pragma unroll 1
    for (int cg = 0; cg < groups; cg++) {
      Epilogue<32, false> epilogue(to, cg * 32, lane);
#pragma unroll 1
      for (int tap = 0; tap < 8; tap++) {
        float acc[2][16] = {};
#pragma unroll
        for (int t = 0; t < 4; t++)
#pragma unroll
          for (int c = 0; c < CHUNKS; c++) {
            const uint4 b = shared16(held + ((((tap * groups + cg) * 4 + t) * CHUNKS + c) * 32 + lane) * 16);
#pragma unroll
            for (int m = 0; m < 2; m++) {
              product16(acc[m] + 4 * t, a[m][2 * c], b.x, b.y);
              product16(acc[m] + 4 * t, a[m][2 * c + 1], b.z, b.w);
            }
          }
        const i64 step = (tap / 4) * to.yd + (tap / 2 % 2) * to.yh + (tap % 2) * to.yw;
        const u32 none[4] = {};
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
          for (int r = 0; r < 2; r++) epilogue.row<false>(to, acc[m], none, r, inside[m][r], at[m][r] + step, false);
      }
    }
#else
    float acc[2][TILES][4] = {};
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int c = 0; c < CHUNKS; c++) {
        const uint4 b = shared16(held + ((t * CHUNKS + c) * 32 + lane) * 16);
#pragma unroll
        for (int m = 0; m < 2; m++) {
          product16(acc[m][t], a[m][2 * c], b.x, b.y);
          product16(acc[m][t], a[m][2 * c + 1], b.z, b.w);
        }
      }
    float v[TILES * 2][4];                                    // class, four neighbouring voxels
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int k = t * 8 + quad * 2 + e;
        const float add = BIASED && k < classes ? to.bias[k] : 0.f;
#pragma unroll
        for (int i = 0; i < 4; i++) v[t * 2 + e][i] = acc[i / 2][t][i % 2 * 2 + e] + add;
      }
#if SOFTMAX
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float most = -3e38f, sum = 0.f;
#pragma unroll
      for (int j = 0; j < TILES * 2; j++) if (j / 2 * 8 + quad * 2 + j % 2 < classes) most = fmaxf(most, v[j][i]);
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
#pragma unroll
      for (int j = 0; j < TILES * 2; j++)
        if (j / 2 * 8 + quad * 2 + j % 2 < classes) { v[j][i] = __expf(v[j][i] - most); sum += v[j][i]; }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
#pragma unroll
      for (int j = 0; j < TILES * 2; j++) v[j][i] /= sum;
    }
#endif
    const int first = tile * 32 + 4 * g;
    const bool four = first + 3 < voxels && ((to.yw | to.yn | voxels) & 3) == 0 && ((u64)to.y & 15) == 0;
#pragma unroll
    for (int j = 0; j < TILES * 2; j++) {
      const int k = j / 2 * 8 + quad * 2 + j % 2;
      if (k >= classes) continue;
      const i64 at = n * to.yn + k * to.yw + first;           // yw: from class to class
#if WIDE
      float* y = (float*)to.y + at;
      if (four) store4(y, __float_as_uint(v[j][0]), __float_as_uint(v[j][1]), __float_as_uint(v[j][2]), __float_as_uint(v[j][3]));
      else
        for (int i = 0; i < 4; i++) if (first + i < voxels) y[i] = v[j][i];
#else
      unsigned short* y = (unsigned short*)to.y + at;
      const u32 lo = half2(v[j][0], v[j][1]), hi = half2(v[j][2], v[j][3]);
      if (four) store2(y, lo, hi);
      else
        for (int i = 0; i < 4; i++) if (first + i < voxels) y[i] = (unsigned short)((i < 2 ? lo : hi) >> (i % 2 * 16));
#endif
    }
#endif
  }
}
