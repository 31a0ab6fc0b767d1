"""Benchmarks: dense against exact, in one process, in turns, against the floor that memory bandwidth sets.

    floor = bytes that must be read / bandwidth measured in the same run

Installed as `prosparse.bench`. `cases.py` is the table of what is run, with a file for each subject;
`docs/benchmarks.md` says more.
"""
