"""Which phases there are, in which order, and how long each may take.

A *process* plays one or more phases one after another, so that they can share what takes long to set up: an engine. If
a phase overruns its limit its process is ended, and another one goes on with the phases behind it. Where a process has
*variants*, its first phase sets the engine up: if that fails, the next variant is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DRY_PATIENCE = 4.0


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase. Limits are in seconds."""

    name: str  # of its result file
    title: str
    function: str  # module:function; takes a `Work`, returns what it found
    limit_s: float
    least_s: float = 5.0  # it is not begun with less left

    def at_most_s(self, dry: bool) -> float:
        """Its limit: on a CPU that others use, too, a longer one."""
        return self.limit_s * (DRY_PATIENCE if dry else 1.0)


@dataclass(frozen=True, slots=True)
class Process:
    name: str
    phases: tuple[Phase, ...]
    variants: tuple[str, ...] = ("",)  # ways to set it up, the preferred one first
    hasty: str = ""  # the variant that is tried after one that took too long
    batch_invariant: bool = False  # whether answers must not depend on what else is in a step
    needs: tuple[str, ...] = ("vllm",)  # modules that have to be installed

    @property
    def opening(self) -> Phase | None:
        """The phase that all others of this process stand on, if it has one."""
        return self.phases[0] if len(self.variants) > 1 else None


PLAYED = ("vllm", "tokencake", "native-offload")  # live, in this order, against predictions
COMPILED, TRITON, EAGER, SMALL = "compiled", "triton", "eager", "small"  # ways to bring a large engine up


def _live(policy: str) -> Phase:
    function = f"gpu.shape:live_{policy.replace('-', '_')}"
    return Phase(f"live-{policy}", f"{policy} live, against its predictions", function, 175, 25)


PROCESSES = (
    Process("machine", (Phase("machine", "the machine", "gpu.machine:facts", 30),), needs=()),
    Process("copies", (Phase("copies", "copies without an engine", "gpu.copies:measured", 60, 20),)),
    Process(
        "copier-tests",
        (Phase("copier-tests", "the copier's tests", "gpu.copier_tests:passed", 60, 15),),
        needs=("vllm", "pytest", "hypothesis"),
    ),
    Process("canary", (Phase("canary", "one layer in bf16 answers", "gpu.answers:canary", 90, 25),)),
    Process(
        "answers",
        (
            Phase("answers-fp32", "answers are stock vLLM's, fp32", "gpu.answers:in_fp32", 75, 30),
            Phase("answers-bf16", "answers are stock vLLM's, bf16", "gpu.answers:in_bf16", 75, 30),
        ),
        batch_invariant=True,
    ),
    Process(
        "shape",
        (
            Phase("up", "an engine of the 7B shape is up", "gpu.shape:up", 150, 60),
            Phase("calibrated", "it is calibrated", "gpu.shape:calibrated", 100, 20),
            Phase("predicted", "predictions are written", "gpu.shape:predicted", 45, 10),
            *map(_live, PLAYED),
        ),
        variants=(COMPILED, TRITON, EAGER, SMALL),
        hasty=EAGER,
    ),
    Process(
        "overhead",
        (
            Phase("steps-stock", "steps of stock vLLM, 0.5B shape", "gpu.overhead:stock", 75, 30),
            Phase("steps-ours", "the same steps with us", "gpu.overhead:ours", 75, 30),
        ),
    ),
    Process("decisions", (Phase("decisions", "decisions of a synchronous run", "gpu.decisions:replayed", 150, 60),)),
)


def phases_of(processes: Sequence[Process]) -> dict[str, Phase]:
    """All phases by name, in their order."""
    return {phase.name: phase for process in processes for phase in process.phases}
