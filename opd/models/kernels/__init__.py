"""The same results in less time: what is swapped in a transformers model once it is loaded, and why.

transformers writes the network of every family plainly, one readable operation after the other, for any
device. On a CPU, and wherever one token a row is decoded, much of the time then goes into calling small
operations and into work that nobody asked for. :func:`prepare` replaces that. The model stays what it was:
its parameters, their names, its ``state_dict`` and ``save_pretrained`` are untouched.

1. **Attention** (:mod:`.attention`), a function that transformers calls instead of its ``sdpa``. That one
   copies the cache at every step, to repeat each key and value head for the query heads that share it; here
   the queries of a group stand in as positions of one head. A step of 64 rows and 128 columns attends in
   0.37 ms instead of 1.02.
2. **Packed rows** (:mod:`.packing`), which that attention understands: sequences of different lengths lie
   in one row without padding, each attends within itself, and several micro-batches become one.
3. **Linear layers** (:mod:`.linear`): a subclass of ``nn.Linear`` has oneDNN make the larger products,
   forward and backward. MKL, which torch asks, uses half of the vector unit on processors that are not
   Intel's: 4,500 x 192 x 384 went from 220 to 464 GFLOPS. With packed rows an update on identical ids takes
   0.22 s instead of 0.36.
4. **RMSNorm** (:mod:`.norms`): a subclass of the family's own makes one of five operations instead of six
   and conversions, and six passes backward. 64 x 128 values take 6.0 µs instead of 12.8.
5. **Memory**: the C library is brought to keep what is freed. Reading 512 prompts takes 103-116 ms instead
   of 140-195.

(Two cores of a Zen 5. ``benchmarks/NOTES.md`` says how this was measured, and what was tried and left out.)

What it does not touch. Linear layers, norms and the products of all heads at once are for fp32 on a CPU; on
a GPU, under autocast, in half precision, quantized or compiled, a swapped layer does what it did before. A
norm is swapped where a probe shows that it is ``x / rms(x) * weight`` and nothing else, rows are packed
where a probe shows that the model reads them as if each sequence were alone, and a linear layer of a class
of its own stays. Results equal the plain ones up to round-off, which ``tests/models/kernels/`` measures.

How to turn it off. With ``OPD_KERNELS=0`` in the environment no class is swapped and sequences are read in
padded batches: transformers alone. So one more run says whether an odd result comes from here.
"""

from __future__ import annotations

import os

import torch

from opd.models.hf import PreTrainedModel
from opd.models.kernels.attention import use_grouped_attention
from opd.models.kernels.linear import use_onednn
from opd.models.kernels.norms import use_fast_norms


def prepare(model: PreTrainedModel) -> None:
    """Swap in place what stands above; what is swapped already stays. ``OPD_KERNELS=0``: nothing."""
    if os.environ.get("OPD_KERNELS") == "0":
        return
    use_grouped_attention(model)
    use_onednn(model)
    use_fast_norms(model)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of tensors for the next ones.

    It does so only once a block as large (up to 32 MiB) was freed; else larger tensors lie on pages that the
    system has to clear first.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")
