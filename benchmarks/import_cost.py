"""What `import envtune_agents` costs: CPU seconds of a fresh interpreter with and without it, medians of one run.

    python benchmarks/import_cost.py [--runs 15]

The programs take turns, after one run of each that compiles its byte code.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

PROGRAMS = {
    "bare interpreter": "pass",
    "import envtune_agents": "import envtune_agents",
    "import langchain_core.messages": "import langchain_core.messages",
}


def cpu_seconds(program: str) -> float:
    """User and system seconds of one `python -c program`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Prints one line for each program, interleaved runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="of each program (default 15)")
    options = parser.parse_args()
    for program in PROGRAMS.values():
        cpu_seconds(program)
    samples: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(options.runs):
        for name, program in PROGRAMS.items():
            samples[name].append(cpu_seconds(program))
    bare = statistics.median(samples["bare interpreter"])
    print(f"{'program':34} CPU seconds  over bare")
    for name, values in samples.items():
        print(f"{name:34} {statistics.median(values):11.3f}  {statistics.median(values) - bare:9.3f}")


if __name__ == "__main__":
    main()
