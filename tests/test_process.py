"""Threads and memory are set up once, and what the environment says stays."""

from __future__ import annotations

import ctypes
import os
import sys

import pytest

from tag2mask.process import MB, tune_process


@pytest.fixture
def calls(monkeypatch):
    """What is said to a C library that knows mallopt, on Linux, in an environment that says nothing."""
    said = []

    class Library:
        def mallopt(self, parameter, value):
            said.append((parameter, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(sys, "platform", "linux")
    for name in list(os.environ):
        if name.startswith(("MALLOC_", "GLIBC_TUNABLES", "OMP_WAIT_POLICY")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that monkeypatch puts back what tune_process sets
    monkeypatch.delenv("OMP_WAIT_POLICY")
    return said


def test_sets_what_nobody_said(calls):
    tune_process()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert calls == [(-3, 64 * MB), (-1, 256 * MB), (-8, 1)]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_environment_rules_memory(calls, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    tune_process()
    assert calls == []


def test_the_environment_rules_threads(calls, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    tune_process()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_elsewhere_only_threads(calls, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    tune_process()
    assert calls == []


def test_a_c_library_without_mallopt(calls, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    tune_process()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
