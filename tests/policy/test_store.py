"""Policies in real files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from policy.model import PresharedKey
from policy.store.files import ConfigErrors, load_file
from tests.support.policies import KEY, SITE_TO_SITE, changed

FROM_FILE = changed(SITE_TO_SITE, (f'secret = "{KEY}"', 'secret_file = "site.psk"'))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "a.toml"
    file.write_text(FROM_FILE)
    secret = tmp_path / "site.psk"
    secret.write_text(f"{KEY}\n")
    secret.chmod(0o600)
    return file


def errors(path: Path) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load_file(path)
    return [str(error).removeprefix(f"{path.parent}/") for error in caught.value.errors]


def test_a_file_and_its_secret(config: Path) -> None:
    loaded = load_file(str(config))
    method = loaded.configuration.policies[0].rules[0].authentication[0]
    assert isinstance(method, PresharedKey)
    assert method.secret.reveal() == KEY.encode()
    assert (loaded.warnings, loaded.configuration.file) == ((), config)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o620, 0o777])
def test_a_secret_that_others_can_use(config: Path, mode: int) -> None:
    secret = config.with_name("site.psk")
    secret.chmod(mode)
    assert errors(config) == [
        f'a.toml:17:51: the secret file "{secret}" can be used by others (mode {mode:04o}) (chmod 600 {secret})'
    ]


def test_a_secret_behind_a_link_is_judged_by_its_target(config: Path) -> None:
    secret = config.with_name("site.psk")
    target = secret.rename(config.with_name("target"))
    secret.symlink_to(target)
    assert load_file(config).configuration.policies
    target.chmod(0o644)
    assert "can be used by others" in errors(config)[0]


def test_a_secret_that_is_no_file(config: Path) -> None:
    secret = config.with_name("site.psk")
    secret.unlink()
    assert f'there is no secret file "{secret}"' in errors(config)[0]
    os.mkfifo(secret, 0o600)
    assert f'the secret file "{secret}" is not a regular file' in errors(config)[0]
    secret.unlink()
    secret.mkdir(0o700)
    assert f'the secret file "{secret}" is not a regular file' in errors(config)[0]


def test_a_secret_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.toml"
    file.write_text(changed(SITE_TO_SITE, (f'secret = "{KEY}"', 'secret_env = "MG_TEST_PSK"')))
    assert 'the environment variable "MG_TEST_PSK" is not set' in errors(file)[0]
    monkeypatch.setenv("MG_TEST_PSK", KEY)
    assert load_file(file).configuration.policies[0].rules[0].authentication


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert errors(missing) == ["none.toml: there is no such file (check the path)"]
    folder = tmp_path / "folder"
    folder.mkdir()
    assert errors(folder) == ["folder: is a directory (name the config file in it)"]
    assert errors(folder / "x" / "a.toml") == ["a.toml: there is no such file (check the path)"]
    (tmp_path / "latin.toml").write_bytes(b"# gr\xfc\xdfe\n")
    assert errors(tmp_path / "latin.toml") == ["latin.toml:1:5: the file is not UTF-8 text (save it as UTF-8)"]
    with pytest.raises(ConfigErrors, match="is not a path"):
        load_file("a\0b")
