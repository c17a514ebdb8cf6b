"""A real SLURM with several nodes on one host, as plain processes: no root, no systemd, no container needed.

    eval "$(python tests/slurm/cluster.py up FOLDER)"      prints export SLURM_CONF=...; safe to repeat
    python tests/slurm/cluster.py down FOLDER

Nodes g1, g2 (8 CPUs, 4 fake GPUs each) and c1, c2 (8 CPUs). Partitions: main (all; the default), low (all;
preempted by main and requeued), short (all; at most a minute), gpu (g1, g2). munge, slurmdbd and MariaDB are
private to the folder. Debian's packages: tests/slurm/install.sh.

What is odd is so for a reason (SLURM 22.05, all seen): `File=/dev/tty[0-3]` because gres wants numbered device
files, and only looks at them; cred_expire is also the wait before a requeued job starts again, and less than the
7 s a job takes to die drains the node ("Duplicate jobid"); MariaDB lies in memory because creating its tables is
all fsync; AccountingStoragePass is the munge socket.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from daemons import Daemons, free_ports, is_open

PROGRAMS = (
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "munged",
    "mariadbd",
    "sbatch",
    "squeue",
    "scontrol",
    "sacctmgr",
)
NODES = ("g1", "g2", "c1", "c2")
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
MYSQL = Path("/usr/share/mysql")


def missing_programs() -> list[str]:
    """What isn't installed here."""
    path = f"{SBIN}:{os.environ.get('PATH', '')}"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Cluster:
    """One cluster in one folder. settings: further lines of slurm.conf."""

    def __init__(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        self.folder, self.settings = folder.resolve(), settings or {}
        self.logs, self.conf = self.folder / "logs", self.folder / "slurm.conf"
        self.daemons = Daemons(self.folder / "processes", self.logs)
        self.node_daemons = [f"slurmd.{node}" for node in NODES]

    @property
    def environment(self) -> dict[str, str]:
        """What a user of this cluster has in the environment."""
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
        return {**outside, "SLURM_CONF": str(self.conf), "PATH": f"{os.environ['PATH']}:{SBIN}"}

    def up(self) -> "Cluster":
        """Start what isn't running and heal what tests have broken."""
        for path in (self.logs, self.folder / "processes", self.folder / "state", self.folder / "spool"):
            path.mkdir(parents=True, exist_ok=True)
        os.environ["PATH"] = f"{os.environ['PATH']}:{SBIN}"
        if not self.conf.exists():
            self._write_configuration()
        self.sockets = Path((self.folder / "sockets").read_text())
        self.port = int((self.folder / "port").read_text())
        self._start_munge()
        self._start_database()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        deadline = time.monotonic() + 30
        while (ill := self._ill_nodes()) and time.monotonic() < deadline:
            down = [
                node
                for node, state in ill.items()
                if any(word in state for word in ("down", "drain", "fail"))
            ]
            if down:
                self.run("scontrol", "update", f"nodename={','.join(down)}", "state=resume", check=False)
            time.sleep(0.2)
        if ill:
            raise RuntimeError(f"nodes are not well: {ill}")
        return self

    def down(self) -> None:
        """End jobs, then daemons, by their recorded numbers; the steps of a killed slurmd end with their worker."""
        if not self.conf.exists():
            return
        self.sockets = Path((self.folder / "sockets").read_text())
        if self.daemons.pid("slurmctld"):
            self.run("scancel", "--me", check=False)
            deadline = time.monotonic() + 10
            while self.run("squeue", "-h", check=False) and time.monotonic() < deadline:
                time.sleep(0.1)
        self.daemons.stop(*self.node_daemons)
        for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            self.daemons.stop(name)
        shutil.rmtree(self.sockets, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str, check: bool = True) -> str:
        """A command of this cluster's user; what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def start_node(self, node: str) -> None:
        """The daemon of one node."""
        self.daemons.start(f"slurmd.{node}", ["slurmd", "-D", "-N", node], SLURM_CONF=str(self.conf))

    def start_controller(self) -> None:
        """slurmctld, ready to answer."""
        self.daemons.start("slurmctld", ["slurmctld", "-D"], SLURM_CONF=str(self.conf))
        self.daemons.wait_for(
            "slurmctld",
            lambda: (
                subprocess.run(["scontrol", "ping"], env=self.environment, capture_output=True).returncode
                == 0
            ),
        )

    def start_accounting(self) -> None:
        """slurmdbd, listening."""
        self.daemons.start(
            "slurmdbd",
            ["slurmdbd", "-D"],
            SLURM_CONF=str(self.conf),
            MYSQL_UNIX_PORT=str(self.sockets / "db"),
        )
        self.daemons.wait_for("slurmdbd", lambda: is_open(self.port + 1))

    def _ill_nodes(self) -> dict[str, str]:
        lines = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).splitlines()
        states = dict(line.split() for line in lines)
        good = ("idle", "mixed", "allocated", "completing")
        return {node: states.get(node, "unknown") for node in NODES if states.get(node) not in good}

    def _start_munge(self) -> None:
        private = self.folder / "munge"
        private.mkdir(mode=0o700, exist_ok=True)
        if not (private / "key").exists():
            (private / "key").write_bytes(os.urandom(1024))
            (private / "key").chmod(0o600)
        place = {
            "key-file": private / "key",
            "socket": self.sockets / "munge",
            "pid-file": private / "pid",
            "log-file": private / "log",
            "seed-file": private / "seed",
        }
        self.daemons.start(
            "munged", ["munged", "--foreground", "--force", *(f"--{k}={v}" for k, v in place.items())]
        )
        self.daemons.wait_for("munged", (self.sockets / "munge").exists)

    def _start_database(self) -> None:
        data = self.sockets / "data"
        options = [
            "--no-defaults",
            f"--datadir={data}",
            "--skip-log-bin",
            "--performance-schema=OFF",
            "--skip-name-resolve",
            "--innodb-log-file-size=8M",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0",
            f"--user={_user()}",
        ]
        is_new = not data.exists()
        if is_new:
            data.mkdir(mode=0o700)
            tables = [(MYSQL / f"mysql_system_tables{part}.sql").read_text() for part in ("", "_data")]
            script = "\n".join(
                ["CREATE DATABASE mysql;", "USE mysql;", "SET @auth_root_socket=NULL;", *tables]
            )
            with open(self.logs / "bootstrap.out", "wb") as output:
                subprocess.run(
                    ["mariadbd", *options, "--bootstrap", f"--lc-messages-dir={MYSQL}"],
                    text=True,
                    input=script,
                    stdout=output,
                    stderr=output,
                    check=True,
                )
        grants = self.folder / "grants.sql"
        grants.write_text(
            "CREATE DATABASE IF NOT EXISTS slurm_acct_db;\n"
            "CREATE USER IF NOT EXISTS 'slurm'@'localhost' IDENTIFIED BY 'slurm';\n"
            "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost';\n"
        )
        self.daemons.start(
            "mariadbd",
            [
                "mariadbd",
                *options,
                f"--socket={self.sockets / 'db'}",
                f"--pid-file={data / 'pid'}",
                "--skip-networking",
                "--innodb-lock-wait-timeout=900",
                f"--init-file={grants}",
            ],
        )
        self.daemons.wait_for("mariadbd", (self.sockets / "db").exists)
        self.start_accounting()
        if is_new:
            self.run("sacctmgr", "-i", "-Q", "add", "cluster", "test")

    def _write_configuration(self) -> None:
        sockets = Path(
            tempfile.mkdtemp(prefix="slurm", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        )
        (self.folder / "sockets").write_text(str(sockets))  # unix sockets' names may have 107 bytes at most
        port = free_ports(len(NODES) + 2)
        (self.folder / "port").write_text(str(port))
        host, munge = socket.gethostname().split(".")[0], sockets / "munge"
        try:
            is_loopback = socket.gethostbyname(host) == "127.0.0.1"
        except OSError:
            is_loopback = False
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": port,
            "SlurmUser": _user(),
            "SlurmdUser": _user(),
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            "AuthInfo": f"socket={munge},cred_expire=10",
            "StateSaveLocation": self.folder / "state",
            **({"CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny"} if is_loopback else {}),
            "SlurmdSpoolDir": f"{self.folder}/spool/%n",
            "SlurmctldPidFile": f"{self.folder}/slurmctld.pid",
            "SlurmdPidFile": f"{self.folder}/slurmd.%n.pid",
            "SlurmctldLogFile": self.logs / "slurmctld.log",
            "SlurmdLogFile": f"{self.logs}/slurmd.%n.log",
            "MailProg": "/bin/true",
            "MpiDefault": "none",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "PropagateResourceLimits": "NONE",
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": "task=2",
            "JobAcctGatherParams": "OverMemoryKill",
            "SlurmdParameters": "config_overrides",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory,CR_LLN",
            "GresTypes": "gpu",
            "DefMemPerCPU": 2000,
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=2,sched_min_interval=10000,bf_interval=1,"
            "bf_continue,bf_window=1440",
            "PriorityType": "priority/basic",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "SlurmctldParameters": "preempt_send_user_signal",
            "JobRequeue": 1,
            "MaxArraySize": 1001,
            "MaxJobCount": 20000,
            "MinJobAge": 300,
            "KillWait": 5,
            "CompleteWait": 0,
            "InactiveLimit": 0,
            "WaitTime": 0,
            "MessageTimeout": 10,
            "BatchStartTimeout": 10,
            "SlurmctldTimeout": 10,
            "SlurmdTimeout": 10,
            "ReturnToService": 2,
            "UnkillableStepTimeout": 20,
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": port + 1,
            "AccountingStoragePass": munge,
            "AccountingStorageTRES": "gres/gpu",
            "AccountingStoreFlags": "job_comment",
            **self.settings,
        }
        lines = [f"{key}={value}" for key, value in settings.items()]
        for index, node in enumerate(NODES):
            gres = " Gres=gpu:4" if node.startswith("g") else ""
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 2 + index} CPUs=8 "
                f"Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=16000{gres}"
            )
        every = ",".join(NODES)
        lines += [
            "PartitionName=DEFAULT State=UP OverSubscribe=NO DefaultTime=10 MaxTime=1-0 PriorityTier=100 "
            "PreemptMode=OFF",
            f"PartitionName=main Nodes={every} Default=YES",
            "PartitionName=gpu Nodes=g1,g2",
            f"PartitionName=low Nodes={every} PriorityTier=1 PreemptMode=REQUEUE GraceTime=15",
            f"PartitionName=short Nodes={every} DefaultTime=1 MaxTime=1",
        ]
        (self.folder / "gres.conf").write_text(
            "AutoDetect=off\nNodeName=g[1-2] Name=gpu File=/dev/tty[0-3]\n"
            if Path("/dev/tty3").exists()
            else "AutoDetect=off\nNodeName=g[1-2] Name=gpu Count=4\n"
        )
        database = {
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={munge}",
            "DbdHost": host,
            "DbdAddr": "127.0.0.1",
            "DbdPort": port + 1,
            "SlurmUser": _user(),
            "PidFile": self.folder / "slurmdbd.pid",
            "LogFile": self.logs / "slurmdbd.log",
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "localhost",
            "StorageLoc": "slurm_acct_db",
            "StorageUser": "slurm",
            "StoragePass": "slurm",
            "CommitDelay": 0,
        }
        path = self.folder / "slurmdbd.conf"
        path.write_text("".join(f"{key}={value}\n" for key, value in database.items()))
        path.chmod(0o600)
        self.conf.write_text("\n".join(lines) + "\n")


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


if __name__ == "__main__":
    word, place = sys.argv[1:]
    if missing := missing_programs():
        sys.exit(f"not installed: {', '.join(missing)}; see tests/slurm/install.sh")
    if word == "up":
        print(f"export SLURM_CONF={Cluster(Path(place)).up().conf}")
    else:
        Cluster(Path(place)).down()
