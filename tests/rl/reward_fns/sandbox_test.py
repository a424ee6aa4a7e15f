import dataclasses
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from tunix.rl.reward_fns import sandbox, sandbox_command, sandbox_directory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")

QUICK = sandbox.SandboxLimits(cpu_seconds=1, wall_seconds=5.0, memory_mib=256, output_bytes=1000)


def test_a_program_reads_its_input_and_writes_its_output():
    result = sandbox.run_python("print(int(input()) * 2)", stdin="21\n", limits=QUICK)
    assert (result.returncode, result.stdout, result.stderr) == (0, "42\n", "")


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("while True: pass", id="CPU time"),
        pytest.param("x = bytearray(2**30)", id="memory"),
        pytest.param("open('f', 'wb').write(bytes(2**24))", id="file size"),
        pytest.param("raise SystemExit(3)", id="exit"),
        pytest.param("1 +", id="syntax"),
        pytest.param("import ctypes; ctypes.string_at(0)", id="crash"),
        pytest.param("import numpy", id="other packages"),
    ],
)
def test_a_program_that_goes_too_far_ends_with_an_error(source):
    assert sandbox.run_python(source, limits=QUICK).returncode not in (0, None)


def test_too_little_memory_for_anything_is_the_programs_failure_and_not_the_sandboxes(mode):
    result = sandbox.run_python("print(1)", limits=sandbox.SandboxLimits(memory_mib=1))
    assert result.returncode not in (0, None)


def test_limits_that_are_already_lower_stay():
    source = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    command = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "from tunix.rl.reward_fns import sandbox\n"
        f"print(sandbox.run_python({source!r}).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.stdout.strip() == "(40, 40)", done.stderr
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_a_program_that_sleeps_is_killed_with_all_of_its_processes(tmp_path):
    sign = tmp_path / "sign"
    source = (
        "import os, time\n"
        "try:\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        f"        time.sleep(2.0); open({str(sign)!r}, 'w').close()\n"
        "except OSError: pass\n"
        "time.sleep(60)\n"
    )
    start = time.perf_counter()
    result = sandbox.run_python(source, limits=sandbox.SandboxLimits(wall_seconds=1.0))
    assert result.timed_out and time.perf_counter() - start < 2.0
    if sandbox.is_isolated():
        time.sleep(1.5)
        assert not sign.exists()


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="no filter")
@pytest.mark.parametrize(
    "attempt",
    [
        "os.fork()",
        "os.posix_spawn(sys.executable, [sys.executable, '-c', ''], {})",
        "subprocess.run([sys.executable, '-c', ''])",
        "multiprocessing.get_context('fork').Process(target=print).start()",
        "ctypes.set_errno(0) or ctypes.CDLL(None, use_errno=True).vfork() < 0 and 1 / 0",
    ],
)
def test_a_program_makes_no_process_even_if_it_is_run_by_root(attempt):
    source = "import ctypes, multiprocessing, os, subprocess, sys\n"
    source += f"try: {attempt}\nexcept (OSError, ZeroDivisionError) as e: print('refused')\n"
    result = sandbox.run_python(source, limits=QUICK)
    assert (result.stdout, result.returncode) == ("refused\n", 0)


