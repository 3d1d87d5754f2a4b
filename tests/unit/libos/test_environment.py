# SPDX-License-Identifier: Apache-2.0
"""Environment and entry points, straight from the contract."""

from __future__ import annotations

import pytest

from serdab.errors import NotAllowedError, UsageError
from serdab.libos.environment import check_entry_point, combine, merge_trusted


class TestEnvironment:
    def test_only_listed_names_come_from_the_caller(self) -> None:
        assert combine([b"OCCLUM=yes"], [b"TEST"], [b"TEST=true", b"STABLE=no"]) == (
            b"OCCLUM=yes",
            b"TEST=true",
        )

    def test_a_listed_name_of_the_caller_wins(self) -> None:
        assert combine([b"OVERRIDE=N", b"OCCLUM=yes"], [b"OVERRIDE"], [b"OVERRIDE=Y"]) == (
            b"OCCLUM=yes",
            b"OVERRIDE=Y",
        )

    def test_a_listed_name_that_the_caller_lacks_keeps_its_default(self) -> None:
        assert combine([b"OVERRIDE=N"], [b"OVERRIDE"], []) == (b"OVERRIDE=N",)

    def test_a_name_ends_at_the_first_equals_sign(self) -> None:
        assert combine([b"A=1=2"], [b"A"], [b"A=x=y"]) == (b"A=x=y",)

    def test_duplicates_and_order_are_kept(self) -> None:
        trusted = [b"B=1", b"A=1", b"B=2"]
        assert combine(trusted, [b"C"], [b"C=2", b"D=1", b"C=1"]) == (*trusted, b"C=2", b"C=1")

    def test_what_init_gives_comes_first_and_replaces_defaults(self) -> None:
        assert merge_trusted([b"OCCLUM=yes", b"PATH=/bin"], [b"OCCLUM=NO", b"TEST=1"]) == (
            b"OCCLUM=NO",
            b"TEST=1",
            b"PATH=/bin",
        )

    def test_the_caller_wins_over_init_too(self) -> None:
        trusted = merge_trusted([b"A=default"], [b"A=init"])
        assert combine(trusted, [b"A"], [b"A=host"]) == (b"A=host",)

    def test_an_item_without_equals_sign_is_a_name(self) -> None:
        assert combine([b"ODD"], [b"ODD"], [b"ODD"]) == (b"ODD",)


class TestEntryPoints:
    @pytest.mark.parametrize(
        "path", ["/bin/a", "/bin/b/c", "/bin", "//bin//a", "/bin/./a", "/usr/bin/x"]
    )
    def test_a_path_under_an_entry_point_passes(self, path: str) -> None:
        check_entry_point(path, ["/bin", "/usr/bin"])

    @pytest.mark.parametrize("path", ["/binary", "/usr", "/usr/binx/a", "/", "/opt/bin/a"])
    def test_any_other_is_not_allowed(self, path: str) -> None:
        with pytest.raises(NotAllowedError) as caught:
            check_entry_point(path, ["/bin", "/usr/bin"])
        assert caught.value.exit_code == 126
        assert "/usr/bin" in caught.value.expected

    @pytest.mark.parametrize("path", ["", "bin/a", "./bin/a", "/bin/../a", "/bin/.."])
    def test_what_is_not_plain_and_absolute_is_a_usage_error(self, path: str) -> None:
        with pytest.raises(UsageError):
            check_entry_point(path, ["/bin"])

    def test_a_name_with_dots_is_just_a_name(self) -> None:
        check_entry_point("/bin/..a", ["/bin"])

    def test_the_root_as_entry_point_allows_all(self) -> None:
        check_entry_point("/opt/x", ["/"])
