"""A teacher that seems to compute elsewhere, so that tests need no server."""

import torch

from opd.divergence import TopK, sampled
from opd.engines.prompt_logprobs import PromptLogprobScorer
from opd.models.scoring import distributions
from opd.trajectory import Trajectory


class Elsewhere(PromptLogprobScorer):
    """What a vLLM server says, said by a local model."""

    def __init__(self, model, name="elsewhere"):
        self.model, self.name, self.vocabulary, self.context = model, name, model.vocabulary, 256

    def close(self):
        pass

    def prompt_logprobs(self, sequences, lengths, top_k):
        out = []
        for ids, n in zip(sequences, lengths, strict=True):
            t = Trajectory(ids[:-n], ids[-n:], None, None, ids[:-n])
            with torch.no_grad():
                d = distributions(
                    self.model, [t], side="teacher", temperature=1.0, vocabulary=self.vocabulary
                )
                logprobs = d.log_probs(d.hidden)
            top = logprobs.topk(top_k, -1)
            taken = sampled(logprobs, torch.from_numpy(ids[-n:]))
            ranks = (logprobs > taken[:, None]).sum(-1)
            out.append(TopK(taken, ranks, top.indices, top.values))
        return out
