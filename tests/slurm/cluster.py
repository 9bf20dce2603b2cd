"""A throw-away Slurm on this machine: real daemons that listen on 127.0.0.1 only, two nodes, fake GPUs, all in one folder.

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge, and installs nothing.
"""

import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
NODES = ("n1", "n2")
CPUS, GPUS = 4, 2
PATIENCE_S = 120
"""Longest time for anything to happen on the cluster: two processors may do all its work, and other work beside it."""

# Listeners would be on all interfaces without CommunicationParameters. A node that does not answer is down after
# SlurmdTimeout, and back as soon as it answers (ReturnToService).
CONFIGURATION = """\
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/pgid
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0
SlurmdParameters=config_overrides
MessageTimeout=5
SlurmdTimeout=5
ReturnToService=2
MinJobAge=3600
GresTypes=gpu
{nodes}PartitionName=main Nodes=ALL Default=YES LLN=YES DefMemPerCPU=500 State=UP
"""
NODE = """\
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=1000000 Gres=gpu:fake:{gpus}
"""
GRES = "AutoDetect=off\nNodeName={nodes} Name=gpu Type=fake File={folder}/nvidia[0-{last}]\n"
# Inside a job the plugin takes SLURM_CONF away from srun, which would then look under /etc.
SRUN = '#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {srun} "$@"\n'


def missing() -> str | None:
    """Why no cluster can be started on this machine."""
    lacking = [command for command in COMMANDS if shutil.which(command) is None]
    if lacking:
        return f"needs Debian's packages slurmctld, slurmd, slurm-client and munge: there is no {', '.join(lacking)}"
    return None if os.geteuid() == 0 else "needs root, for Slurm's daemons and for the device files of fake GPUs"


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return when the condition holds; fails after so many seconds."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {patience_s} s"
        time.sleep(0.1)


@dataclass
class Cluster:
    """A running Slurm with the nodes n1 and n2, which has all its files in `folder`."""

    folder: Path
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {"SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": f"{self.folder}/bin:{os.environ['PATH']}"}

    def start(self) -> None:
        """Start every daemon; returns when the nodes are idle."""
        self._configure()
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "seed")]
        # by force: it wants a socket that everybody reaches, and a folder of tests is our own
        self._start("munged", "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files)
        wait_until((self.folder / "munge.socket").is_socket, "the start of munged")
        self._start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self.states() == dict.fromkeys(NODES, "idle"), "the start of Slurm")

    def _configure(self) -> None:
        values = {"folder": self.folder, "host": socket.gethostname().partition(".")[0], "cpus": CPUS, "gpus": GPUS}
        port, *ports = free_ports(1 + len(NODES))
        nodes = [NODE.format(node=node, port=port, **values) for node, port in zip(NODES, ports, strict=True)]
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(port=port, nodes="".join(nodes), **values))
        (self.folder / "gres.conf").write_text(GRES.format(nodes=",".join(NODES), folder=self.folder, last=GPUS - 1))
        for gpu in range(GPUS):  # Slurm wants device files; these are one with /dev/null
            os.mknod(self.folder / f"nvidia{gpu}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        (self.folder / "state").mkdir()
        (self.folder / "bin").mkdir()
        wrapper = self.folder / "bin" / "srun"
        wrapper.write_text(SRUN.format(folder=self.folder, srun=shutil.which("srun")))
        wrapper.chmod(0o755)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start(node, "slurmd", "-D", "-N", node)

    def _start(self, name: str, command: str, *options: str) -> None:
        with (self.folder / f"{name}.log").open("a") as log:
            self.daemons[name] = subprocess.Popen(
                [shutil.which(command), *options],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, *command: str) -> str:
        """What a command of Slurm prints. Raises subprocess.SubprocessError."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        return done.stdout

    def states(self) -> dict[str, str]:
        """Node to its state, such as idle or down*; empty while the controller does not answer."""
        try:
            return dict(line.split() for line in self.run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines())
        except subprocess.SubprocessError:
            return {}

    def set_node(self, node: str, state: str) -> None:
        """Make a node `down`, so that its jobs end, or `drain` it, so that it gets no more."""
        self.run("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")

    def resume(self, node: str) -> None:
        """Make a node work again; returns when it does."""

        def works() -> bool:
            if self.states().get(node, "").startswith(("idle", "mixed", "allocated")):
                return True
            with suppress(subprocess.CalledProcessError):  # Slurm may have taken it back by itself
                self.run("scontrol", "update", f"nodename={node}", "state=resume")
            return False

        wait_until(works, f"that {node} is back")

    def jobs(self, *options: str) -> list[dict[str, str]]:
        """The jobs that have not ended, or what `options` of squeue select. `comment` is what the plugin says of a job."""
        fields = {"id": "%A", "state": "%T", "node": "%N", "comment": "%k", "folder": "%Z"}
        lines = self.run("squeue", "--noheader", f"--format={'|'.join(fields.values())}", *options).splitlines()
        return [dict(zip(fields, line.split("|"), strict=True)) for line in lines]

    def rules(self, folder: Path) -> set[str]:
        """The rules that had jobs of a workflow that works in this folder."""
        jobs = [job for job in self.jobs("--states=all") if job["folder"] == str(folder)]
        return {job["comment"].partition("_wildcards_")[0].removeprefix("rule_") for job in jobs}

    def kill_job(self, number: str) -> None:
        """End all processes of a job at one blow, as when it takes more memory than it may."""
        self.run("scancel", "--full", "--signal=KILL", number)

    def kill_node(self, node: str) -> None:
        """End a node's daemon and all that runs on the node at one blow."""
        for process in [self.daemons[node], *self._processes(node)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.daemons[node].wait()

    def _processes(self, node: str | None = None) -> Iterator[psutil.Process]:
        """Processes of jobs, and before each the one of Slurm that looks after it; of one node, or of all."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment = process.environ()
                ours = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if ours and environment.get("SLURMD_NODENAME") in ([node] if node else NODES):
                    yield from (parent for parent in [process.parent()] if parent and parent.name() == "slurmstepd")
                    yield process

    def stop(self) -> None:
        """Cancel all jobs and end all daemons, however far `start` came; nothing of the cluster lives on."""
        with suppress(subprocess.SubprocessError, AssertionError):
            if jobs := [job["id"] for job in self.jobs()]:
                self.run("scancel", *jobs)
                wait_until(lambda: not self.jobs(), "the end of all jobs")
        with ExitStack() as ends:
            for daemon in self.daemons.values():
                ends.callback(end, daemon)  # in reverse order, all of them whatever happens
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def end(daemon: subprocess.Popen) -> None:
    """End a process that we have started."""
    daemon.terminate()
    try:
        daemon.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def free_ports(number: int) -> list[int]:
    """So many ports of 127.0.0.1 that nobody listens on."""
    with ExitStack() as sockets:
        listeners = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in listeners]


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster for as long as the context lasts; its folder must be empty, and is gone afterwards."""
    cluster = Cluster(folder)
    try:
        try:
            cluster.start()
        except Exception as error:
            error.add_note("\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in folder.glob("*.log")))
            raise
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
