// 3x3x3 convolution of one channel, stride 1, pad 1: the first layer of a network.
//
// A block takes tiles of 8 x 8 x 32 outputs (D x H x W): it loads the tile with its halo into shared memory as float16
// once, and computes 32 or 48 output channels from there. A row of a product is two neighbouring outputs along W, which
// read four neighbouring inputs, so that K is 9 (kd, kh) x 4 inputs = 36 (40 with zeros) and every operand register is
// one aligned word of shared memory; the weights of the two outputs lie shifted by one input, zero elsewhere. They stay
// in registers. Outputs beside each other are two columns of products that follow one another.
//
// Blocks stay: each takes every gridDim-th tile of its window and adds its sums once.
//
// Set from outside, besides what common.cu needs: OUT (32 or 48), XKIND (0 float16, 1 float32), THREADS.

constexpr int TD = 8, TH = 8, TW = 32, PITCH = 40;           // PITCH: halves of a row in shared memory
constexpr int HALO_D = TD + 2, HALO_H = TH + 2, HALO_W = TW + 2;
constexpr int HALO = HALO_D * HALO_H * HALO_W, AT_ONCE = 5;
constexpr int NT = OUT / 8;                                   // products of 8 columns for one of the two outputs

#if XKIND == 1
typedef float x_t;
#else
typedef unsigned short x_t;
#endif
__device__ __forceinline__ unsigned short as_half(x_t v) {
#if XKIND == 1
  unsigned short r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
  return r;
#else
  return v;
#endif
}
__device__ __forceinline__ u32 word(u32 at) {
  u32 r;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r) : "r"(at));
  return r;
}
__device__ __forceinline__ void product16(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void product8(float* d, const u32* a, u32 b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b));
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
first(const x_t* __restrict__ x, const u32* __restrict__ packed, int D, int H, int W, i64 xn, i64 xd, i64 xh, i64 xw,
      int tiles_d, int tiles_h, int tiles_w, int blocks, const __grid_constant__ Output to) {
  __shared__ unsigned short tile[HALO_D * HALO_H * PITCH];
  __shared__ double totals[2 * OUT];
  const int cb = blockIdx.y % blocks, n = blockIdx.y / blocks;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, quad = lane % 4;
  u32 b[2 * NT][5];
#pragma unroll
  for (int t = 0; t < 2 * NT; t++)
#pragma unroll
    for (int f = 0; f < 5; f++) b[t][f] = packed[((cb * 2 * NT + t) * 5 + f) * 32 + lane];
  Epilogue<OUT, false> epilogue(to, cb * OUT, lane);
  const u32 base = (u32)__cvta_generic_to_shared(tile);
  const int tiles = tiles_d * tiles_h * tiles_w;
  bool fresh = true;                                          // nothing is summed yet
  after_previous();
  for (int id = blockIdx.x; id < tiles; id += gridDim.x) {
    const int w0 = id % tiles_w * TW, h0 = id / tiles_w % tiles_h * TH, d0 = id / (tiles_w * tiles_h) * TD;
    __syncthreads();                                          // the tile before was read
#pragma unroll 1
    for (int first = threadIdx.x; first < HALO; first += AT_ONCE * THREADS) {
      x_t v[AT_ONCE];                                         // all in flight
#pragma unroll
      for (int k = 0; k < AT_ONCE; k++) {
        const int i = first + k * THREADS, column = i % HALO_W, row = i / HALO_W;
        const int w = w0 - 1 + column, h = h0 - 1 + row % HALO_H, d = d0 - 1 + row / HALO_H;
        const bool inside = i < HALO && w >= 0 && w < W && h >= 0 && h < H && d >= 0 && d < D;
        v[k] = inside ? x[n * xn + d * xd + h * xh + w * xw] : (x_t)0;
      }
#pragma unroll
      for (int k = 0; k < AT_ONCE; k++) {
        const int i = first + k * THREADS;
        if (i < HALO) tile[i / HALO_W * PITCH + i % HALO_W] = as_half(v[k]);
      }
    }
    __syncthreads();
    for (int row = warp; row < TD * TH; row += THREADS / 32) {
      const int dd = row / TH, hh = row % TH, d = d0 + dd, h = h0 + hh;
      if (d >= D || h >= H) continue;
      const i64 line = n * to.yn + d * to.yd + h * to.yh;
      // word of a lane's pair of outputs (g and g + 8) and pair of K in row r = kd * 3 + kh
      u32 a[10];
#pragma unroll
      for (int f = 0; f < 5; f++) {
        const int r = f == 4 ? 8 : 2 * f + quad / 2;
        const u32 at = base + 2 * (((dd + r / 3) * HALO_H + hh + r % 3) * PITCH + 2 * (g + quad % 2));
        a[2 * f] = word(at);
        a[2 * f + 1] = word(at + 32);
      }
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float acc[OUT / 2] = {};
#pragma unroll
        for (int t = 0; t < NT; t++) {
          product16(acc + 4 * t, a, b[j * NT + t][0], b[j * NT + t][1]);
          product16(acc + 4 * t, a + 4, b[j * NT + t][2], b[j * NT + t][3]);
          product8(acc + 4 * t, a + 8, b[j * NT + t][4]);
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int w = w0 + 2 * g + j + 16 * r;
          u32 given[OUT / 8] = {};
          if (RESIDUAL) epilogue.fetch(to, n * to.rn + d * to.rd + h * to.rh + w * to.rw, w < W, given);
          const i64 at = line + w * to.yw;
          if (w0 + TW <= W) epilogue.row<true>(to, acc, given, r, true, at, fresh);
          else epilogue.row<false>(to, acc, given, r, w < W, at, fresh);
          fresh = false;
        }
      }
    }
  }
  if (STATS) {                                                // of the block, then to memory
    Output local = to;
    for (int i = threadIdx.x; i < 2 * OUT; i += THREADS) totals[i] = 0.;
    __syncthreads();
    local.sums = totals - 2 * cb * OUT;
    local.sums_n = local.sums_r = 0;
    epilogue.flush(local, 0);
    __syncthreads();
    double* at = to.sums + blockIdx.x % to.replicas * to.sums_r + n * to.sums_n + cb * OUT * 2;
    for (int i = threadIdx.x; i < 2 * OUT; i += THREADS) atomicAdd(at + i, totals[i]);
  }
}
