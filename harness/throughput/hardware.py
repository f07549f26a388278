"""Clock, temperature and energy of the device, where NVML tells them, and what makes a round invalid."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

CLOCK_MOVED = 0.05  # share by which the SM clock may differ between start and end of a round
TEMPERATURE_MOVED = 8.0  # degrees Celsius
BUSY = 0.85  # share of a core that a CPU round must have had to itself


@dataclass
class Reading:
    """NVML's values at one moment; None where it does not say."""

    clock_mhz: float | None = None
    temperature_c: float | None = None
    energy_j: float | None = None


class Sensors:
    """NVML of one GPU, or nothing: `nvidia-ml-py` is used where it is installed."""

    def __init__(self, device: Any):
        self._nvml: Any = None
        if device.type == "cuda":
            with suppress(Exception):  # no package, no driver: the record then says null
                import pynvml

                pynvml.nvmlInit()
                self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)

    def read(self) -> Reading:
        """The values now."""
        found = Reading()
        if self._nvml is not None:
            nvml, handle = self._nvml, self._handle
            with suppress(Exception):
                found.clock_mhz = float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
            with suppress(Exception):
                found.temperature_c = float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            with suppress(Exception):
                found.energy_j = nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
        return found


def why_invalid(before: Reading, after: Reading, busy: float | None) -> str:
    """Why a round does not count, or ''. busy: CPU seconds over wall-clock of a CPU round."""
    if before.clock_mhz and after.clock_mhz and abs(after.clock_mhz / before.clock_mhz - 1) > CLOCK_MOVED:
        return f"the clock moved from {before.clock_mhz:.0f} to {after.clock_mhz:.0f} MHz"
    if before.temperature_c is not None and after.temperature_c is not None:
        moved = after.temperature_c - before.temperature_c
        if abs(moved) > TEMPERATURE_MOVED:
            return f"the temperature moved by {moved:+.0f} degrees"
    if busy is not None and busy < BUSY:
        return f"other programs had the core: {busy:.2f} of it was ours"
    return ""
