"""Does a kernel give the same bits every time? Runs each kernel of a plan many times on poisoned outputs.

    python benchmarks/kernels/repeat.py --plan FOLDER/NAME.plan.json --times 200

A kernel adds in a fixed order (but for the sums of norms, which are left out), so any difference is a race. Prints the
kernels that differ, if any, and those whose first result is not that of the reference.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from wetread.engines.cuda.cache import problem_key, problem_of
from wetread.engines.cuda.plan import SUFFIX, Plan
from wetread.engines.cuda.steptable import kernel_text
from wetread.engines.cuda.trial import Trial, WrongResultError


def differing(trial: Trial, times: int) -> tuple[int, str]:
    """Runs whose bits are not those of the first run, and what is wrong with the first ('' for nothing)."""
    trial.learn()
    run = trial.launcher(trial.step.kernel)
    run()
    wrong = ""
    try:
        trial.compare()
    except WrongResultError as error:
        wrong = error.what
    trial.reset()
    run()
    first, off = trial.outputs(), 0
    for _ in range(times):
        trial.reset()
        run()
        off += not trial.same(first)
    return off, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--only", default="", help="part of a kernel's text, such as 'taps'")
    args = parser.parse_args()
    program = Plan.load(args.plan.parent, args.plan.name.removesuffix(SUFFIX)).program
    seen: set[str] = set()
    bad = 0
    for step in program.steps:
        key = problem_key(problem_of(step, program)) + kernel_text(step.kernel)
        if step.kernel is None or key in seen or args.only not in kernel_text(step.kernel):
            continue
        seen.add(key)
        off, wrong = differing(Trial(step, program, "cuda"), args.times)
        if off or wrong:
            bad += 1
            print(
                f"{step.name} {kernel_text(step.kernel)}: {off} of {args.times} runs differ; {wrong}",
                flush=True,
            )
    print(f"{len(seen)} kernels, {args.times} runs each: {bad} not the same every time")


if __name__ == "__main__":
    main()
