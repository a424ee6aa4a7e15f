"""What a program tries in order to get out of the sandbox, with every kind of protection.

A snippet is refused with an error, or it has escaped. Those in ``CONTROL`` do escape where nothing
keeps them in: the last test runs them like that, so that none is refused for a mistake of its own.
What kills, or changes the machine, asks for nothing worse than is needed to see whether it may.
"""

import os
import socket
import subprocess
import sys
import tempfile
import types

import pytest

from tunix.rl.reward_fns import sandbox, sandbox_filter

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.uname().machine not in sandbox_filter.MACHINES,
    reason="needs Linux on x86-64 or AArch64",
)

LIMITS = sandbox.SandboxLimits(cpu_seconds=2, wall_seconds=20.0, memory_mib=256, disk_mib=8)

PRELUDE = """
import asyncio, ctypes, fcntl, mmap, multiprocessing, os, pathlib, resource, select, signal
import socket, struct, subprocess, sys, tempfile, threading, time
libc = ctypes.CDLL(None, use_errno=True)
is_x86 = os.uname().machine == "x86_64"
def call(name, *arguments):
    found = getattr(libc, name)(*arguments)
    if found == -1: raise OSError(ctypes.get_errno(), name)
    return found
def nothing(found):
    if found: raise OSError(found)
"""

FILES = {
    "read a file": "open(secret).read()",
    "read a file of the system": "open('/etc/passwd').read()",
    "read through a symbolic link": "os.symlink(secret, 'x'); open('x').read()",
    "read through a hard link": "os.link(secret, 'x'); open('x').read()",
    "read with io through ..": "open('../../../../../../../../' + secret).read()",
    "read from a changed directory": "os.chdir(outside); open('secret').read()",
    "list a directory": "os.listdir(outside)",
    "list the temporary directory": "os.listdir(os.path.dirname(outside))",
    "list home directories": "os.listdir('/root') + os.listdir('/home')",
    "write a file": "open(secret, 'a').write('x')",
    "truncate a file": "os.truncate(secret, 0)",
    "create a file": "open(outside + '/new', 'w')",
    "create a directory": "os.mkdir(outside + '/new')",
    "create a symbolic link": "os.symlink('x', outside + '/new')",
    "create a hard link": "os.link('program.py', outside + '/new')",
    "create a pipe": "os.mkfifo(outside + '/new')",
    "rename into": "os.rename('program.py', outside + '/new')",
    "rename out of": "os.rename(secret, 'mine')",
    "exchange": "open('a', 'w'); nothing(libc.renameat2(-100, b'a', -100, secret.encode(), 2))",
    "delete a file": "os.unlink(secret)",
    "delete a directory": "os.rmdir(outside + '/empty')",
    "change modes": "os.chmod(secret, 0o777)",
    "change times": "os.utime(secret, (1, 1))",
    "change owners": "os.chown(secret, 1, 1)",
    "write a module of the standard library": "open(os.__file__, 'a')",
    "cut a module of the standard library": "os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)",
    "replace its own directory": "os.rename(os.getcwd(), os.getcwd() + 'x')",
}

