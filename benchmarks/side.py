"""A program behind a pipe that does what it is asked, and says what that took: lora_step.cpp or peers/peft_step.py."""
import json
import os
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
