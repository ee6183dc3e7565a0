"""A clock that is set back again and again, for a program of its own: a text, as that program cannot import it."""

from __future__ import annotations

SET_BACK = """
import sys, threading, time
real, back = time.time, [0.0]
time.time = lambda: real() - back[0]

def set_back():
    while True:
        time.sleep(0.15)
        back[0] += 600.0

def keep_setting_back():
    threading.Thread(target=set_back, daemon=True).start()
"""
"""Defines `keep_setting_back`; `time.time` is replaced before anything of ours is imported."""
