import pathlib

import pytest

from tunix.rl.reward_fns import sandbox, sandbox_command

CHILD = pathlib.Path(sandbox_command.__file__).with_name("sandbox_child.py")


@pytest.fixture
def fresh():
    """Have the machine looked at anew, within the test and after it."""
    sandbox.protection.cache_clear()
    yield
    sandbox.protection.cache_clear()


@pytest.fixture
def leave_out(fresh, monkeypatch, tmp_path_factory):
    """Return a function that has the child leave out steps, as where the machine has them not."""

    def leave_out(*steps):
        child = tmp_path_factory.mktemp("child") / "sandbox_child.py"
        head, tail = CHILD.read_text().split('if __name__ == "__main__":')
        no = "".join(f"{step} = lambda *a: 0\n" for step in steps)
        child.write_text(f'{head}{no}if __name__ == "__main__":{tail}')
        monkeypatch.setattr(sandbox_command, "_CHILD", child)
        monkeypatch.setattr(sandbox_command, "bwrap", lambda: None)

    return leave_out


@pytest.fixture(params=["bwrap", "namespaces", "Landlock alone"])
def mode(request, leave_out):
    """Have programs kept in by one kind of protection; skip where the machine has it not."""
    if request.param != "bwrap":
        leave_out(*(["_unshare"] if request.param == "Landlock alone" else []))
    found = sandbox.protection()
    if not {
        "bwrap": found.bwrap and found.filtered,
        "namespaces": found.read_only and found.landlock and found.filtered,
        "Landlock alone": found.landlock >= 3 and found.filtered,
    }[request.param]:
        pytest.skip(f"this machine has {found}")
    return request.param
