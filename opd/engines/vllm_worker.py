"""The process that runs vLLM for :class:`opd.engines.vllm.VllmEngine`, one command after another.

Commands come through a connection whose file descriptor is the only argument. Each is answered by any number
of ``("item", value)`` and one ``("done", None)``, or by ``("failed", message)``, after which this process
ends: vLLM's state is then unknown. ``"stop"`` among the items ends a command early.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from safetensors import safe_open
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

ADAPTER = {"lora_name": "student", "lora_int_id": 1}


class Engine:
    """vLLM in this process. Every method but the constructor is a command."""

    def __init__(self, *, folder: str, vocabulary: int, **options: Any) -> None:  # noqa: ANN401
        """Load the model in ``folder``; ``options`` are vLLM's own."""
        cuda = current_platform.is_cuda()
        settings = EngineArgs(
            folder,
            skip_tokenizer_init=True,  # ids go in and out, never text
            max_logprobs=-1,
            logprobs_mode="processed_logprobs",  # those of the temperature that is sampled with
            enforce_eager=not cuda,
            # On a CPU a seeded request dies if a step of the engine takes only a part of its prompt.
            enable_chunked_prefill=cuda,
            disable_log_stats=True,
            **options,
        )
        self.engine = LLMEngine.from_engine_args(settings)
        self.adapter: LoRARequest | None = None
        self.engine.collective_rpc(_cut_vocabulary, args=(vocabulary,))

    def sample(
        self,
        begins: Sequence[np.ndarray],
        prefixes: Sequence[int],
        budgets: Sequence[int],
        seeds: Sequence[int],
        *,
        eos_ids: Sequence[int],
        temperature: float,
        snapshot_every: int,
    ) -> Iterator[tuple[int, list[int], list[float], str | None]]:
        """Sample a completion behind each of ``begins``, whose last ``prefixes[i]`` ids are part of it.

        Yields:
            Index, ids and log-probs of a completion, and why it ended; None = it still grows.
        """
        kind = RequestOutputKind.CUMULATIVE if snapshot_every else RequestOutputKind.FINAL_ONLY
        params = [
            SamplingParams(
                temperature=temperature,
                seed=seed,
                max_tokens=budget,
                stop_token_ids=list(eos_ids),
                ignore_eos=True,  # only the ids above end a completion
                logprobs=0,
                prompt_logprobs=0 if prefix else None,
                flat_logprobs=True,
                detokenize=False,
                output_kind=kind,
            )
            for prefix, budget, seed in zip(prefixes, budgets, seeds, strict=True)
        ]
        steps = 0
        for outputs in self._steps(begins, params):
            steps += 1
            for index, output in outputs:
                if not (output.finished or (snapshot_every and steps % snapshot_every == 0)):
                    continue
                ids, logprobs = list(output.outputs[0].token_ids), output.outputs[0].logprobs.logprobs
                if prefix := prefixes[index]:
                    ids = begins[index][-prefix:].tolist() + ids
                    logprobs = output.prompt_logprobs.logprobs[-prefix:] + logprobs
                yield index, ids, logprobs, output.outputs[0].finish_reason

    def score(
        self, sequences: Sequence[np.ndarray], lengths: Sequence[int], *, top_k: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Score the last ``lengths[i]`` tokens of each sequence.

        Yields:
            Index, log-probs ``[T, 1 + K]`` and ids ``[T, 1 + K]`` of the token that is there and of the K
            likeliest, and the former's rank ``[T]``, 0 = first choice.
        """
        params = SamplingParams(
            max_tokens=1, prompt_logprobs=top_k, flat_logprobs=True, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        for outputs in self._steps(sequences, [params] * len(sequences)):
            for index, output in outputs:
                found, length = output.prompt_logprobs, lengths[index]
                logprobs, ids, ranks = (
                    np.array(column[-length * (1 + top_k) :], dtype).reshape(length, 1 + top_k)
                    for column, dtype in (
                        (found.logprobs, np.float32),
                        (found.token_ids, np.int32),
                        (found.ranks, np.int32),
                    )
                )
                yield index, logprobs, ids, ranks[:, 0] - 1

    def load(self, path: str) -> Iterable[None]:
        """Replace all weights by those of a safetensors file."""
        self.engine.collective_rpc(_load, args=(path,))
        self.engine.reset_prefix_cache()
        return ()

    def swap(self, folder: str) -> Iterable[None]:
        """Replace the adapter by the one in ``folder``."""
        self.engine.add_lora(LoRARequest(**ADAPTER, lora_path=folder, load_inplace=True))
        self.adapter = LoRARequest(**ADAPTER, lora_path=folder)
        self.engine.reset_prefix_cache()  # vLLM keeps what it computed with the old one under the same name
        return ()

    def sleep(self) -> Iterable[None]:
        """Move the weights to main memory and give up the key-value cache."""
        self.engine.sleep(level=1)
        return ()

    def wake(self) -> Iterable[None]:
        """Take both back."""
        self.engine.wake_up()
        return ()

    def _steps(
        self, sequences: Sequence[np.ndarray], params: Sequence[SamplingParams]
    ) -> Iterator[list[tuple[int, Any]]]:
        """Run requests to their end; yield what each step of the engine brought, by index."""
        running = {}
        try:
            for index, (ids, param) in enumerate(zip(sequences, params, strict=True)):
                prompt = {"prompt_token_ids": ids.tolist()}
                added = self.engine.add_request(str(index), prompt, param, lora_request=self.adapter)
                running[str(index)] = added
            while running:
                outputs = self.engine.step()
                for output in outputs:
                    if output.finished:
                        del running[output.request_id]
                yield [(int(output.request_id), output) for output in outputs]
        finally:
            self.engine.abort_request(list(running.values()), internal=True)


def _cut_vocabulary(worker: Any, vocabulary: int) -> None:  # noqa: ANN401
    """Let padded rows of the output matrix win no mass."""
    for module in worker.get_model().modules():
        if isinstance(module, LogitsProcessor):
            module.org_vocab_size = min(module.org_vocab_size, vocabulary)


def _load(worker: Any, path: str) -> None:  # noqa: ANN401
    embeddings = [m for m in worker.get_model().modules() if isinstance(m, VocabParallelEmbedding)]
    heads = [m for m in embeddings if isinstance(m, ParallelLMHead)]
    tied = [(h, e) for h in heads for e in embeddings if h is not e and h.weight is e.weight]
    with safe_open(path, "pt") as file:
        worker.reload_weights(weights_iterator=((name, file.get_tensor(name)) for name in file.keys()))  # noqa: SIM118
    # The reload passes over a tied head, which on a CPU computes with a packed copy of the old weights.
    for head, embedding in tied:
        head.tie_weights(embedding)
        head.quant_method.process_weights_after_loading(head)


def main() -> None:
    """Load the model that the first message describes, then answer commands until the connection closes."""
    connection = Connection(int(sys.argv[1]))
    engine: Engine | None = None
    while True:
        try:
            message = connection.recv()
        except EOFError:  # the trainer is done, or dead
            return
        if message == "stop":  # came after the last item
            continue
        command, arguments, options = message
        try:
            if engine is None:
                engine, items = Engine(**options), ()
            else:
                items = getattr(engine, command)(*arguments, **options)
            for item in items:
                connection.send(("item", item))
                if connection.poll():  # a "stop": nobody wants the rest
                    connection.recv()
                    items.close()
        except Exception as error:
            connection.send(("failed", f"{type(error).__name__}: {error}"))
            raise
        connection.send(("done", None))


if __name__ == "__main__":
    main()
