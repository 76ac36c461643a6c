"""Hosts on this machine: network namespaces on one bridge, each with mounts and a host name of its own.

Everything lives in namespaces of this process: when it ends, however it ends, the kernel takes all of it down
(processes, links, mounts, loop devices). Nothing of the machine's own network is touched."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

NETWORK = "10.77.0"
INSIDE = "REEL_LAB_INSIDE"


def say(line):
    print(line, flush=True)


def enter(name):
    """Goes on inside fresh namespaces, as the only program there; without root says so and is skipped."""
    if os.environ.get(INSIDE):
        return
    if os.geteuid() != 0:
        say(f"skipped: {name} builds network namespaces, which needs root")
        sys.exit(1 if os.environ.get("REEL_TEST_REQUIRE") == "all" else 0)
    for program in ("unshare", "nsenter", "ip", "mount", "mkfs.ext4"):
        if shutil.which(program) is None:
            sys.exit(f"{name} needs {program} (apt-get install util-linux iproute2 mount e2fsprogs)")
    os.environ[INSIDE] = "1"
    # The shell is the namespace's first process: it takes in orphans, and all die with it.
    spaces = ["--mount", "--net", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
    os.execvp("unshare", ["unshare", *spaces, "sh", "-c", '"$@"; exit $?', "sh", sys.executable, *sys.argv])


def run(*args, **more):
    more.setdefault("check", True)
    return subprocess.run([str(arg) for arg in args], stdin=subprocess.DEVNULL, capture_output=True, text=True, **more)


def until(what, check, seconds=30, pause=0.05):
    """Waits until `check` gives something."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(pause)


class Host:
    """One host: an address, processes, perhaps a disk."""

    def __init__(self, lab, name, number):
        self.lab, self.name, self.address = lab, name, f"{NETWORK}.{number}"
        self.dir = lab.dir / name
        self.dir.mkdir()
        self.link = f"lab-{name}"
        setup = f"hostname {name}; mount -t tmpfs tmpfs /run; exec sleep infinity"
        self.first = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "--propagation", "private", "sh", "-c", setup], stdin=subprocess.DEVNULL
        )
        ours = os.readlink("/proc/self/ns/net")
        until(f"host {name}", lambda: os.readlink(f"/proc/{self.first.pid}/ns/net") != ours)
        until(f"host {name}'s mounts", lambda: "sleep" in pathlib.Path(f"/proc/{self.first.pid}/comm").read_text())
        self.space = os.readlink(f"/proc/{self.first.pid}/ns/net")
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.first.pid)
        run("ip", "link", "set", self.link, "master", "lab0", "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        if lab.congestion:
            self.run("sysctl", "-qw", f"net.ipv4.tcp_congestion_control={lab.congestion}")

    def within(self, args):
        return ["nsenter", "--target", str(self.first.pid), "--net", "--mount", "--uts", "--", *map(str, args)]

    def run(self, *args, **more):
        return run(*self.within(args), **more)

    def start(self, args, log="log", **more):
        """Starts a program there; its output goes to a file of the host's folder."""
        with open(self.dir / log, "ab") as out:
            return subprocess.Popen(self.within(args), stdin=subprocess.DEVNULL, stdout=out, stderr=out, **more)

    def disk(self, mib, written=False):
        """Gives it a disk of its own: a file system that can become full. `written`: its space has been written to
        before. (A block of a virtual disk is slow the first time, one of a machine's own disk is not.)"""
        image, folder = self.dir / "disk.img", self.dir / "disk"
        folder.mkdir(exist_ok=True)
        with open(image, "wb") as out:
            out.truncate(mib << 20)
        if written:
            run("dd", "if=/dev/zero", f"of={image}", "bs=4M", f"count={mib // 4}", "conv=notrunc", "oflag=direct")
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", image)
        device = run("losetup", "--find", "--show", image).stdout.strip()
        # Past the page cache of the machine, whose writing back would hold up whoever reads; not every file system can.
        run("losetup", "--direct-io=on", device, check=False)
        self.run("mount", device, folder)
        # It goes with the mount.
        run("losetup", "--detach", device)
        return folder

    def pids(self):
        """Every process there but the first."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.first.pid:
                try:
                    if os.readlink(entry / "ns/net") == self.space:
                        found.append(int(entry.name))
                except OSError:
                    pass
        return found

    def signal(self, number):
        for pid in self.pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def kill(self):
        """All its processes die at once."""
        self.signal(signal.SIGKILL)
        until(f"{self.name} dies", lambda: not [pid for pid in self.pids() if not is_zombie(pid)])

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)

    def cut(self):
        """Its cable is out."""
        run("ip", "link", "set", self.link, "down")

    def heal(self):
        run("ip", "link", "set", self.link, "up")


def is_zombie(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


class Lab:
    """The bridge, and the hosts on it. This process is on it too, as the clients' host."""

    def __init__(self, folder=None, congestion=None):
        """`congestion`: TCP congestion control of all hosts instead of this machine's (in namespaces only what every
        process may use: reno always)."""
        assert os.environ.get(INSIDE), "enter() comes first"
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="reel-lab-", dir=folder))
        # Hosts' programs under other users have to get in.
        self.dir.chmod(0o755)
        self.hosts = {}
        self.congestion = congestion
        # Called before the hosts are taken down.
        self.before_end = []
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "lab0", "type", "bridge")
        run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", "lab0")
        run("ip", "link", "set", "lab0", "up")

    def host(self, name, number):
        self.hosts[name] = Host(self, name, number)
        return self.hosts[name]

    def __enter__(self):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
        return self

    def __exit__(self, *_):
        for call in self.before_end:
            call()
        for host in self.hosts.values():
            host.thaw()
            host.kill()
            host.run("umount", "-l", host.dir / "disk", check=False)
            host.first.kill()
            host.first.wait()
        shutil.rmtree(self.dir, ignore_errors=True)
