"""strongSwan as a peer: charon in a namespace, ESP in user space (kernel-libipsec), steered over vici.

Every instance has its files and its vici socket in a directory of its own, so that several can run on one machine.
kernel-libipsec sends ESP in UDP always and knows tunnel mode only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.support.netns import Namespace, wait_for

_PLUGINS = Path("/usr/lib/ipsec/plugins")
_DAEMON = """\
charon-systemd {{
  load = random nonce aes sha1 sha2 hmac kdf mgf1 openssl curve25519 chapoly gcm pem pkcs1 x509 pubkey \
kernel-libipsec kernel-netlink socket-default updown vici
  install_virtual_ip = no
  fragment_size = {fragment_size}
  retransmit_timeout = 1.0
  retransmit_base = 1.3
  half_open_timeout = 30
  plugins {{
    vici {{ socket = unix://{directory}/vici }}
    kernel-libipsec {{ allow_peer_ts = yes }}
  }}
  filelog {{
    log {{
      path = {directory}/charon.log
      default = 1
      ike = 2
      cfg = 2
      flush_line = yes
    }}
  }}
  journal {{ default = -1 }}
  syslog {{ daemon {{ default = -1 }} }}
}}
swanctl {{ load = random nonce pem pkcs1 x509 pubkey openssl }}
"""


def missing() -> str | None:
    """Return what this machine lacks to run strongSwan, or None."""
    for program in ("charon-systemd", "swanctl"):
        if shutil.which(program) is None and not Path("/usr/sbin", program).exists():
            return f"{program} is missing: apt-get install charon-systemd strongswan-swanctl"
    if not (_PLUGINS / "libstrongswan-kernel-libipsec.so").exists():
        return "strongSwan's kernel-libipsec is missing: apt-get install libcharon-extra-plugins"
    return None


def connection(
    *,
    local: str,
    remote: str,
    local_id: str,
    remote_id: str,
    local_ts: str,
    remote_ts: str,
    secret: str,
    proposals: str = "aes256gcm16-prfsha384-x25519",
    esp_proposals: str = "aes256gcm16-x25519",
    extra: str = "",
    child_extra: str = "",
) -> str:
    """Return a swanctl.conf with the connection ``site`` and its one child ``lan``."""
    return f"""\
connections {{
  site {{
    version = 2
    local_addrs = {local}
    remote_addrs = {remote}
    proposals = {proposals}
    {extra}
    local {{
      auth = psk
      id = {local_id}
    }}
    remote {{
      auth = psk
      id = {remote_id}
    }}
    children {{
      lan {{
        mode = tunnel
        local_ts = {local_ts}
        remote_ts = {remote_ts}
        esp_proposals = {esp_proposals}
        {child_extra}
      }}
    }}
  }}
}}
secrets {{
  ike-site {{
    id-1 = {local_id}
    id-2 = {remote_id}
    secret = "{secret}"
  }}
}}
"""


class StrongSwan:
    """A charon in *namespace* with the configuration *conf* (see ``connection``). A context manager."""

    def __init__(self, namespace: Namespace, conf: str, *, fragment_size: int = 1280) -> None:
        self._namespace = namespace
        self._directory = Path(tempfile.mkdtemp(prefix="mirrorgate-strongswan-"))
        (self._directory / "strongswan.conf").write_text(
            _DAEMON.format(directory=self._directory, fragment_size=fragment_size)
        )
        self._environment = {
            "STRONGSWAN_CONF": str(self._directory / "strongswan.conf"),
            "SWANCTL_DIR": str(self._directory),
        }
        self._conf = conf
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> StrongSwan:
        try:
            self._process = self._namespace.start(
                "charon-systemd", log=self._directory / "output.log", environment=self._environment
            )
            wait_for((self._directory / "vici").exists, "charon's vici socket", 15)
            self.load(self._conf)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End charon and remove its files. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def load(self, conf: str) -> None:
        """Replace the configuration."""
        self._conf = conf
        (self._directory / "swanctl.conf").write_text(conf)
        self.swanctl("--load-all", "--noprompt")

    def swanctl(self, *words: str, check: bool = True, timeout: float = 30) -> str:
        """Run swanctl and return what it prints. AssertionError with the log when *check* and it fails."""
        try:
            done = subprocess.run(
                ["ip", "netns", "exec", self._namespace.name, "swanctl", *words,
                 "--uri", f"unix://{self._directory}/vici"],
                capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **self._environment},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"swanctl {' '.join(words)} hangs\n{self.log()[-3000:]}") from error
        if check and done.returncode != 0:
            raise AssertionError(f"swanctl {' '.join(words)}: {done.stdout}{done.stderr}\n{self.log()[-3000:]}")
        return done.stdout + done.stderr

    def initiate(self, *, check: bool = True, timeout: int = 15) -> str:
        """Negotiate the child ``lan``."""
        return self.swanctl("--initiate", "--child", "lan", "--timeout", str(timeout), check=check)

    def rekey(self, *, ike: bool = False) -> None:
        """Rekey the Child SA, or the IKE SA."""
        self.swanctl("--rekey", *(("--ike", "site") if ike else ("--child", "lan")))

    def terminate(self, *, ike: bool = False) -> None:
        """Delete the Child SA, or the IKE SA."""
        self.swanctl("--terminate", *(("--ike", "site") if ike else ("--child", "lan")))

    def sas(self) -> str:
        """Return ``swanctl --list-sas``."""
        return self.swanctl("--list-sas")

    def child_sas(self) -> int:
        """Return how many Child SAs are installed."""
        return len(re.findall(r"\blan: #\d+.* INSTALLED", self.sas()))

    def ike_sas(self) -> int:
        """Return how many IKE SAs are established."""
        return len(re.findall(r"^site: #\d+, ESTABLISHED", self.sas(), re.MULTILINE))

    def log(self) -> str:
        """Return charon's log so far."""
        path = self._directory / "charon.log"
        return path.read_text(errors="replace") if path.exists() else ""
