"""Finding the studies, and running what one lacks in several processes of one thread each."""

import importlib
import multiprocessing
import pkgutil

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


def work(job: tuple[str, dict]) -> tuple[dict, list[dict]]:
    """One run, in a process of its own."""
    torch.set_num_threads(1)
    name, run = job
    return run, studies()[name].measure(run)


def complete(study: Study, processes: int) -> None:
    """Run what a study lacks, several runs at a time."""
    missing = study.missing()
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(processes, len(missing))) as pool:
        done = pool.imap_unordered(work, [(study.name, run) for run in missing])
        for run, rows in progress(done, study.name, len(missing)):
            study.append(run, rows)
