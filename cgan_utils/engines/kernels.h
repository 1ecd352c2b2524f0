/* The beginning of every program that `codegen` generates. All threads call these functions: an
   "omp for" loop is divided among them, and after each kernel they meet. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE()
#endif
#define SPINS 2000 /* of a waiting thread before it sleeps: some 40 to 100 microseconds */

/* Wait until all threads have called this equally often; `arrivals`, 0 at first, counts the calls.
   OpenMP's own barrier spins for milliseconds. If another program has taken the core of one thread,
   the others would keep theirs busy for nothing, and it could not move there. */
static void meet(long *arrivals) {
  long threads = omp_get_num_threads();
  long count = __atomic_add_fetch(arrivals, 1, __ATOMIC_ACQ_REL);
  long all = (count + threads - 1) / threads * threads;
  for (int spins = 0; __atomic_load_n(arrivals, __ATOMIC_ACQUIRE) < all; spins++)
    if (spins < SPINS)
      PAUSE();
    else
      nanosleep(&(struct timespec){0, 50000}, 0); /* 50 microseconds */
}

/* A thread's share of a vectorised loop: whole registers, so that each element, whatever the number
   of threads, is computed by the same instructions, and has the same bits. */
static inline int share(int length) {
  int threads = omp_get_num_threads();
  return ((length + threads - 1) / threads + 15) / 16 * 16;
}

/* The processor's vector registers: each holds LANES floats. A register tile of a matrix product
   has TILE_ROWS rows and TILE_COLUMNS columns. */
#if defined(__AVX512F__) /* 32 registers */
#define LANES 16
#define TILE_ROWS 12
#elif defined(__AVX__) /* 16 registers */
#define LANES 8
#define TILE_ROWS 6
#else
#define LANES 4
#define TILE_ROWS 6
#endif
#define TILE_COLUMNS (2 * LANES)
#define BLOCK_COLUMNS 192 /* a multiple of TILE_COLUMNS */
#define MAX_PACKED 16384 /* inner length: TILE_ROWS longer rows might not fit on a thread's stack */

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));

#if defined(__GLIBC__) && defined(__x86_64__) && !defined(__clang__)
__attribute__((simd("notinbranch"))) extern float expf(float); /* glibc has a vector version */
#endif

/* As a function, it evaluates both arguments before the comparison, so that the loop vectorises.
   The same expression inside the loop would load the gradient conditionally, one element at a
   time. */
static inline float threshold_backward(float gradient, float x, float limit) {
  return x <= limit ? 0 : gradient;
}

static inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }
static inline float hyperbolic_tangent(float x) { return 1 - 2 / (expf(2 * x) + 1); }

/* -log(1 - sigmoid(x)), finite for every x */
static inline float softplus(float x) { return (x > 0 ? x : 0) + log1pf(expf(-fabsf(x))); }

/* One register tile of C = A B: `rows` rows, at most TILE_ROWS, and TILE_COLUMNS columns. The sums
   stay in registers. Each element of A, whose strides are arbitrary, multiplies a contiguous run of
   a row of B. */
static inline void matmul_tile(int rows, int inner, const float *a, int a_row, int a_column,
                               const float *b, int b_row, float *c, int c_row) {
  vector left[TILE_ROWS], right[TILE_ROWS];
  const float *row[TILE_ROWS];
  for (int i = 0; i < TILE_ROWS; i++) {
    left[i] = right[i] = (vector){0};
    row[i] = a + (i < rows ? i : 0) * a_row; /* the sums of surplus rows are not stored */
  }
  for (int k = 0; k < inner; k++) {
    const vector *across = (const vector *)(b + k * b_row);
    __builtin_prefetch(b + (k + 16) * b_row); /* hardware does not prefetch such large strides */
    for (int i = 0; i < TILE_ROWS; i++) {
      left[i] += row[i][k * a_column] * across[0];
      right[i] += row[i][k * a_column] * across[1];
    }
  }
  for (int i = 0; i < rows; i++) {
    vector *across = (vector *)(c + i * c_row);
    across[0] = left[i];
    across[1] = right[i];
  }
}

/* C = A B for matrices (rows, inner) and (inner, columns), with columns >= TILE_COLUMNS. The last
   tile may overlap the one before it, and computes the same elements again. If A is column-major,
   TILE_ROWS of its rows at a time are packed first, for up to BLOCK_COLUMNS columns of B: the
   elements of a row lie far apart, often by a power of two, and the cache cannot hold them. */
static void matmul(int rows, int inner, int columns, const float *a, int a_row, int a_column,
                   const float *b, int b_row, float *c, int c_row) {
  int pack = a_row == 1 && inner <= MAX_PACKED;
  float packed[pack ? inner * TILE_ROWS : 1];
  _Pragma("omp for collapse(2) nowait")
  for (int block = 0; block < columns; block += BLOCK_COLUMNS)
    for (int i = 0; i < rows; i += TILE_ROWS) {
      int count = rows - i < TILE_ROWS ? rows - i : TILE_ROWS;
      int end = columns < block + BLOCK_COLUMNS ? columns : block + BLOCK_COLUMNS;
      const float *left = a + i * a_row;
      for (int k = 0; pack && k < inner; k++) {
        float *to = packed + k * TILE_ROWS;
        const float *from = left + k * a_column;
        if (count == TILE_ROWS) /* with a constant length, memcpy is inlined */
          memcpy(to, from, 4 * TILE_ROWS);
        else
          memcpy(to, from, 4 * count);
      }
      if (pack)
        left = packed;
      for (int j = block; j < end; j += TILE_COLUMNS) {
        int first = j < columns - TILE_COLUMNS ? j : columns - TILE_COLUMNS;
        matmul_tile(count, inner, left, a_row, pack ? TILE_ROWS : a_column, b + first, b_row,
                    c + i * c_row + first, c_row);
      }
    }
}

/* One step of Adam: Kingma & Ba 2015 (arXiv 1412.6980), algorithm 1. */
static void adam(int size, float *weight, const float *gradient, float *mean, float *square,
                 float step, float rate, double beta1, double beta2, float epsilon) {
  float kept1 = beta1, kept2 = beta2, new1 = 1 - beta1, new2 = 1 - beta2;
  float stride = rate / (1 - pow(beta1, step)), unit = sqrt(1 - pow(beta2, step));
  _Pragma("omp for simd schedule(static, share(size)) nowait")
  for (int i = 0; i < size; i++) {
    mean[i] = kept1 * mean[i] + new1 * gradient[i];
    square[i] = kept2 * square[i] + new2 * gradient[i] * gradient[i];
    weight[i] -= stride * mean[i] / (sqrtf(square[i]) / unit + epsilon);
  }
}
