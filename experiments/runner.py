"""Finding the studies, and running what one lacks in several processes of one thread each."""

import importlib
import multiprocessing
import os
import pkgutil
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from mtl_helpers.progress import progress

from .sweeps import Study


def studies() -> dict[str, Study]:
    """All studies by name: every module of this package that has a STUDY."""
    package = importlib.import_module("experiments")
    modules = [
        importlib.import_module(f"experiments.{m.name}")
        for m in pkgutil.iter_modules(package.__path__)
        if not m.name.startswith("__")
    ]
    return {module.STUDY.name: module.STUDY for module in modules if hasattr(module, "STUDY")}


def begin() -> None:
    """Set a process up: one thread, and an end with the process that started it, however that one ends."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def work(name: str, run: dict) -> list[dict]:
    """One run, in a process of its own."""
    return studies()[name].measure(run)


def complete(study: Study, processes: int) -> None:
    """Run what a study lacks, several runs at a time.

    Raises:
        BrokenProcessPool: a process ended before its run did; the rows of the others are on file.
    """
    missing = study.missing()
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(missing)), context, begin) as pool:
        runs = {pool.submit(work, study.name, run): run for run in missing}
        for done in progress(as_completed(runs), study.name, len(runs)):
            study.append(runs[done], done.result())