KERNEL = {
    "core_pattern": "open('/proc/sys/kernel/core_pattern', 'r+')",
    "its own chance to be killed for memory": "open('/proc/self/oom_score_adj', 'r+')",
    "that of its parent": "open(f'/proc/{os.getppid()}/oom_score_adj', 'r+')",
    "that of others": "open(f'/proc/{victim}/oom_score_adj', 'r+')",
    "environment of others": "open(f'/proc/{victim}/environ', 'rb').read()",
    "memory of others": "open(f'/proc/{victim}/mem', 'rb')",
    "files of others": "os.listdir(f'/proc/{victim}/fd')",
    "list of processes": "os.listdir('/proc')",
    "disks": "os.listdir('/sys/block')",
    "memory of the machine": "open('/dev/mem', 'rb')",
    "shared memory": "open('/dev/shm/x', 'w')",
    "terminal": "open('/dev/tty', 'w')",
    "messages of the kernel": "call('klogctl', 3, ctypes.create_string_buffer(99), 99)",
    "mount of tmpfs": "os.mkdir('m'); call('mount', b'tmpfs', b'm', b'tmpfs', 0, None)",
    "mount by the newer calls": "call('syscall', 430, b'tmpfs', 0)",
    "bind mount": "os.mkdir('m'); call('mount', b'/', b'm', None, 4096, None)",
    "unmount": "call('umount2', b'.', 2)",
    "chroot": "os.chroot('.')",
    "user namespace": "call('unshare', 0x10000000)",
    "mount namespace": "call('unshare', 0x20000)",
    "namespace of others": "call('setns', 0, 0)",
    "io_uring": "call('syscall', 425, 8, ctypes.create_string_buffer(120))",
    "bpf": "call('syscall', 321 if is_x86 else 280, 0, None, 0)",
    "host name": "socket.sethostname('mine')",
    "clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "user id": "os.setuid(1 if os.getuid() == 0 else 0)",
    "groups": "os.setgroups([1])",
    "program that changes its user": "os.execv('/bin/su', ['su'])",
    "more rights than limited": "resource.setrlimit(resource.RLIMIT_FSIZE, (2**40, 2**40))",
    "attributes of files": "fcntl.ioctl(os.open('.', 0), 0x40086602, struct.pack('l', 16))",
    "device": "os.mknod('d', 0o60600, os.makedev(8, 0))",
}

PROCESSES = {
    "fork": "os.fork() or os._exit(0)",
    "vfork": "call('vfork') or os._exit(0)",
    "clone3": "call('syscall', 435, struct.pack('11Q', *(0,) * 11), 88) or os._exit(0)",
    "spawn": "os.posix_spawn(sys.executable, [sys.executable, '-c', ''], {})",
    "subprocess": "subprocess.run(['/bin/true'])",
    "multiprocessing": "multiprocessing.get_context('fork').Process(target=print).start()",
    "become another program": "os.execv(sys.executable, [sys.executable, '-c', 'print(1)'])",
    "kill of another": "os.kill(victim, 9)",
    "kill of its parent": "os.kill(os.getppid(), 0)",
    "kill of all": "os.kill(-1, 0)",
    "kill of its group": "os.killpg(0, 0)",
    "signal by a descriptor": "signal.pidfd_send_signal(os.pidfd_open(victim), 9)",
    "signal by the owner of a file": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, victim)",
    "signal by a group of sockets": "fcntl.ioctl(0, 0x8901, struct.pack('i', victim))",
    "trace": "call('ptrace', 16, victim, 0, 0)",
    "read memory": "call('process_vm_readv', victim, None, 0, None, 0, 0)",
    "limits of another": "resource.prlimit(victim, resource.RLIMIT_CPU, (1, 1))",
    "processors of another": "os.sched_setaffinity(victim, {0})",
    "priority of another": "os.setpriority(os.PRIO_PROCESS, victim, 19)",
    "session of its own": "os.setsid()",
    "group of its own": "os.setpgid(0, 0)",
    "life beyond its parent": "call('prctl', 1, 0, 0, 0, 0)",
}

SOCKETS = {
    "Unix socket by path": "socket.socket(socket.AF_UNIX).connect(path)",
    "Unix socket by name": "socket.socket(socket.AF_UNIX).connect('\\0' + name)",
    "datagram to a path": (
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', path + '.d')"
    ),
    "stream that is sent to a path": "socket.socketpair()[0].sendto(b'x', path + '.d')",
    "stream that is connected anew": "socket.socketpair()[0].connect(path)",
    "listening on a path": "socket.socket(socket.AF_UNIX).bind('mine')",
    "TCP": "socket.create_connection(('127.0.0.1', port), 5.0)",
    "TCP by version 6": "socket.socket(socket.AF_INET6).connect(('::1', port))",
    "listening on TCP": "socket.create_server(('127.0.0.1', 0))",
    "UDP": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port))",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "raw packets": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "virtual machine": "socket.socket(socket.AF_VSOCK)",
}

