"""A teacher on a server: any vLLM server that speaks the OpenAI protocol, asked with token ids."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx
import numpy as np
import torch
from numpy.typing import NDArray

from opd.divergence import TopK
from opd.engines.prompt_logprobs import PromptLogprobScorer
from opd.models.text import ModelText
from opd.protocols import EngineError, must_be_finite

logger = logging.getLogger(__name__)

KEY_VARIABLE, SERVER_VARIABLE = "OPD_TEACHER_API_KEY", "OPD_TEACHER_URL"
"""The environment variables of the API key, the one place it may be in, and of the server that it is for:
whoever may name a server in a form or a config is not given the key by that."""

FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0
"""Seconds until the second attempt; doubled for each further one, up to the longest."""

TRANSIENT = (408, 429, 500, 502, 503, 504)
"""Answers after which the same question may be answered later."""

PROBE_TOKENS = 64
"""Token ids, spread over the vocabulary, whose texts are looked at when a server is checked."""


class RemoteScorer(PromptLogprobScorer):
    """A :class:`opd.protocols.Scorer` on a server."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        vocabulary: int,
        concurrency: int = 8,
        timeout: float = 120.0,
        patience: float = 900.0,
        on_wait: Callable[[str], None] = logger.warning,
    ) -> None:
        """Look the model up on the server; :meth:`check` then makes sure that it is the right one.

        Args:
            url: of the server, such as ``http://127.0.0.1:8000``. The API key in the environment variable
                ``OPD_TEACHER_API_KEY`` is sent if it is the server that ``OPD_TEACHER_URL`` names.
            name: the model's name on the server.
            vocabulary: number of token ids that count.
            concurrency: requests that run at once.
            timeout: seconds until one attempt is given up.
            patience: seconds without an answer until the server is.
            on_wait: hears once that the server does not answer, each time that happens.

        Raises:
            ValueError: the URL cannot be used, or the server has no such model.
            EngineError: the server does not answer.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of a server. Give one like http://127.0.0.1:8000.")
        if parts.username or parts.password:
            raise ValueError(
                f"A URL is logged, so it must hold no password. Put the key into {KEY_VARIABLE}, and into "
                f"{SERVER_VARIABLE} the URL."
            )
        self.url = url.rstrip("/").removesuffix("/v1")
        self.name, self.vocabulary, self.patience = name, vocabulary, patience
        meant = urlsplit(os.environ.get(SERVER_VARIABLE, ""))
        key = os.environ.get(KEY_VARIABLE) if _origin(meant) == _origin(parts) else None
        self._client = httpx.Client(
            base_url=f"{self.url}/v1/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout,
            limits=httpx.Limits(max_connections=concurrency),
        )
        self._concurrency, self._on_wait = concurrency, on_wait
        self._saying, self._said = threading.Lock(), False
        served = {model["id"]: model for model in self._ask("GET", "models", threading.Event())["data"]}
        if name not in served:
            raise ValueError(f"{self.url} serves {', '.join(served) or 'nothing'}, not {name}.")
        # One token more must fit: the server predicts a next token even to score.
        self.context = int(served[name].get("max_model_len") or 2**31) - 1

    def check(self, student: ModelText, *, top_k: int = 0) -> None:
        """Make sure, before a run, that the server scores what the student writes.

        Token ids spread over the vocabulary must have the student's texts there, and log-probs.

        Args:
            student: the model whose token ids will be scored.
            top_k: how many alternatives the run will ask for.

        Raises:
            ValueError: the server is not the teacher that is wanted; the message says why.
            EngineError: the server does not answer.
        """
        count = min(PROBE_TOKENS, self.vocabulary, self.context)
        ids = np.linspace(0, self.vocabulary - 1, count).astype(np.int64)
        answer = self._complete(ids, top_k, threading.Event())
        self._read(ids, answer, count - 1, top_k)
        for ident, entries in zip(ids[1:].tolist(), answer[1:], strict=True):
            theirs, ours = entries[str(ident)].get("decoded_token"), student.tokenizer.decode([ident])
            # Bytes that are no character alone are shown differently by different versions.
            if theirs is not None and "\ufffd" not in ours and theirs != ours:
                raise ValueError(
                    f"{self.name} at {self.url} has another vocabulary than {student.name}: token {ident} is "
                    f"{theirs!r} there and {ours!r} here. Choose a student and a teacher of one model family."
                )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def prompt_logprobs(
        self, sequences: Sequence[NDArray[np.int64]], lengths: Sequence[int], top_k: int
    ) -> list[TopK]:
        """Score the end of sequences; see :class:`PromptLogprobScorer`."""
        given_up = threading.Event()
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            running = [
                pool.submit(self._score, ids, length, top_k, given_up)
                for ids, length in zip(sequences, lengths, strict=True)
            ]
            for future in wait(running, return_when=FIRST_EXCEPTION).done:
                future.result()  # one missing grade is enough: no others are waited for
            return [future.result() for future in running]
        finally:
            given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _score(self, ids: NDArray[np.int64], length: int, top_k: int, given_up: threading.Event) -> TopK:
        return self._read(ids, self._complete(ids, top_k, given_up), length, top_k)

    def _complete(
        self, ids: NDArray[np.int64], top_k: int, given_up: threading.Event
    ) -> list[dict[str, dict[str, Any]]]:
        """Return what the server says of each token of a sequence: its entries by id, as text."""
        body = {"model": self.name, "prompt": ids.tolist(), "prompt_logprobs": top_k, "temperature": 0}
        answer = self._ask("POST", "completions", given_up, body | {"max_tokens": 1})
        try:
            entries = answer["choices"][0]["prompt_logprobs"]
        except (KeyError, IndexError, TypeError):
            entries = None
        if not entries or len(entries) != len(ids):
            raise ValueError(
                f"{self.name} at {self.url} returns no log-probs of the prompt. The server must be vLLM, "
                "which has the option prompt_logprobs."
            )
        return entries

    def _read(
        self, ids: NDArray[np.int64], entries: Sequence[dict[str, dict[str, Any]]], length: int, top_k: int
    ) -> TopK:
        """Turn the entries of the last ``length`` tokens into scores; refuse what is incomplete."""
        taken, ranks, top = [], [], []
        try:
            for ident, found in zip(ids[-length:].tolist(), entries[-length:], strict=True):
                taken.append(found[str(ident)]["logprob"])
                ranks.append(found[str(ident)]["rank"] - 1)
                by_rank = {entry["rank"]: (int(i), entry["logprob"]) for i, entry in found.items()}
                top.append([by_rank[rank] for rank in range(1, top_k + 1)])
            pairs = np.array(top, np.float64).reshape(length, top_k, 2)
            scores = TopK(
                logprobs=torch.tensor(taken, dtype=torch.float32),
                ranks=torch.tensor(ranks, dtype=torch.int64),
                top_ids=torch.from_numpy(pairs[:, :, 0]).long(),
                top_logprobs=torch.from_numpy(pairs[:, :, 1]).float(),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.name} at {self.url} returns log-probs that lack a token's.") from error
        must_be_finite(f"{self.name} at {self.url}", scores.logprobs.numpy(), scores.top_logprobs.numpy())
        if top_k and scores.top_ids.max() >= self.vocabulary:
            raise ValueError(
                f"{self.name} at {self.url} expects token {scores.top_ids.max()}, which the student does not "
                f"have: its ids end at {self.vocabulary - 1}. Choose two models of one family."
            )
        return scores

    def _ask(
        self, method: str, path: str, given_up: threading.Event, body: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        """Ask until there is an answer: connections that fail and servers in trouble get more attempts."""
        failed_at, delay = None, FIRST_DELAY
        while True:
            try:
                response = self._client.request(method, path, json=body)
                if response.status_code not in TRANSIENT:
                    break
                trouble = f"it answers {response.status_code} {response.reason_phrase}"
            except httpx.TransportError as error:
                trouble = str(error) or type(error).__name__
            now = time.monotonic()
            failed_at = failed_at or now
            if now - failed_at + delay > self.patience:
                raise EngineError(
                    f"The teacher at {self.url} has not answered for {now - failed_at:.0f} seconds: "
                    f"{trouble}. Start its server again, then the run: it goes on from its last checkpoint."
                )
            self._say_once(f"The teacher at {self.url} does not answer: {trouble}. Waiting for it.")
            if given_up.wait(delay):
                raise EngineError(f"The teacher at {self.url} was not asked again.")
            delay = min(2 * delay, LONGEST_DELAY)
        self._said = False
        return self._answer(response)

    def _say_once(self, sentence: str) -> None:
        """Say once what is waited for, however many requests wait."""
        with self._saying:
            if not self._said:
                self._on_wait(sentence)
            self._said = True

    def _answer(self, response: httpx.Response) -> Any:  # noqa: ANN401
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.is_success and isinstance(answer, dict):
            return answer
        try:
            said = str(answer["error"]["message"])
        except (KeyError, TypeError):
            said = " ".join(response.text.split())[:200]
        advice = "Check the URL: it must be that of a vLLM server."
        if response.status_code in (401, 403):
            advice = f"Set {KEY_VARIABLE} to its key, and {SERVER_VARIABLE}={self.url}, the server it is for."
        elif "logprobs" in said and "max allowed" in said:
            advice = "Lower top_k, or start the server with a higher --max-logprobs."
        elif "maximum model length" in said or "context length" in said:
            advice = "Lower max_tokens, or start the server with a higher --max-model-len."
        elif response.is_client_error and said:
            advice = ""
        raise ValueError(
            f"The teacher at {self.url} answers {response.status_code}: {said.rstrip('.')}. {advice}".rstrip()
        )


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port: what one server is known by."""
    return url.scheme, url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme)
