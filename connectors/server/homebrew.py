"""The Homebrew formula of the agent: a pure function of what a release holds for macOS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TAP: Final = "incident-rca/agent"
FORMULA: Final = f"{TAP}/incident-rca-agent"
FORMULA_PATH: Final = "Formula/incident-rca-agent.rb"
"""Where Homebrew looks for the formula in the tap."""
PYTHON: Final = "3.13"
"""The Python that the formula depends on; the bundle runs with any from 3.11 on."""

_ARCHITECTURES: Final = {"aarch64": ("on_arm", ":arm64"), "x86_64": ("on_intel", ":x86_64")}
"""How manifests and Homebrew name the machines of Macs."""


def formula(version: str, platform_url: str, bundles: Mapping[str, tuple[str, str]]) -> str:
    """The formula for ``version``, as a tap that the platform at ``platform_url`` serves holds it.

    ``bundles`` has for each architecture, as manifests name it, the URL of its bundle and the SHA-256 (hexadecimal) of that.

    Raises:
        ValueError: there is a bundle for no architecture that Macs have.
    """
    sources = [(*_ARCHITECTURES[arch], *bundles[arch]) for arch in _ARCHITECTURES if arch in bundles]
    if not sources:
        raise ValueError("there is no bundle for macOS")
    if len(sources) == 1:
        [(_, arch, url, sha256)] = sources
        source = f"  url {_quoted(url)}\n  version {_quoted(version)}\n  sha256 {_quoted(sha256)}\n"
        needs = f"  depends_on arch: {arch}\n"
    else:
        source = f"  version {_quoted(version)}\n"
        needs = "\n".join(
            f"  {block} do\n    url {_quoted(url)}\n    sha256 {_quoted(sha256)}\n  end\n" for block, _, url, sha256 in sources
        )
        needs += "\n"
    return _TEMPLATE.format(source=source, needs=needs, homepage=_quoted(platform_url), python=PYTHON)


def _quoted(text: str) -> str:
    """``text`` as a string literal of Ruby, in which nothing is expanded."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("#", "\\#")
    return f'"{escaped}"'


# The packages lie beside a launcher instead of in a virtual environment, whose interpreter would be gone when Homebrew upgrades Python.
# The service reads its settings itself: Homebrew writes the environment of a service into a file that everybody can read.
_TEMPLATE: Final = """\
# Written by the platform that serves this tap; every release there is one commit here.
class IncidentRcaAgent < Formula
  desc "Connects this Mac to an incident-rca platform"
  homepage {homepage}
{source}  license "Apache-2.0"

{needs}  depends_on :macos
  depends_on "python@{python}"

  def install
    python = Formula["python@{python}"].opt_bin/"python{python}"
    packages = libexec/"site-packages"
    packages.mkpath
    Dir["**/*.whl"].sort.each {{ |wheel| system python, "-I", "-m", "zipfile", "-e", wheel, packages }}

    (bin/"incident-rca-agent").write <<~PYTHON
      #!#{{python}} -I
      import sys

      sys.path.insert(0, "#{{opt_libexec}}/site-packages")
      from connectors.cli import main

      sys.exit(main())
    PYTHON
    (libexec/"service").write <<~SH
      #!/bin/sh
      umask 077
      set -a
      STATE_DIRECTORY="#{{var}}/lib/incident-rca"
      . "#{{etc}}/incident-rca/agent.env"
      set +a
      exec "#{{opt_bin}}/incident-rca-agent" run --type server
    SH
    chmod 0755, [bin/"incident-rca-agent", libexec/"service"]
  end

  def caveats
    <<~TEXT
      The platform's deployment command writes the address, the token and the options to
        #{{etc}}/incident-rca/agent.env
      which only you can read; the service does not start without it.
      To start it at boot rather than at login: sudo brew services start incident-rca-agent
    TEXT
  end

  service do
    run opt_libexec/"service"
    keep_alive true
    process_type :background
    log_path var/"log/incident-rca-agent.log"
    error_log_path var/"log/incident-rca-agent.log"
  end

  test do
    assert_match version.to_s, shell_output("#{{bin}}/incident-rca-agent version")
  end
end
"""
