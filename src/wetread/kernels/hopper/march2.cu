// 3x3x3 convolution, stride 2, pad 1, channels last, for Hopper (sm_90a).
//
// As march.cu: a block computes OUT output channels of an 8 x 16 column of outputs (H x W) and marches along D over the
// input planes, which lie in shared memory with their halo. A plane arrives as two: its even and its odd columns, each
// through a tensor map of its own whose step along W is two voxels. So the eight outputs of a row read neighbouring
// rows of shared memory at every kw, and the stride along H is only twice the distance between groups of rows.
//
// Input plane 2d belongs to output plane d alone (kd = 1), plane 2d + 1 to d and to d + 1 (kd = 2 and 0): products of
// N = OUT and N = 2 * OUT in turn. After an odd plane an output plane is complete; it is stored while the tensor cores
// work on the next. All weights of the block stay in shared memory.
//
// Set from outside, besides what common.cu needs: OUT (32 or 64), CHUNKS, STAGES; and PRODUCT_ONE, PRODUCT_TWO, the
// instructions with OUT / 2 and OUT registers.

constexpr int ROWS = 17, EVENS = 16, ODDS = 17;              // input rows of 8 outputs; columns of 16
constexpr int EVEN_BYTES = ROWS * EVENS * S, ODD_BYTES = ROWS * ODDS * S;
constexpr int ODD_AT = (EVEN_BYTES + 1023) / 1024 * 1024;
constexpr int STAGE = ODD_AT + (ODD_BYTES + 1023) / 1024 * 1024;
constexpr int TAP = 3 * OUT * S;                             // of one (kh, kw): kd = 2, 0, 1
constexpr int WEIGHTS = 9 * CHUNKS * TAP;
constexpr int KSTEPS = S / 32;
constexpr int CH = S / (KIND == 0 ? 2 : 1);

__device__ __forceinline__ void product_one(acc_t (&d)[OUT], u64 a, u64 b) { PRODUCT_ONE; }
__device__ __forceinline__ void product_two(acc_t (&d)[OUT], u64 a, u64 b) { PRODUCT_TWO; }

