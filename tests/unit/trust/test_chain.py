# SPDX-License-Identifier: Apache-2.0
"""The boot chain: the one order that works, and every other one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serdab.config.boot import BootConfig, dump_boot_config
from serdab.errors import (
    ChainOrderError,
    Error,
    FormatError,
    MeasurementMismatch,
    SignerMismatch,
    VerificationError,
)
from serdab.structs import replace
from serdab.trust.chain import BootChain, State
from serdab.trust.descriptor import Descriptor, sign
from serdab.trust.measurement import Digest
from tests.harness.signers import signer

SIGNER = signer()
CODE = Digest.of(b"code")
INIT_MAC, ROOT_MAC, OTHER_MAC = b"\1" * 32, b"\2" * 32, b"\3" * 32
CONFIG = BootConfig("encrypted", INIT_MAC, ROOT_MAC)
RAW_CONFIG = dump_boot_config(CONFIG)
DESCRIPTOR = Descriptor("0.1.0", CODE, Digest.of(RAW_CONFIG), 0, 0, True, "simulation")
RAW = sign(DESCRIPTOR, SIGNER)

Step = Callable[[BootChain], object]
STEPS: dict[str, Step] = {
    "descriptor": lambda chain: chain.accept_descriptor(
        RAW, code_digest=CODE, expected_signer=None, platform="simulation"
    ),
    "config": lambda chain: chain.accept_config(RAW_CONFIG),
    "initfs": lambda chain: chain.accept_initfs(INIT_MAC),
    "started": lambda chain: chain.init_started(),
    "rootfs": lambda chain: chain.accept_rootfs(ROOT_MAC),
    "exited": lambda chain: chain.init_exited(0),
}
ORDER = list(STEPS)


def boot(upto: str) -> BootChain:
    """Return a chain that went through all steps before ``upto``."""
    chain = BootChain()
    for name in ORDER[: ORDER.index(upto)]:
        STEPS[name](chain)
    return chain


def fingerprint(chain: BootChain) -> tuple[object, ...]:
    return chain.state, chain.measured, chain._init_runs, chain._config, chain._descriptor


class TestOrder:
    def test_the_right_one_ends_with_the_application(self) -> None:
        chain = BootChain()
        states = []
        for name in ORDER:
            STEPS[name](chain)
            states.append(chain.state.value)
        assert states == ["config", "initfs", "init", "init", "rootfs", "app"]
        assert [item.subject for item in chain.measured] == [
            "mrsigner",
            "mrenclave",
            "code",
            "conf-mac",
            "init-mac",
            "root-mac",
        ]

    @settings(max_examples=300)
    @given(st.lists(st.sampled_from(ORDER), max_size=12))
    def test_any_other_call_raises_and_changes_nothing(self, calls: list[str]) -> None:
        chain = BootChain()
        done = 0
        for name in calls:
            before = fingerprint(chain)
            if done < len(ORDER) and name == ORDER[done]:
                STEPS[name](chain)
                done += 1
            elif name == "exited" and chain.state is State.INIT and done == 4:
                with pytest.raises(Error, match="without mounting"):
                    STEPS[name](chain)
                assert fingerprint(chain)[0] is State.DOWN
                return
            else:
                with pytest.raises(ChainOrderError):
                    STEPS[name](chain)
                assert fingerprint(chain) == before

    @pytest.mark.parametrize("name", ORDER)
    def test_nothing_is_admitted_after_the_end(self, name: str) -> None:
        chain = boot(name)
        chain.down()
        with pytest.raises(ChainOrderError):
            STEPS[name](chain)

    def test_values_are_not_given_out_before_they_were_checked(self) -> None:
        chain = BootChain()
        for read in (lambda: chain.config, lambda: chain.descriptor, lambda: chain.signer):
            with pytest.raises(ChainOrderError):
                read()


class TestSigned:
    def accept(self, raw: bytes = RAW, **changes: object) -> BootChain:
        chain = BootChain()
        arguments: dict[str, object] = {
            "code_digest": CODE,
            "expected_signer": None,
            "platform": "simulation",
            **changes,
        }
        chain.accept_descriptor(raw, **arguments)  # type: ignore[arg-type]
        return chain

    def test_another_signer_is_refused_with_both_names(self) -> None:
        expected = Digest.of(b"another signer")
        with pytest.raises(SignerMismatch) as caught:
            self.accept(expected_signer=expected)
        assert caught.value.stage == "signed"
        assert str(expected) in caught.value.expected
        assert str(SIGNER.public.mrsigner()) in caught.value.found
        assert "--expect-signer" in caught.value.hint

    def test_the_expected_signer_is_accepted(self) -> None:
        assert self.accept(expected_signer=SIGNER.public.mrsigner()).state is State.CONFIG

    def test_another_serdab_is_refused_with_the_way_out(self) -> None:
        with pytest.raises(MeasurementMismatch, match="another Serdab") as caught:
            self.accept(code_digest=Digest.of(b"upgraded"))
        assert "serdab build" in caught.value.hint
        assert "keeps all data" in caught.value.hint

    def test_another_platform_is_refused(self) -> None:
        with pytest.raises(MeasurementMismatch, match="another platform"):
            self.accept(platform="sev-snp")

    def test_a_tampered_signature_is_refused(self) -> None:
        raw = RAW.replace(b'"signature":"', b'"signature":"', 1)
        position = raw.index(b'"signature":"') + 20
        changed = raw[:position] + (b"0" if raw[position] != 48 else b"1") + raw[position + 1 :]
        with pytest.raises(VerificationError, match="signature"):
            self.accept(changed)

    def test_a_refusal_leaves_the_chain_where_it_was(self) -> None:
        chain = BootChain()
        with pytest.raises(FormatError):
            chain.accept_descriptor(
                b"{}", code_digest=CODE, expected_signer=None, platform="simulation"
            )
        assert chain.state is State.SIGNED
        STEPS["descriptor"](chain)


class TestConfig:
    def test_another_configuration_is_refused_with_both_macs(self) -> None:
        raw = dump_boot_config(replace(CONFIG, entry_points=("/",)))
        with pytest.raises(MeasurementMismatch) as caught:
            boot("config").accept_config(raw)
        assert caught.value.stage == "config"
        assert str(Digest.of(RAW_CONFIG)) in caught.value.expected
        assert str(Digest.of(raw)) in caught.value.found

    def test_descriptor_and_configuration_must_name_one_product(self) -> None:
        descriptor = replace(DESCRIPTOR, product_id=7)
        chain = BootChain()
        chain.accept_descriptor(
            sign(descriptor, SIGNER),
            code_digest=CODE,
            expected_signer=None,
            platform="simulation",
        )
        with pytest.raises(MeasurementMismatch, match="belong together"):
            chain.accept_config(RAW_CONFIG)
        assert chain.state is State.CONFIG


class TestFileSystems:
    def test_another_init_fs_is_refused_at_its_stage(self) -> None:
        chain = boot("initfs")
        with pytest.raises(MeasurementMismatch) as caught:
            chain.accept_initfs(OTHER_MAC)
        assert caught.value.stage == "initfs"
        assert chain.state is State.INITFS

    @pytest.mark.parametrize("mac", [OTHER_MAC, b"", ROOT_MAC[:16], ROOT_MAC + b"\0"])
    def test_another_root_fs_is_refused_and_may_be_retried(self, mac: bytes) -> None:
        chain = boot("rootfs")
        with pytest.raises(MeasurementMismatch) as caught:
            chain.accept_rootfs(mac)
        assert caught.value.stage == "rootfs"
        chain.accept_rootfs(ROOT_MAC)

    def test_a_runtime_image_needs_no_configured_mac(self) -> None:
        chain = boot("rootfs")
        chain.accept_rootfs(OTHER_MAC, runtime=True)
        assert chain.state is State.ROOTFS

    def test_a_mac_that_init_names_binds_a_runtime_image(self) -> None:
        chain = boot("rootfs")
        with pytest.raises(MeasurementMismatch):
            chain.accept_rootfs(OTHER_MAC, runtime=True, caller_mac=ROOT_MAC)
        chain.accept_rootfs(OTHER_MAC, runtime=True, caller_mac=OTHER_MAC)

    def test_a_mac_that_init_names_narrows_the_configured_one(self) -> None:
        chain = boot("rootfs")
        with pytest.raises(MeasurementMismatch) as caught:
            chain.accept_rootfs(ROOT_MAC, caller_mac=OTHER_MAC)
        assert OTHER_MAC.hex() in caught.value.expected
        chain.accept_rootfs(ROOT_MAC, caller_mac=ROOT_MAC)

    def test_a_mac_that_init_names_cannot_replace_the_configured_one(self) -> None:
        chain = boot("rootfs")
        with pytest.raises(MeasurementMismatch):
            chain.accept_rootfs(OTHER_MAC, caller_mac=OTHER_MAC)


class TestInit:
    def test_a_failing_init_ends_the_boot_with_its_code(self) -> None:
        chain = boot("exited")
        with pytest.raises(Error, match="init failed") as caught:
            chain.init_exited(7)
        assert "7" in caught.value.found
        assert chain.state is State.DOWN

    def test_an_init_that_mounted_nothing_ends_the_boot(self) -> None:
        chain = boot("rootfs")
        with pytest.raises(Error, match="without mounting the root FS"):
            chain.init_exited(0)
        assert chain.state is State.DOWN

    def test_the_root_fs_is_for_init_alone(self) -> None:
        with pytest.raises(ChainOrderError):
            boot("started").accept_rootfs(ROOT_MAC)
