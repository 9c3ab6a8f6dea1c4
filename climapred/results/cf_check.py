"""The strict CF-1.11 compliance checker, in a process of its own and without network: check_cf."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import netCDF4


def check_cf(path: str | os.PathLike[str]) -> list[str]:
    """Return what the IOOS compliance checker finds at any priority against CF-1.11; empty for a clean file.

    The checker runs in a process of its own: it prints, it warns, and it imports pyproj, which crashes the
    interpreter where eccodes was imported before (seen with the wheels of pyproj 3.7.2 and eccodes 2.50). Needs
    no network: standard names are looked up in the table that the checker carries.

    Raises:
        ModuleNotFoundError: if compliance-checker is not installed.
        OSError: if the file is missing or not NetCDF.
    """
    if importlib.util.find_spec("compliance_checker") is None:
        raise ModuleNotFoundError(
            "check_cf() needs compliance-checker; install the extra: pip install 'climapred[dev]'"
        )
    netCDF4.Dataset(path).close()
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "climapred.results.cf_check", os.fspath(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise RuntimeError(f"the compliance checker failed on {path}:\n{child.stderr}")
    messages: list[str] = json.loads(child.stdout)
    return messages


def _run_checker(path: str) -> list[str]:
    from compliance_checker.cf.cf_1_11 import CF1_11Check
    from compliance_checker.suite import CheckSuite

    class OfflineCheck(CF1_11Check):
        # The original downloads the table that the file's standard_name_vocabulary names.
        def _find_cf_standard_name_table(self, ds: netCDF4.Dataset) -> bool:
            return False

    class FlatSuite(CheckSuite):
        checkers = {"cf:1.11": OfflineCheck}  # noqa: RUF012

        # The original sums by section, which puts remarks on what passed among the failures.
        def scores(self, raw_scores: list[Any]) -> list[Any]:
            return raw_scores

    with netCDF4.Dataset(path) as file:
        ((results, errors),) = FlatSuite().run_all(file, ["cf:1.11"]).values()
    failures = [
        f"{result.name}: {text}"
        for result in results
        if not _passed(result.value)
        for text in result.msgs or ["not met"]
    ]
    return failures + [f"{check}: the checker itself failed, {error!r}" for check, (error, _) in errors.items()]


def _passed(value: tuple[int, int] | bool | None) -> bool:
    """Whether a result is a full score (points, out of), a success, or a check that did not apply."""
    return value[0] == value[1] if isinstance(value, tuple) else value is not False


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = _run_checker(sys.argv[1])
    print(json.dumps(found))