// the products of one chunk of a plane
template <bool ODD>
__device__ __forceinline__ void products(acc_t (&acc)[OUT], u32 plane, u32 held) {
  const u64 even_at = describe(plane, 2 * EVENS * S), odd_at = describe(plane + ODD_AT, 2 * ODDS * S), b = describe(held, 8 * S);
#pragma unroll
  for (int tap = 0; tap < 9; tap++)
#pragma unroll
    for (int k = 0; k < KSTEPS; k++) {
      const int kh = tap / 3, kw = tap % 3;
      const u64 a = kw == 1 ? even_at + ((kh * EVENS * S + k * 32) >> 4) : odd_at + (((kh * ODDS + kw / 2) * S + k * 32) >> 4);
      if (ODD) product_two(acc, a, b + ((tap * TAP + k * 32) >> 4));
      else product_one(acc, a, b + ((tap * TAP + 2 * OUT * S + k * 32) >> 4));
    }
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

extern "C" __global__ void __launch_bounds__(384, 1)
march2(const __grid_constant__ TensorMap evens, const __grid_constant__ TensorMap odds, const __grid_constant__ TensorMap wmap,
       int D, int H, int W, int tiles_h, int tiles_w, int blocks, int segments, int length,
       const __grid_constant__ Output to) {
  extern __shared__ unsigned char raw[];
  const u32 start = ((u32)__cvta_generic_to_shared(raw) + 1023) & ~1023u;
  const u32 weights = start + STAGES * STAGE;
  const u32 full = weights + WEIGHTS, empty = full + 8 * STAGES, ready = empty + 8 * STAGES;

  int id = blockIdx.x;                                        // D, H, W are the output's
  const int cb = id % blocks; id /= blocks;
  const int w0 = id % tiles_w * 16; id /= tiles_w;
  const int h0 = id % tiles_h * 8; id /= tiles_h;
  const int d0 = id % segments * length;
  const int n = id / segments;
  const int planes = 2 * min(length, D - d0) + 1;

  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) { barrier_init(full + 8 * i, 1); barrier_init(empty + 8 * i, 2); }
    barrier_init(ready, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x == 256) {                                   // weights depend on no launch before
    barrier_expect(ready, WEIGHTS);
    for (int i = 0; i < 9 * CHUNKS; i++) load_rows(weights + i * TAP, &wmap, ready, 0, (cb * 9 * CHUNKS + i) * 3 * OUT);
  }
  after_previous();

  if (warp >= 8) {                                            // the warp that loads
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (warp == 8 && lane == 0) {
      int stage = 0;
      u32 phase = 1;
      for (int p = 0; p < planes; p++)
        for (int c = 0; c < CHUNKS; c++) {
          barrier_wait(empty + 8 * stage, phase);
          barrier_expect(full + 8 * stage, EVEN_BYTES + ODD_BYTES);
          load_plane(start + stage * STAGE, &evens, full + 8 * stage, c * CH, w0, 2 * h0 - 1, 2 * d0 - 1 + p, n);
          load_plane(start + stage * STAGE + ODD_AT, &odds, full + 8 * stage, c * CH, w0 - 1, 2 * h0 - 1, 2 * d0 - 1 + p, n);
          if (++stage == STAGES) { stage = 0; phase ^= 1; }
        }
    }
  } else {                                                    // two warpgroups: 8 x 8 outputs each
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int group = warp / 4, part = warp % 4;
    acc_t acc[OUT], done[OUT / 2] = {};
#pragma unroll
    for (int i = 0; i < OUT; i++) acc[i] = 0;
    Epilogue<OUT, true> epilogue(to, cb * OUT, lane);
    const int h = h0 + part * 2, w = w0 + group * 8 + lane / 4;
    const bool whole = h0 + 8 <= H && w0 + 16 <= W;
    auto store = [&](int d) {
      if (d < d0) return;
#pragma unroll
      for (int r = 0; r < 2; r++) {
        u32 given[OUT / 8] = {};
        const bool inside = h + r < H && w < W, start = r == 0 && d == d0;
        if (RESIDUAL) epilogue.fetch(to, n * to.rn + d * to.rd + (h + r) * to.rh + w * to.rw, inside, given);
        const i64 at = n * to.yn + d * to.yd + (h + r) * to.yh + w * to.yw;
        if (whole) epilogue.row<true>(to, done, given, r, true, at, start);
        else epilogue.row<false>(to, done, given, r, inside, at, start);
      }
    };
    barrier_wait(ready, 0);
    int stage = 0;
    u32 phase = 0;
    auto begin = [&] {
      barrier_wait(full + 8 * stage, phase);
      hold(acc);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    };
    auto finish = [&] {
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      hold(acc);
      if (threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * stage);
      if (++stage == STAGES) { stage = 0; phase ^= 1; }
    };
    for (int p = 0; p < planes; p += 2) {
      if (p > 0)
        for (int c = 0; c < CHUNKS; c++) {
          begin();
          products<false>(acc, start + stage * STAGE + group * 8 * S, weights + c * 9 * TAP);
          if (c == 0) store(d0 + p / 2 - 2);                  // complete since the odd plane before
          finish();
        }
      for (int c = 0; c < CHUNKS; c++) {
        begin();
        products<true>(acc, start + stage * STAGE + group * 8 * S, weights + c * 9 * TAP);
        finish();
      }
#pragma unroll
      for (int i = 0; i < OUT / 2; i++) {
        done[i] = acc[i];                                     // the first time of no output: never stored
        acc[i] = acc[i + OUT / 2];
        acc[i + OUT / 2] = 0;
        asm volatile("" : HOLD(done[i])::"memory");           // copied here, not where it is read
      }
    }
    store(d0 + planes / 2 - 1);
    if (STATS) epilogue.flush(to, n);
  }
}
