// float64: right, not fast. A file of that type runs with the library as it does without.
#include <algorithm>
#include <cmath>

#include "job.h"

namespace laurel {

namespace {

struct View {
  const double* data;
  int64_t stride;
  double operator[](int64_t i) const { return data ? data[i * stride] : 0.0; }
};

View view(const Job& job, Parameter parameter, const Vector& vector) {
  return {static_cast<const double*>(job.raw[parameter]), vector.stride};
}

// One feature vector, elements `step` apart.
void run_vector(const Job& job, int64_t origin, int64_t step) {
  const double* x = static_cast<const double*>(job.x) + origin;
  const double* f = static_cast<const double*>(job.f) + origin;
  double* y = static_cast<double*>(job.y) + origin;
  const int64_t width = job.width;
  auto* carried = static_cast<double*>(job.allocate(job.allocator, static_cast<size_t>(width) * sizeof(double)));
  for (int64_t i = 0; i < width; ++i) carried[i] = x[i * step];
  const bool lr = job.raw[kA] != nullptr;
  for (int p = 0; p < job.products; ++p) {
    const int64_t rank = job.product[p].rank;
    const int64_t j = p - (lr ? 1 : 0);  // which earlier activation
    const bool own = lr && p == 0;
    const double* A = static_cast<const double*>(job.raw[own ? kA : kPreviousA]) + (own ? 0 : j * width * rank);
    const double* B = static_cast<const double*>(job.raw[own ? kB : kPreviousB]) + (own ? 0 : j * width * rank);
    const double scale = own ? 1.0 : static_cast<const double*>(job.raw[kGamma])[j];
    const double* source = static_cast<const double*>(job.product[p].source) + origin;
    for (int64_t r = 0; r < rank; ++r) {
      double sum = 0;
      for (int64_t i = 0; i < width; ++i) sum += source[i * step] * A[i * rank + r];
      for (int64_t i = 0; i < width; ++i) carried[i] += scale * sum * B[r * width + i];
    }
  }
  for (int j = 0; j < job.previous; ++j) {
    const double gamma = static_cast<const double*>(job.raw[kGamma])[j];
    const double* previous = static_cast<const double*>(job.previous_x[j]) + origin;
    for (int64_t i = 0; i < width; ++i) carried[i] += gamma * previous[i * step];
  }
  const View alpha = view(job, kAlpha, job.alpha), beta = view(job, kBeta, job.beta);
  const View bias = view(job, kBias, job.bias), scale = view(job, kScale, job.scale);
  const View offset = view(job, kOffset, job.offset);
  double mean = 0, squares = 0;
  for (int64_t i = 0; i < width; ++i) {
    carried[i] = (alpha.data ? alpha[i] : 1.0) * (f[i * step] + bias[i]) + (beta.data ? beta[i] : 1.0) * carried[i];
    mean += carried[i];
  }
  mean = job.epilogue == Epilogue::kLayerNorm ? mean / static_cast<double>(width) : 0.0;
  for (int64_t i = 0; i < width; ++i) squares += (carried[i] - mean) * (carried[i] - mean);
  const double factor = 1 / std::sqrt(squares / static_cast<double>(width) + job.epsilon);
  const bool norm = is_norm(job.epilogue);
  for (int64_t i = 0; i < width; ++i) {
    if (norm && job.sum) static_cast<double*>(job.sum)[origin + i * step] = carried[i];
    double value = norm ? (carried[i] - mean) * factor * scale[i] + offset[i] : carried[i];
    y[i * step] = job.epilogue == Epilogue::kRelu && value < 0 ? 0.0 : value;
  }
  job.release(job.allocator, carried);
}

}  // namespace

void plan_double(Job* job) { job->tasks = job->rows * std::max<int64_t>(1, job->inner); }

void run_double(const Job& job, int64_t task) {
  if (job.inner == 0) return run_vector(job, task * job.width, 1);
  run_vector(job, task / job.inner * job.width * job.inner + task % job.inner, job.inner);
}

}  // namespace laurel
