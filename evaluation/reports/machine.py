"""Description of the machine that figures were measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("torch", "transformers", "llama-cpp-python", "superdraft")


def describe_machine() -> dict[str, str | int | float]:
    """Processor, accelerator, threads, load and package versions, to be reported with every figure."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 0,
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "unknown",
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **{name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
