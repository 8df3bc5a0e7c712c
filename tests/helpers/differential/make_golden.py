"""Makes the golden files from vLLM's own scheduler: `PYTHONPATH=tests/helpers python -m differential.make_golden`.

Needs an environment with vLLM, see `.ci/install-vllm`.
"""

from __future__ import annotations

from . import golden
from .vllm_driver import simulate


def main() -> None:
    for name, made in golden.workloads():
        steps = list(simulate(*made))
        golden.write(name, made, steps)
        print(f"{name}: {len(steps)} steps")


if __name__ == "__main__":
    main()