MEMORY = {
    "memory of a file": "os.memfd_create('x')",
    "System V shared memory": "call('shmget', 0, 2**20, 0o1600)",
    "System V messages": "call('msgget', 0, 0o1600)",
    "POSIX messages": "call('syscall', 240 if is_x86 else 180, b'x', 66, 6)",
    "mapped memory": "mmap.mmap(-1, 2**29)",
    "locked memory": "call('mlock', ctypes.create_string_buffer(2**20), 2**20)",
    "large file": "open('x', 'wb').truncate(2**40)",
    "file without holes": "os.posix_fallocate(os.open('x', 66), 0, 2**30)",
    "descriptors": "[open('program.py') for _ in range(100)]",
    "descriptor of the trainer": "[os.fstat(fd) for fd in range(3, 64)] and os.fstat(3)",
    "keys": "call('syscall', 248 if is_x86 else 217, b'user', b'x', b'y', 1, -3)",
}

FAMILIES = {
    "files": FILES,
    "the kernel": KERNEL,
    "processes": PROCESSES,
    "sockets": SOCKETS,
    "memory": MEMORY,
}

CONTROL = {
    name: snippet
    for family in FAMILIES.values()
    for name, snippet in family.items()
    if name
    in {
        *FILES,
        "Unix socket by path",
        "Unix socket by name",
        "datagram to a path",
        "TCP",
        "UDP",
        "its own chance to be killed for memory",
        "list of processes",
        "fork",
        "spawn",
        "kill of another",
        "session of its own",
        "life beyond its parent",
        "limits of another",
        "processors of another",
        "priority of another",
        "signal by the owner of a file",
        "memory of a file",
        "System V shared memory",
        "mapped memory",
        "large file",
        "descriptors",
    }
    and "standard library" not in name
}
"""Gets out of a plain process without harm to the machine."""


@pytest.fixture
def world(tmp_path):
    """Yield what programs should not get at, as lines that name it."""
    outside = tmp_path / "outside"
    outside.joinpath("empty").mkdir(parents=True)
    outside.joinpath("secret").write_text("hidden")
    sockets = [
        socket.socket(socket.AF_UNIX),
        socket.socket(socket.AF_UNIX),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        socket.create_server(("127.0.0.1", 0)),
    ]
    place = tempfile.TemporaryDirectory()  # paths of sockets are short, those of tests may not be
    path = f"{place.name}/s"
    name = f"tunix-sandbox-{os.getpid()}"
    for one, address in zip(sockets, (path, f"\0{name}", f"{path}.d"), strict=False):
        one.bind(address)
    for one in sockets[:2]:
        one.listen()
    victim = subprocess.Popen(["sleep", "60"], env={"SECRET": "hidden"})
    lines = (
        f"outside, secret, path = {str(outside)!r}, {str(outside / 'secret')!r}, {path!r}\n"
        f"name, victim, port = {name!r}, {victim.pid}, {sockets[3].getsockname()[1]}\n"
    )
    yield types.SimpleNamespace(lines=lines, outside=outside, victim=victim)
    for one in sockets:
        one.close()
    place.cleanup()
    victim.kill()
    victim.wait()


def program(world, snippets):
    """Return a program that tries one after the other and prints what became of each."""
    body = "".join(
        f"def attempt(): {snippet}\n"
        f"try: attempt()\nexcept (OSError, ValueError) as e: print({name!r}, 'refused', sep=': ')\n"
        f"else: print({name!r}, 'escaped', sep=': ')\n"
        for name, snippet in snippets.items()
    )
    return PRELUDE + world.lines + body


def state(world):
    """Return everything about the world that a program may have changed."""
    files = sorted(
        (str(p), s.st_mode, s.st_uid, s.st_size, s.st_mtime_ns, s.st_nlink)
        for p in world.outside.rglob("*")
        for s in [p.lstat()]
    )
    return files, world.victim.poll()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_refused(family, mode, world):
    before = state(world)
    result = sandbox.run_python(program(world, FAMILIES[family]), limits=LIMITS)
    lines = result.stdout.splitlines()
    assert lines == [f"{name}: refused" for name in FAMILIES[family]], result.stderr
    assert result.returncode == 0
    assert state(world) == before


@pytest.mark.parametrize("name", CONTROL)
def test_the_same_gets_out_of_a_plain_process(name, world, tmp_path):
    tmp_path.joinpath("own").mkdir()
    tmp_path.joinpath("own", "program.py").write_text("x")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program(world, {name: CONTROL[name]})],
        cwd=tmp_path / "own",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == [f"{name}: escaped"], done.stderr
