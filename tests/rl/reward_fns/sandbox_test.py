import os
import sys
import time

import pytest

from tunix.rl.reward_fns import sandbox

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
        pytest.skip("no namespaces here")
    source = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "try: s.connect(('192.0.2.1', 9))\n"
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


def test_without_namespaces_it_refuses_only_where_isolation_is_required(tmp_path, monkeypatch):
    child = tmp_path / "child.py"  # says what the real one says where the kernel gives none
    child.write_text("import json, sys\nsys.exit(json.loads(sys.argv[1])['no_isolation_code'])\n")
    monkeypatch.setattr(sandbox, "_CHILD", child)
    assert sandbox.run_python("", limits=QUICK).returncode != 0
    with pytest.raises(sandbox.SandboxError, match="no namespaces"):
        sandbox.run_python("", limits=sandbox.SandboxLimits(require_isolation=True))
