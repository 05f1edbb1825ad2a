"""Energy of the processor packages, where the machine tells it (RAPL, as Linux shows it)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made. The counters are of the whole machine, all that runs on it included."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        zones = sorted(powercap.glob("intel-rapl:*[0-9]"))
        # A package's counter holds its own parts (cores, memory); a laptop's ``psys`` holds the packages.
        self._packages = [one for one in zones if _name(one).startswith("package")]
        self._before = self._read()

    def joules(self) -> float | None:
        """Energy since the start; None where the machine does not tell, or not to us."""
        now = self._read()
        if not self._before or now.keys() != self._before.keys():
            return None
        return sum(self._between(one, self._before[one], now[one]) for one in now) / 1e6

    def _between(self, package: Path, before: int, now: int) -> int:
        if now >= before:
            return now - before
        # The counter starts again at 0 after its largest value.
        return now + int((package / "max_energy_range_uj").read_text()) - before

    def _read(self) -> dict[Path, int]:
        found = {}
        # Since 2020 only root may read it (CVE-2020-8694).
        with suppress(OSError, ValueError):
            for one in self._packages:
                found[one] = int((one / "energy_uj").read_text())
        return found if len(found) == len(self._packages) else {}


def _name(zone: Path) -> str:
    with suppress(OSError):
        return (zone / "name").read_text()
    return ""
