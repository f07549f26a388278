"""Clock, temperature and energy of the device, where NVML tells them, and what makes a round invalid."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

CLOCK_MOVED = 0.05  # share by which the SM clock may differ within a round
TEMPERATURE_MOVED = 8.0  # degrees Celsius
BUSY = 0.85  # share of a core that a CPU round must have had to itself


@dataclass
class Reading:
    """NVML's values at one moment; None where it does not say."""

    clock_mhz: float | None = None
    temperature_c: float | None = None
    energy_j: float | None = None


class Sensors:
    """NVML of one GPU, or nothing; `missing` says why there is none. The card is found by its UUID, as an index of
    torch's counts visible cards only."""

    def __init__(self, device: Any):
        self._nvml: Any = None
        self.missing = ""
        if device.type == "cuda":
            try:
                import pynvml
                import torch

                pynvml.nvmlInit()
                self._nvml, self._handle = pynvml, _handle(pynvml, torch.cuda.get_device_properties(device).uuid)
            except Exception as error:  # no package, no driver: the rounds cannot be judged
                self.missing = f"no NVML ({type(error).__name__}: {error})"

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


def _handle(nvml: Any, uuid: object) -> Any:
    """NVML's handle of the card with torch's UUID, which may lack the prefix."""
    name = str(uuid)
    return nvml.nvmlDeviceGetHandleByUUID(name if name.startswith(("GPU-", "MIG-")) else f"GPU-{name}")


def why_invalid(readings: Sequence[Reading], busy: float | None) -> str:
    """Why a round does not count, or ''.

    Args:
        readings: at its start and after every phase. busy: CPU seconds over wall-clock of a CPU round.
    """
    clocks = [reading.clock_mhz for reading in readings if reading.clock_mhz]
    if clocks and max(clocks) / min(clocks) - 1 > CLOCK_MOVED:
        return f"the clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz"
    warmth = [reading.temperature_c for reading in readings if reading.temperature_c is not None]
    if warmth and max(warmth) - min(warmth) > TEMPERATURE_MOVED:
        return f"the temperature moved by {max(warmth) - min(warmth):.0f} degrees"
    if busy is not None and busy < BUSY:
        return f"other programs had the core: {busy:.2f} of it was ours"
    return ""
