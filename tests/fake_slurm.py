"""A simulated Slurm of one machine: stand-ins for the five commands that vabench and submitit call.

There is no Slurm here. The stand-ins understand what submitit writes and no more, start an array's tasks in the
background and keep their states in files. A task is a session of its own, killed as a whole.

`install(folder)` writes the commands into a folder for PATH; `python fake_slurm.py COMMAND ...` is what they run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scancel", "scontrol")


def install(folder: Path, monkeypatch: object) -> FakeSlurm:
    """Put the commands first on PATH, with their states under `folder`."""
    (folder / "bin").mkdir(parents=True)
    for name in COMMANDS:
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")  # type: ignore[attr-defined]
    monkeypatch.setenv("FAKE_SLURM", str(folder))  # type: ignore[attr-defined]
    return FakeSlurm(folder)


class FakeSlurm:
    """The states of all tasks, by job id such as `1_0`; also what a test does to them."""

    def __init__(self, folder: Path):
        self.folder = folder

    def states(self) -> dict[str, str]:
        return {path.stem: path.read_text() for path in sorted(self.folder.glob("*.state"))}

    def starts(self, job: str) -> int:
        path = self.folder / f"{job}.starts"
        return len(path.read_text()) if path.exists() else 0

    def script(self, number: int) -> str:
        return (self.folder / f"{number}.sh").read_text()

    def preempt(self, job: str) -> None:
        """The warning that Slurm sends to all processes of a task's step."""
        _signal(self.folder, job, signal.SIGUSR2, leader=False)

    def lose(self, job: str, state: str) -> None:
        """Kill a task as a node's death or the kernel's lack of memory would; Slurm then says `state`."""
        (self.folder / f"{job}.why").write_text(state)
        _signal(self.folder, job, signal.SIGKILL)

    def end(self) -> None:
        """Kill whatever still runs."""
        for job, state in self.states().items():
            if state in ("PENDING", "RUNNING"):
                _cancel(self.folder, job)


def _signal(folder: Path, job: str, number: int, leader: bool = True) -> None:
    group = int((folder / f"{job}.group").read_text())
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid, fields = int(path.parent.name), path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and (leader or pid != group):
                os.kill(pid, number)


def _cancel(folder: Path, job: str) -> None:
    (folder / f"{job}.why").write_text("CANCELLED by 1000")
    with contextlib.suppress(OSError):
        _signal(folder, job, signal.SIGKILL)


def _jobs(folder: Path, name: str) -> list[str]:
    """All tasks of an array, or the one task."""
    found = [path.stem for path in folder.glob("*.state")]
    return [job for job in found if job == name or job.partition("_")[0] == name]


def sbatch(folder: Path, script: str) -> None:
    text = Path(script).read_text()
    number = 1 + len(list(folder.glob("*.sh")))
    (folder / f"{number}.sh").write_text(text)
    array = re.search(r"#SBATCH --array=0-(\d+)%(\d+)", text)
    jobs = [f"{number}_{k}" for k in range(int(array[1]) + 1)] if array else [str(number)]
    for job in jobs:
        (folder / f"{job}.state").write_text("PENDING")
    command = [sys.executable, __file__, "runner", str(number), array[2] if array else "1", *jobs]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    print(f"Submitted batch job {number}")


def runner(folder: Path, number: str, parallel: str, *jobs: str) -> None:
    free = threading.Semaphore(int(parallel))

    def run(job: str) -> None:
        with free:
            while _once(folder, number, job):
                pass

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _once(folder: Path, number: str, job: str) -> bool:
    """Run a task; True where it asked to be queued again."""
    state, why, again = (folder / f"{job}.{end}" for end in ("state", "why", "again"))
    code = 0
    if not why.exists():
        head, _, index = job.partition("_")
        own = {"SLURM_JOB_ID": head, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0"}
        own |= {"SLURM_ARRAY_JOB_ID": head, "SLURM_ARRAY_TASK_ID": index} if index else {}
        with (folder / f"{job}.out").open("ab") as out:
            command = ["bash", str(folder / f"{number}.sh")]
            process = subprocess.Popen(
                command, env={**os.environ, **own}, stdout=out, stderr=out, start_new_session=True
            )
            (folder / f"{job}.group").write_text(str(process.pid))
            state.write_text("RUNNING")
            with (folder / f"{job}.starts").open("a") as starts:
                starts.write("x")
            code = process.wait()
    if again.exists() and not why.exists():
        again.unlink()
        state.write_text("PENDING")
        return True
    state.write_text(why.read_text() if why.exists() else "COMPLETED" if code == 0 else "FAILED")
    return False


def srun(folder: Path, *words: str) -> None:
    command = list(words)
    while command and command[0].startswith("--"):
        flag = command.pop(0)
        if flag in ("--output", "--error"):
            text = command.pop(0).replace("%A", os.environ.get("SLURM_ARRAY_JOB_ID", ""))
            text = text.replace("%a", os.environ.get("SLURM_ARRAY_TASK_ID", "")).replace("%t", "0")
            handle = os.open(text.replace("%j", os.environ["SLURM_JOB_ID"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1 if flag == "--output" else 2)
    os.execvp(command[0], command)


def sacct(folder: Path, *words: str) -> None:
    print("JobID|State")
    for name in words[words.index("-j") + 1].split(","):
        for job in _jobs(folder, name):
            print(f"{job}|{(folder / f'{job}.state').read_text()}")


def scancel(folder: Path, *names: str) -> None:
    for name in names:
        for job in _jobs(folder, name):
            if (folder / f"{job}.state").read_text() in ("PENDING", "RUNNING"):
                _cancel(folder, job)


def scontrol(folder: Path, verb: str, job: str) -> None:
    assert verb == "requeue"
    (folder / f"{job}.again").touch()


if __name__ == "__main__":
    if shutil.which("bash") is None:
        sys.exit("the simulated Slurm needs bash")
    globals()[sys.argv[1]](Path(os.environ["FAKE_SLURM"]), *sys.argv[2:])
