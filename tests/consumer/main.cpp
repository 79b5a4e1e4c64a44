#include <ATen/ATen.h>

#include <iostream>

#include "lighthouse/nn/attention.h"
#include "lighthouse/ops/attention.h"

// Lighthouse attention of random rows, with its gradient, through the installed library alone.
int main() {
  lighthouse::Config config;
  config.budget = 64;
  config.tile_budget = 32;
  const at::Tensor q = at::randn({1, 4, 2048, 32}).requires_grad_();
  const at::Tensor k = at::randn({1, 2, 2048, 32});
  const at::Tensor v = at::randn({1, 2, 2048, 32});
  lighthouse::nn::Attention attention(lighthouse::nn::AttentionOptions{.config = config});
  const at::Tensor out = attention->forward(q, k, v);
  const bool same = at::equal(out, lighthouse::attention(q, k, v, config));
  out.sum().backward();
  std::cout << "out " << out.sizes() << ", grad_q " << q.grad().sizes() << '\n';
  return same && q.grad().isfinite().all().item<bool>() ? 0 : 1;
}
