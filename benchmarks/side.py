"""Programs behind pipes that do what they are asked, and say what that took: lora_step.cpp or peers/peft_step.py."""
import json
import os
import statistics
import subprocess
import sys
import time


class Side:
    """One program behind its pipe."""

    def __init__(self, name, command, threads):
        self.name, self.command = name, command
        environment = dict(os.environ, BENCH_STARTED=repr(time.time()), OMP_NUM_THREADS=str(threads))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        text=True, env=environment)
        self.wall, self.cpu = [], []

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended: {' '.join(self.command)}")
        answer = json.loads(line)
        self.peak_memory_bytes = answer.get("peak_memory_bytes", 0)
        return answer

    def first_step(self):
        self.first_step_seconds = self.ask("step 1")["first_step_seconds"]

    def measure(self, request):
        answer = self.ask(request)
        self.wall += answer["wall"] if isinstance(answer["wall"], list) else [answer["wall"]]
        self.cpu += answer["cpu"] if isinstance(answer["cpu"], list) else [answer["cpu"]]
        return answer

    def forget(self):
        self.wall.clear(), self.cpu.clear()

    def close(self):
        self.process.stdin.write("quit\n")
        self.process.stdin.close()
        self.process.wait()


def compare_steps(sides, threads, rounds):
    """Steps of two sides in turn, which end then, and a line of it: median seconds (of the CPU with one thread, else of the clock), the
    share of the first one's speed that the second has (of the medians, and the median of pairs), and their largest resident sets."""
    for side in sides:
        side.first_step()
        side.measure("step 1")
        side.forget()
    for _ in range(rounds):
        for side in sides:
            side.measure("step 1")
    clock = "cpu" if threads == 1 else "wall"
    first, second = (getattr(side, clock) for side in sides)
    pairs = statistics.median(a / b for a, b in zip(first, second))
    for side in sides:
        side.close()
    medians = [statistics.median(times) for times in (first, second)]
    return (f"{threads} thread(s): {sides[0].name} {medians[0]:.3f} s, {sides[1].name} {medians[1]:.3f} s ({clock}); speed "
            f"{medians[0] / medians[1]:.2f}, pairs {pairs:.2f}; memory {sides[0].peak_memory_bytes / 2**20:.0f} and "
            f"{sides[1].peak_memory_bytes / 2**20:.0f} MiB")
