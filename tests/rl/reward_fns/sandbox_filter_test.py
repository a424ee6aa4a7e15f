"""The filter of system calls, run here by an interpreter of its language for both machines."""

import errno
import pathlib
import re
import struct

import pytest

from tunix.rl.reward_fns import sandbox_filter

HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}
ALLOW = "allowed"


def decide(machine, number, *arguments, attributes=False, name=None):
    """Return what the kernel would do: the rules of BPF, written down once more."""
    code = sandbox_filter.assemble(machine, attributes=attributes)
    lines = list(struct.iter_unpack("HBBI", code))
    name = sandbox_filter.MACHINES[machine][0] if name is None else name
    arguments = [*arguments, *(0,) * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, name, 0, *(value % 2**64 for value in arguments))
    value, at = 0, 0
    while True:
        code, if_true, if_false, k = lines[at]
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("<I", data, k)
        elif code == 0x06:
            return ALLOW if k == 0x7FFF0000 else {0x50001: "refused", 0x50026: "unknown"}[k]
        else:
            holds = {
                0x15: value == k,
                0x25: value > k,
                0x35: value >= k,
                0x45: bool(value & k),
            }[code]
            at += if_true if holds else if_false


def call(machine, name):
    """Return the number of a call from the tables of the kernel's headers, copied by hand."""
    return OTHERS[name][machine == "aarch64"]


OTHERS = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129), "tkill": (200, 130),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "unshare": (272, 97),
    "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "memfd_create": (319, 279), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217),
    "keyctl": (250, 219), "setsid": (112, 157), "setpgid": (109, 154), "setuid": (105, 146),
    "setgid": (106, 144), "personality": (135, 92), "setpriority": (141, 140),
    "sched_setaffinity": (203, 122), "ioprio_set": (251, 30), "mknodat": (259, 33),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "init_module": (175, 105),
    "kexec_load": (246, 104), "reboot": (169, 142), "swapon": (167, 224), "syslog": (103, 116),
    "clock_settime": (227, 112), "settimeofday": (164, 170), "sethostname": (170, 161),
    "setxattr": (188, 5), "quotactl": (179, 60), "acct": (163, 89), "inotify_init1": (294, 26),
    "seccomp": (317, 277), "kcmp": (312, 272), "vhangup": (153, 58), "accept": (43, 202),
}  # fmt: skip
SHARED = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442,
    "landlock_create_ruleset": 444, "memfd_secret": 447, "process_mrelease": 448,
    "map_shadow_stack": 453, "a call of a later kernel": 700,
}  # fmt: skip


@pytest.mark.parametrize("machine", sandbox_filter.MACHINES)
def test_dangerous_calls_are_refused_whatever_their_arguments(machine):
    for name in OTHERS:
        for arguments in ((), (1, 1, 1), (2**64 - 1,) * 6):
            assert decide(machine, call(machine, name), *arguments) == "refused", name
    for name, number in SHARED.items():
        assert decide(machine, number) == "unknown", name


@pytest.mark.parametrize("machine", sandbox_filter.MACHINES)
def test_calls_with_the_numbers_of_another_machine_are_refused(machine):
    for name in (0x40000003, 0xC000003E ^ 1, 0xC00000B7 ^ 1):
        assert decide(machine, 0, name=name) == "refused"
    assert decide("x86_64", 0x40000000 | 57) == "unknown"


ARGUMENTS = [
    ("clone", (0x3D0F00,), ALLOW),
    ("clone", (17,), "refused"),
    ("clone", (0x10000000,), "refused"),
    ("ioctl", (1, 0x5401), ALLOW),
    ("ioctl", (1, 0x5412), "refused"),
    ("ioctl", (1, 0x8901), "refused"),
    ("ioctl", (1, 2**32 + 0x5401), ALLOW),
    ("fcntl", (1, 3), ALLOW),
    ("fcntl", (1, 8), "refused"),
    ("fcntl", (1, 10), "refused"),
    ("fcntl", (1, 15), "refused"),
    ("prctl", (15,), ALLOW),
    ("prctl", (1, 0), "refused"),
    ("prlimit64", (0, 7), ALLOW),
    ("prlimit64", (1, 7), "refused"),
    ("socketpair", (1, 1), ALLOW),
    ("socketpair", (1, 0x80801), ALLOW),
    ("socketpair", (1, 2), "refused"),
    ("socketpair", (1, 5), "refused"),
    ("socketpair", (30, 1), "refused"),
]
NUMBERS = {
    "clone": (56, 220),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "socketpair": (53, 199),
}


@pytest.mark.parametrize("machine", sandbox_filter.MACHINES)
@pytest.mark.parametrize(("name", "arguments", "expected"), ARGUMENTS)
def test_some_calls_depend_on_their_arguments(machine, name, arguments, expected):
    assert decide(machine, NUMBERS[name][machine == "aarch64"], *arguments) == expected


@pytest.mark.parametrize("machine", sandbox_filter.MACHINES)
def test_modes_and_owners_change_only_where_they_may(machine):
    for number in {"x86_64": (90, 91, 92, 76, 132), "aarch64": (52, 53, 54, 45, 88)}[machine]:
        assert decide(machine, number) == "refused"
        assert decide(machine, number, attributes=True) == ALLOW


@pytest.mark.parametrize("machine", sandbox_filter.MACHINES)
def test_the_numbers_are_those_of_the_kernels_headers(machine):
    header = pathlib.Path(HEADERS[machine])
    if not header.exists():
        pytest.skip("no headers of the kernel")
    found = re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    known = {name: int(number) for name, number in found}
    known["newfstatat"] = known.get("newfstatat", known.get("fstatat"))
    column = 1 + sandbox_filter.MACHINES[machine][1]
    tables = f"{sandbox_filter._ALLOWED},{sandbox_filter._ATTRIBUTES},{sandbox_filter._CLONE},"
    tables += ",".join(sandbox_filter._WITH_ARGUMENTS)
    rows = [row.split() for row in tables.split(",")]
    mine = {row[0]: row[column] for row in rows if row[column] != "-"}
    newer = {"fchmodat2", "futex_wake", "futex_wait", "futex_requeue"}
    for name in mine.keys() - (newer - known.keys()):
        assert known[name] == int(mine[name]), name
    for name in OTHERS:
        assert known[name] == call(machine, name), name
    assert all(
        mine[name] == number
        for name, number in [("fchmodat2", "452"), ("futex_wake", "454"), ("futex_wait", "455")]
    )


def test_a_machine_whose_numbers_are_not_known_has_no_filter():
    assert sandbox_filter.assemble("riscv64", attributes=True) == b""


def test_the_refusals_are_errors_that_python_knows():
    assert (errno.EPERM, errno.ENOSYS) == (0x1, 0x26)