def test_output_is_cut_off_and_the_environment_is_not_inherited(monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    result = sandbox.run_python(
        "import os; print('SECRET' in os.environ, os.getcwd() != os.path.sep); print('x' * 10**5)",
        limits=QUICK,
    )
    assert result.stdout.startswith("False True\nxxx") and len(result.stdout) == 1000


def test_nothing_is_left_behind():
    result = sandbox.run_python("import os; print(os.getcwd())", limits=QUICK)
    assert not os.path.exists(result.stdout.strip())


def test_there_is_no_network_where_the_kernel_can_take_it_away():
    if not sandbox.is_isolated():
        pytest.skip(str(sandbox.protection()))
    source = (
        "import socket\n"
        "try:\n"
        "    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "    s.connect(('192.0.2.1', 9))\n"
        "except OSError as e: print('none')\n"
    )
    assert sandbox.run_python(source, limits=QUICK).stdout == "none\n"


def test_the_size_of_a_file_is_what_the_limit_says():
    source = "open('f', 'wb').write(bytes(2**16))"
    assert (
        sandbox.run_python(source, limits=sandbox.SandboxLimits(file_bytes=2**17)).returncode == 0
    )
    small = sandbox.SandboxLimits(file_bytes=2**15)
    assert sandbox.run_python(source, limits=small).returncode != 0


def test_what_its_files_take_together_is_limited():
    many = "for i in range(300): open(str(i), 'w').close()"
    assert sandbox.run_python(many, limits=sandbox.SandboxLimits(disk_mib=2)).returncode == 0
    small = sandbox.SandboxLimits(disk_mib=1)
    assert sandbox.run_python(many, limits=small).returncode == 128 + signal.SIGXFSZ
    for_ever = "i = 0\nwhile True: i += 1; open(str(i), 'wb').write(bytes(10**5))"
    start = time.perf_counter()
    assert sandbox.run_python(for_ever, limits=small).returncode == 128 + signal.SIGXFSZ
    assert time.perf_counter() - start < 5.0


def test_output_without_end_is_cut_off_at_the_size_of_a_file():
    limits = dataclasses.replace(QUICK, file_bytes=5000, output_bytes=10_000)
    result = sandbox.run_python("while True: print('x' * 99, flush=True)", limits=limits)
    assert len(result.stdout) == 5000 and result.returncode not in (0, None)


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    print('fine')\n"
        "asyncio.run(f())",
        "import threading; t = threading.Thread(target=print, args=['fine']); t.start(); t.join()",
        "import concurrent.futures as f\n"
        "with f.ThreadPoolExecutor(2) as p: print(*p.map(str.lower, ['FINE']))",
        "import bz2, ctypes, decimal, lzma, sqlite3, ssl, unittest, zlib; print('fine')",
        "import zoneinfo; zoneinfo.ZoneInfo('Europe/Berlin'); print('fine')",
        "print('fine', file=open('/dev/stdout', 'w'))",
        "open('/dev/null', 'w').write('x'); print('fine')",
        "print(open('/dev/stdin').read())",
        "import tempfile\nwith tempfile.NamedTemporaryFile('w') as f: f.write('x'); print('fine')",
        "import os; os.makedirs('a/b'); open('a/x', 'w'); os.rename('a/x', 'a/b/y'); print('fine')",
        "import os, random, secrets, time, uuid; os.urandom(1), uuid.uuid4(); print('fine')",
        "import signal; signal.signal(signal.SIGALRM, lambda *a: print('fine')); signal.alarm(1); "
        "signal.pause()",
    ],
)
def test_what_honest_programs_do_works_with_every_kind_of_protection(source, mode):
    result = sandbox.run_python(source, stdin="fine", limits=sandbox.SandboxLimits())
    assert (result.stdout.strip(), result.stderr, result.returncode) == ("fine", "", 0)


NOTHING = ("_unshare", "_confine_files", "_filter_calls")


def test_a_machine_that_has_nothing_is_described_as_such(leave_out, caplog):
    leave_out(*NOTHING)
    found = sandbox.protection()
    assert found == sandbox.Protection() and not sandbox.is_isolated()
    assert found.missing() == [
        "reading your files",
        "changing your files",
        "the network",
        "sockets of other programs",
        "starting processes",
        "other processes",
    ]
    assert "limits only; not kept from: reading your files" in caplog.text


@pytest.mark.parametrize(
    ("found", "missing"),
    [
        ({"landlock": 7, "filtered": True}, []),
        ({"landlock": 2, "filtered": True}, ["changing your files"]),
        ({"landlock": 1, "filtered": True, "namespaces": True, "read_only": True}, []),
        ({"filtered": True, "namespaces": True, "read_only": True}, ["reading your files"]),
        (
            {"bwrap": True, "namespaces": True, "read_only": True},
            ["starting processes"],
        ),
        (
            {"landlock": 7},
            [
                "changing your files",
                "the network",
                "sockets of other programs",
                "starting processes",
                "other processes",
            ],
        ),
    ],
)
def test_it_says_what_programs_are_not_kept_from(found, missing):
    assert sandbox.Protection(**found).missing() == missing


def test_root_runs_nothing_without_landlock_or_bwrap_unless_told_so(leave_out, monkeypatch):
    leave_out("_confine_files")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(sandbox.SandboxError, match=r"as root with neither Landlock .* nor bwrap"):
        sandbox.run_python("print(1)", limits=QUICK)
    told = dataclasses.replace(QUICK, allow_root=True)
    assert sandbox.run_python("print(1)", limits=told).stdout == "1\n"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert sandbox.run_python("print(1)", limits=QUICK).stdout == "1\n"


