# SPDX-License-Identifier: Apache-2.0
"""Instances are found, and locked by processes, not by words in files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serdab.errors import BusyError, UsageError
from serdab.instance.layout import Instance
from serdab.instance.locks import lock_build, lock_run


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    (tmp_path / "Occlum.json").write_text("{}")
    return Instance.open(str(tmp_path))


class TestOpening:
    def test_a_directory_without_configuration_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="not an instance") as caught:
            Instance.open(str(tmp_path))
        assert "serdab new" in caught.value.hint

    def test_one_that_was_not_built_says_so(self, instance: Instance) -> None:
        with pytest.raises(UsageError, match="has not been built") as caught:
            Instance.open_built(instance.path)
        assert "serdab build" in caught.value.hint

    def test_a_file_is_read_only_when_it_is_one(self, instance: Instance) -> None:
        os.mkfifo(instance.at("fifo"))
        os.symlink("Occlum.json", instance.at("link"))
        for name in ("fifo", "link", "none", "."):
            with pytest.raises(UsageError):
                instance.read(name)
        Path(instance.at("large")).write_bytes(bytes((1 << 20) + 1))
        with pytest.raises(UsageError, match="too large"):
            instance.read("large")


class TestLocks:
    def test_the_second_user_is_told_who_holds_it(self, instance: Instance) -> None:
        code = (
            "import sys; from serdab.instance.layout import Instance;"
            "from serdab.instance.locks import lock_run;"
            "lock = lock_run(Instance(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
        )
        holder = subprocess.Popen(
            [sys.executable, "-c", code, instance.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"locked\n"
            with pytest.raises(BusyError) as caught:
                lock_run(instance)
            assert f"process {holder.pid}" in caught.value.found
        finally:
            holder.kill()
            holder.wait()
            for stream in (holder.stdin, holder.stdout):
                assert stream is not None
                stream.close()
        # After kill -9 the next one just works.
        lock_run(instance).close()

    def test_the_two_locks_do_not_exclude_each_other(self, instance: Instance) -> None:
        with lock_build(instance), lock_run(instance):
            with pytest.raises(BusyError, match="another build"):
                lock_build(instance)
            with pytest.raises(BusyError, match="in use"):
                lock_run(instance)
