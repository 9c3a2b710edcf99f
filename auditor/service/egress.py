"""Requests to URLs that tenants chose: https, to a public address that was checked, and nowhere else.

1. The name is resolved once; every address it has must be public, else nothing is sent.
2. The connection goes to one of these very addresses: a name that resolves otherwise later (rebinding) is not
   asked again. TLS is checked against the name.
3. No redirect is followed, no proxy of the environment is used, at most `MOST_REPLY_BYTES` of the answer are
   read and none of it is kept, and all of it takes at most `MOST_SECONDS`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import httpx

from auditor.errors import OptionError
from auditor.service.webhooks import Outcome

MOST_SECONDS = 10.0
MOST_REPLY_BYTES = 64 << 10
MOST_ADDRESSES = 4
"""Tried in turn where one does not answer."""
# Beside what `ipaddress` calls not global: translations of IPv4 into IPv6 (RFC 6052, 8215, 3056, 4380), whose
# embedded address would go unchecked, their relay, and one cloud's metadata server on a public address.
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "::ffff:0:0/96",
        "::ffff:0:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2002::/16",
        "2001::/23",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "100.64.0.0/10",
        "168.63.129.16/32",
    )
)
Network = IPv4Network | IPv6Network


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is on the open internet and nothing else."""
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_link_local:
        return False
    return not any(address in network for network in _NEVER if network.version == address.version)


@dataclass(frozen=True, slots=True)
class Egress:
    """Where requests may go.

    Attributes:
        allowed: networks that are taken for public, for receivers on one's own network.
        proxy: an egress proxy that every request goes through; it checks addresses then.
        trust: certificates of authorities; the system's by default.
    """

    allowed: tuple[Network, ...] = ()
    proxy: str | None = None
    trust: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)

    @classmethod
    def of_options(cls, allowed: Sequence[str], proxy: str | None, authorities: Path | None) -> Egress:
        """From the command line.

        Raises:
            OptionError: no network, no proxy, or no certificates.
        """
        try:
            networks = tuple(ipaddress.ip_network(text) for text in allowed)
        except ValueError as error:
            raise OptionError(str(error), where="--webhook-allow", fix="say 10.0.0.0/8") from None
        if proxy is not None and not proxy.startswith(("http://", "https://")):
            raise OptionError("no address of a proxy", where="--webhook-proxy", fix="say http://proxy:3128")
        try:
            trust = ssl.create_default_context(cafile=authorities)
        except (OSError, ssl.SSLError) as error:
            raise OptionError(f"cannot be read: {error}", where="--webhook-ca") from None
        return cls(networks, proxy, trust)

    def permits(self, address: str) -> bool:
        """Whether an address may be connected to."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:  # an IPv6 address with a zone, for one
            return False
        return is_public(parsed) or any(parsed in network for network in self.allowed)

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Outcome:
        """Send a body; never raises for what the other side does."""
        try:
            async with asyncio.timeout(MOST_SECONDS):
                return await self._post(httpx.URL(url), headers, body)
        except TimeoutError:
            return Outcome(None, f"no answer within {MOST_SECONDS:g} s")
        except (httpx.InvalidURL, UnicodeError):
            return Outcome(None, "the URL cannot be used")

    async def _post(self, url: httpx.URL, headers: dict[str, str], body: bytes) -> Outcome:
        if url.scheme != "https":
            return Outcome(None, "only https is sent to")
        if self.proxy is not None:
            return await self._ask(url, headers, body, {})
        addresses = await _resolve(url.raw_host.decode("ascii"), url.port or 443)
        if not addresses:
            return Outcome(None, "the name does not resolve")
        if not all(self.permits(address) for address in addresses):
            return Outcome(None, "the name resolves to an address that is not public")
        told = {**headers, "Host": url.netloc.decode("ascii")}
        extensions = {"sni_hostname": url.raw_host.decode("ascii")}
        outcome = Outcome(None, "unreachable")
        for address in addresses[:MOST_ADDRESSES]:
            outcome = await self._ask(url.copy_with(host=address), told, body, extensions)
            if outcome.error != "cannot be connected to":
                break
        return outcome

    async def _ask(
        self, url: httpx.URL, headers: dict[str, str], body: bytes, extensions: dict[str, str]
    ) -> Outcome:
        client = httpx.AsyncClient(
            verify=self.trust,
            trust_env=False,
            follow_redirects=False,
            timeout=MOST_SECONDS,
            proxy=self.proxy,
        )
        try:
            async with (
                client,
                client.stream(
                    "POST", url, content=body, headers=headers, extensions=dict(extensions)
                ) as response,
            ):
                read = 0
                async for part in response.aiter_raw(4096):  # undecoded: it is only counted
                    read += len(part)
                    if read > MOST_REPLY_BYTES:
                        break
                return _outcome_of(response.status_code)
        except httpx.ConnectError as error:
            certificate = isinstance(error.__context__, ssl.SSLError) or "CERTIFICATE" in str(error)
            return Outcome(None, "TLS failed" if certificate else "cannot be connected to")
        except httpx.HTTPError as error:
            return Outcome(None, f"the exchange broke off: {type(error).__name__}")


def _outcome_of(status: int) -> Outcome:
    if 200 <= status < 300:
        return Outcome(status)
    if 300 <= status < 400:
        return Outcome(status, "a redirect, which is not followed")
    if status == 410:
        return Outcome(status, "gone: the webhook is disabled", gone=True)
    return Outcome(status, f"status {status}")


async def _resolve(host: str, port: int) -> list[str]:
    """Every address of a name, in the resolver's order."""
    host = host.removeprefix("[").removesuffix("]")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
