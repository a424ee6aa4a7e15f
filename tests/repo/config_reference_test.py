"""docs/reference/config.md says what the dataclasses say."""

import importlib.util

from tests.repo import source


def test_the_page_is_up_to_date():
    path = source.ROOT / "scripts" / "write_config_reference.py"
    spec = importlib.util.spec_from_file_location("write_config_reference", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = (source.ROOT / "docs" / "reference" / "config.md").read_text()
    assert written == script.page(), "run `python scripts/write_config_reference.py`"
