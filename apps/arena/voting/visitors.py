"""Who asks: a voter by a signed cookie, and a network by a keyed hash that cannot be undone after some days."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from sqlalchemy import Connection, delete, select, update

from apps.arena.store.schema import battles, counters, salts
from apps.arena.store.sql import insert_new
from apps.arena.voting.tokens import Tokens

COOKIE = "palate_voter"
COOKIE_SECONDS = 400 * 24 * 3600
DAY = 24 * 3600 * 1000


@dataclass(frozen=True)
class Visitor:
    """Who asks. `new`: this request made the voter, so the answer must set the cookie."""

    voter: str
    network: str
    """Hash of the network, or "" where the address is unknown."""
    new: bool = False


def new_voter() -> str:
    """Return a random id, 32 hex characters."""
    return secrets.token_hex(16)


def client_address(peer: str | None, headers: Mapping[str, str], trusted: Sequence[str]) -> str:
    """Return the address of the client.

    X-Forwarded-For counts only where the peer is a trusted proxy; then it is read from the right, and the first address
    that is not a trusted proxy's is the client's: what stands further left, the client may have written.
    """
    networks = [ip_network(address, strict=False) for address in trusted]
    hops = [hop.strip() for hop in headers.get("x-forwarded-for", "").split(",")] if networks else []
    address = peer or ""
    while hops and _is_in(address, networks):
        address = hops.pop()
    return address if _valid(address) else ""


def is_forwarded(headers: Mapping[str, str]) -> bool:
    """Whether a proxy passed the request on, trusted or not."""
    return any(name in headers for name in ("x-forwarded-for", "forwarded", "via", "x-real-ip"))


def network_of(address: str) -> str:
    """Return the network that is limited as one: IPv4 /24, IPv6 /48; "" where there is no address."""
    if not _valid(address):
        return ""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return str(ip_network(f"{ip}/{24 if ip.version == 4 else 48}", strict=False))


def is_loopback(address: str) -> bool:
    """Whether the address is this machine's own."""
    if not _valid(address):
        return False
    ip = ip_address(address)
    return (ip.ipv4_mapped or ip).is_loopback if isinstance(ip, IPv6Address) else ip.is_loopback


def salt_of_today(connection: Connection, now: int) -> str:
    """Return the salt of today's address hashes, made by whichever worker asks first."""
    day = now // DAY
    insert_new(connection, salts, {"day": day, "value": secrets.token_hex(16)})
    return connection.execute(select(salts.c.value).where(salts.c.day == day)).scalar_one()


def hash_network(tokens: Tokens, network: str, salt: str) -> str:
    """Return the hash of a network under a day's salt."""
    return tokens.digest("network", network, salt) if network else ""


def forget_addresses(connection: Connection, now: int, days: int) -> int:
    """Erase hashes and salts older than `days` and counters that are over; return how many battles lost theirs."""
    connection.execute(delete(salts).where(salts.c.day < now // DAY - days))
    connection.execute(delete(counters).where(counters.c.until < now))
    old = update(battles).where(battles.c.network.is_not(None), battles.c.created < now - days * DAY)
    return connection.execute(old.values(network=None)).rowcount


def _valid(address: str) -> bool:
    try:
        ip_address(address)
    except ValueError:
        return False
    return True


def _is_in(address: str, networks: Sequence) -> bool:
    return _valid(address) and any(ip_address(address) in network for network in networks)
