"""Policies that leave, hang, print and lie, each in its own way: a file for commands, and the ways by name."""

from __future__ import annotations

POLICIES = """
import os, sys, threading, time
from tokencake.policies.interface import EVERYTHING, Plan
from tokencake.traces.events import CallArrived

class Base:
    listens_to = frozenset({CallArrived})
    def plan(self, view):
        return Plan()

class Exits(Base):
    def plan(self, view):
        sys.exit(0)

class Leaves(Base):
    def plan(self, view):
        os._exit(0)

class LeavesAChild(Base):  # which holds the pipes of the process
    def plan(self, view):
        if os.fork():
            os._exit(0)
        time.sleep(20)
        os._exit(0)

class Loops(Base):
    def plan(self, view):
        while True:
            pass

class Holds(Base):  # the interpreter, in C
    def plan(self, view):
        return 10 ** 10 ** 9

class Interrupts(Base):
    def plan(self, view):
        raise KeyboardInterrupt

class ExitsWhenMade(Base):
    def __init__(self):
        sys.exit(0)

class LeavesWhenMade(Base):
    def __init__(self):
        os._exit(0)

class LoopsWhenMade(Base):
    def __init__(self):
        while True:
            pass

class WritesPastTheLock(Base):
    listens_to = EVERYTHING
    def plan(self, view):
        for call in (*view.waiting.values(), *view.running.values()):
            object.__setattr__(call, "_request", None)
        return Plan()

class Prints(Base):
    print("at import")
    def plan(self, view):
        print("in a plan")
        os.system("echo from a shell")
        return Plan()

class Threads(Base):
    def __init__(self):
        threading.Thread(target=time.sleep, args=(1000,)).start()
"""

WRONG = {  # what each of them is said to have done
    "Exits": "plan() raised SystemExit: 0 (mine.py:",
    "Leaves": "the process that played it exited with 0 during plan() at 0.000000 s",
    "LeavesAChild": "the process that played it exited with 0 during plan() at 0.000000 s",
    "Loops": "plan() at 0.000000 s did not come back within 1 s",
    "Holds": "plan() at 0.000000 s did not come back within 1 s",
    "Interrupts": "plan() raised KeyboardInterrupt (mine.py:",
    "ExitsWhenMade": "constructor raised SystemExit: 0 (mine.py:",
    "LeavesWhenMade": "the process that played it exited with 0 during constructor",
    "LoopsWhenMade": "constructor did not come back within 1 s",
}
