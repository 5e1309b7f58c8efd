"""These tests run against the real vLLM, in the environment of `make vllm`; elsewhere there is none."""

from opd.engines.vllm import installed

if not installed():
    collect_ignore_glob = ["test_*.py"]