def test_isolation_that_is_required_and_not_there_is_an_error(leave_out):
    leave_out("_filter_calls")
    strict = dataclasses.replace(QUICK, require_isolation=True)
    with pytest.raises(sandbox.SandboxError, match=r"not be kept from .*starting processes"):
        sandbox.run_python("print(1)", limits=strict)


@pytest.mark.parametrize("step", ["_unshare", "_confine_files", "_filter_calls"])
def test_a_program_does_not_run_with_less_than_was_found_before(leave_out, step):
    leave_out()
    sign = "import sys; print('ran'); print('ran', file=sys.stderr)"
    if sandbox.protection().missing():
        pytest.skip(str(sandbox.protection()))
    leave_out(step)
    with pytest.raises(sandbox.SandboxError, match=r"did not come about: expected Land") as raised:
        sandbox.run_python(sign, limits=QUICK)
    assert "ran" not in str(raised.value)


def test_a_bwrap_that_does_not_work_is_done_without(fresh, monkeypatch):
    monkeypatch.setattr(sandbox_command, "bwrap", lambda: "/bin/false")
    assert not sandbox.protection().bwrap
    assert sandbox.run_python("print(1)", limits=QUICK).stdout == "1\n"


def test_a_program_that_ends_like_the_sandbox_does_is_no_fault_of_the_sandbox():
    for code in (1, 97, 126):
        assert sandbox.run_python(f"import os; os._exit({code})", limits=QUICK).returncode == code


ATTACKS_ON_CLEANUP = {
    "deep directories": (
        "for _ in range(3000): os.mkdir('d'); os.chdir('d')\nopen('last', 'w').close()"
    ),
    "wide and deep": (
        "for _ in range(30): [os.makedirs(f'{i}/{j}') for i in '.abc' for j in 'xy' if i != '.']; "
        "os.chdir('a/x')"
    ),
    "directories that are closed": "os.makedirs('a/b/c'); os.chmod('a/b', 0); os.chmod('a', 0)",
    "its own directory closed": "os.mkdir('a'); os.chmod('.', 0)",
    "links to others": "os.mkdir('a'); os.symlink(outside, 'a/b'); os.symlink('.', 'c')",
    "names of all kinds": (
        "[open(bytes([i]) * 200, 'w').close() for i in range(1, 256) if i != 47]"
    ),
    "names that cleanup would use": (
        "[os.makedirs(f'a/b{i}/.{i}') for i in range(9)]; os.mkdir('.0')"
    ),
    "its own directory a link": "os.rename(here, here + '.old'); os.symlink(outside, here)",
    "its own directory a file": "os.rename(here, here + '.old'); open(here, 'w').close()",
    "its own directory away": "os.unlink('program.py'); os.rmdir(here)",
}


@pytest.mark.parametrize("bare", [False, True], ids=["kept in", "with nothing to keep it in"])
@pytest.mark.parametrize("attack", ATTACKS_ON_CLEANUP)
def test_cleanup_does_not_fail_and_touches_nothing_else(
    leave_out, attack, bare, tmp_path, monkeypatch, caplog
):
    outside = tmp_path / "outside"
    outside.joinpath("inner").mkdir(parents=True)
    outside.joinpath("inner", "file").write_text("x")
    outside.chmod(0o750)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    if bare:
        leave_out(*NOTHING)
    source = f"import os\noutside, here = {str(outside)!r}, os.getcwd()\n"
    limits = dataclasses.replace(QUICK, allow_root=True)
    result = sandbox.run_python(source + ATTACKS_ON_CLEANUP[attack], limits=limits)
    if bare and "deep directories" not in attack:
        assert result.returncode == 0, result.stderr
    assert outside.stat().st_mode & 0o777 == 0o750
    assert outside.joinpath("inner", "file").read_text() == "x"
    left = sorted(path.name for path in scratch.iterdir())
    moved = bare and attack in ("its own directory a link", "its own directory a file")
    assert len(left) == moved and all(name.endswith(".old") for name in left)
    assert not any(path for place in scratch.iterdir() for path in place.iterdir())
    assert "cannot delete" not in caplog.text


def test_what_cannot_be_deleted_is_reported_and_not_raised(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sandbox_directory, "_ATTEMPTS", 3)
    directory = sandbox_directory.SandboxDirectory()
    monkeypatch.setattr(os, "rmdir", lambda *a, **k: (_ for _ in ()).throw(OSError("held")))
    directory.remove()
    assert f"cannot delete {directory.path}, which a program left: held" in caplog.text
